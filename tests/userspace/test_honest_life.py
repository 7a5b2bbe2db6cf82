"""No false alarm of a rollback, with the userspace engine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from support.killed_backups import honest_cycles
from support.volume import CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


def test_killed_backups_raise_no_alarm(
    volume: CliVolume, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """Ten backups (a thousand with --long), killed anywhere or not at all: none is refused."""
    count = rounds(10, 1000)
    print(f"{honest_cycles(volume, count, chance)} of {count} backups were killed")
    assert volume.is_bare()

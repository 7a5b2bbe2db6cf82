"""What a dry run prints is a script: pasted into `sh -e`, it does what the command does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pasted_dry_run_cases import (  # noqa: F401 - pytest finds them here
    blank_in,
    filled,
    test_a_pasted_after_backup_closes,
    test_a_pasted_before_backup_opens,
    test_a_pasted_create_makes_the_volume,
    test_a_pasted_resize_changes_the_size,
)
from support.volume import CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


@pytest.fixture
def blank(tmp_path: Path) -> Iterator[CliVolume]:
    """A configured volume of which nothing is there yet."""
    yield from blank_in(tmp_path, "userspace")


@pytest.fixture
def volume(blank: CliVolume) -> CliVolume:
    """A volume with a file in it, closed."""
    return filled(blank)

"""What a dry run prints is a script: pasted into `sh -e`, it does what the command does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import NAME, Bench, closing
from pasted_cases import (  # noqa: F401 - pytest finds them here
    test_a_pasted_after_backup_closes,
    test_a_pasted_before_backup_opens,
    test_a_pasted_create_makes_the_volume,
    test_a_pasted_resize_changes_the_size,
)

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


@pytest.fixture
def blank(tmp_path: Path) -> Iterator[Bench]:
    """A configured volume of which nothing is there yet."""
    bench = Bench(tmp_path, "userspace")
    bench.prepare()
    yield from closing(bench)


@pytest.fixture
def volume(blank: Bench) -> Bench:
    """A volume with a file in it, closed."""
    blank.do("create", NAME)
    blank.do("run", NAME, "--", "sh", "-c", f"echo content > {blank.data}/file")
    return blank

"""What counts as something that `create` must not overwrite."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lukshook.luks import cryptsetup
from lukshook.store.image_file import open_image
from lukshook.system.command import SystemRunner

pytestmark = pytest.mark.needs("wipefs", "mkfs.ext4", "mkswap", "cryptsetup")
MIB = 1 << 20
PARTITION = bytes([0, 0, 2, 0, 0x83, 0, 3, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")


def signatures(file: Path) -> tuple[str, ...]:
    with open_image(file, writable=False) as image:
        return cryptsetup.signatures(image, SystemRunner())


def test_nothing_is_recognised_in_zeroes(tmp_path: Path) -> None:
    """A new disk."""
    (tmp_path / "disk").write_bytes(bytes(8 * MIB))
    assert () == signatures(tmp_path / "disk")


def test_a_partition_table_alone_is_something(tmp_path: Path) -> None:
    """A disk with partitions has no file system at its start."""
    (tmp_path / "disk").write_bytes(bytes(446) + PARTITION + bytes(48) + b"\x55\xaa" + bytes(8 * MIB - 512))
    assert ("dos",) == signatures(tmp_path / "disk")


@pytest.mark.parametrize("tool", ["mkfs.ext4", "mkswap"])
def test_what_was_formatted_is_something(tmp_path: Path, tool: str) -> None:
    """File systems and swap."""
    (tmp_path / "disk").write_bytes(bytes(8 * MIB))
    subprocess.run([tool, tmp_path / "disk"], check=True, capture_output=True)
    assert 1 == len(signatures(tmp_path / "disk"))

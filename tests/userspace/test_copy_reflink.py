"""A store with reflinks: the copy changes in one step, and nothing says that it is mixed."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.replica.local import LocalFile, LocalTarget
from support.kept_volume import KeptVolume, kept_volume

pytestmark = [pytest.mark.roots, pytest.mark.needs("mkfs.xfs")]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[KeptVolume]:
    """With its copy on XFS."""
    volume = kept_volume(tmp_path, lambda text: None)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, volume.target.parent], check=True)
    try:
        yield volume
    finally:
        subprocess.run(["umount", volume.target.parent], check=True)


def test_a_copy_is_exchanged_for_a_changed_clone(
    volume: KeptVolume, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    create = LocalTarget.create

    def noted(self: LocalTarget, name: str) -> LocalFile:
        made.append(name)
        return create(self, name)

    monkeypatch.setattr(LocalTarget, "create", noted)
    volume.copy()
    for _ in range(3):
        before = volume.target.stat().st_ino
        volume.write(chance)
        volume.copy()
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert before != volume.target.stat().st_ino
        assert ["copy.img"] == volume.names()
    assert {"copy.img.part", "copy.img.next"} == set(made)
    assert () == volume.verify_copy().bad

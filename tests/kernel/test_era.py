"""The recorder of the kernel engine: it misses nothing, it never stops a backup, and it leaves nothing behind."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.layers import era_metadata
from lukshook.layers.base import Records
from lukshook.system import kernel
from support import kernel_volume, recorded
from support.kernel_volume import KernelVolume, tool
from support.recorded import Recorder, session

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "era_invalidate", "era_check", "fstrim")
MAPPING = "lukshook-house"
TARGET = "lukshook-house+era"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[KernelVolume]:
    made = kernel_volume.build(tmp_path, size="96MiB")
    yield made
    made.close()


@pytest.fixture
def recorder(house: KernelVolume, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return recorded.armed(house.folder, monkeypatch)


def write_at_random(place: Path, count: int, chance: random.Random) -> None:
    """Writes of odd sizes into a file, at any place in it, and synced."""
    with place.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        for _ in range(count):
            content = chance.randbytes(chance.randrange(1, 70_000))
            file.seek(chance.randrange(0, length - len(content)))
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fill(folder: Path, count: int, chance: random.Random) -> None:
    """Files of odd sizes."""
    for number in range(count):
        (folder / f"{number}").write_bytes(chance.randbytes(chance.randrange(1, 900_000)))


def test_every_piece_that_is_written_is_listed(house: KernelVolume, recorder: Recorder, chance: random.Random) -> None:
    """Files, writes into them, deletes: no piece changes that is not listed, and few are listed that do not."""
    with session(house, recorder):
        fill(house.volume.data, 30, chance)
        (house.volume.data / "large").write_bytes(chance.randbytes(8 << 20))
    with session(house, recorder):
        write_at_random(house.volume.data / "large", 40, chance)
        for number in range(10, 20):
            (house.volume.data / f"{number}").unlink()
    assert Records.THIS_OPENING is recorder.lists[-1][0]
    before = recorded.digests(house.image)
    house.open()
    house.close()
    assert recorder.listed == recorded.changed(before, recorded.digests(house.image))
    assert [] == house.warnings


def test_what_is_written_is_listed_while_it_is_open(house: KernelVolume, recorder: Recorder) -> None:
    """As often as one asks, the era that runs included."""
    house.open()
    handle = recorded.standing(house)
    before = recorded.digests(house.image)
    for number in range(4):
        (house.volume.data / f"{number}").write_bytes(os.urandom(700_000))
        subprocess.run(["sync", "--file-system", house.volume.data], check=True)
        different = recorded.changed(before, recorded.digests(house.image))
        assert set() == different - recorded.pieces_in(handle.written(house.site.runner))
    house.close()
    assert not (house.folder / "record/era.written").exists()


def test_without_a_recording_nothing_is_different(house: KernelVolume) -> None:
    """The mapping stands on the loop device itself."""
    house.open()
    assert kernel.mapping(TARGET) is None
    (under,) = kernel.mapping(MAPPING).under  # type: ignore[union-attr]
    assert under.startswith("7:")
    house.close()


def test_nothing_stands_when_it_is_closed(house: KernelVolume, recorder: Recorder) -> None:
    """Neither the target nor the loop devices."""
    with session(house, recorder):
        assert kernel.mapping(TARGET) is not None
        (house.volume.data / "file").touch()
    assert kernel.mapping(TARGET) is None
    assert [] == [node for node in kernel.attached_loops() if kernel.loop_mark(node).startswith(b"lukshook")]
    assert ["era.0"] == os.listdir(house.folder / "record")


def test_the_metadata_have_all_their_blocks(house: KernelVolume, recorder: Recorder) -> None:
    """A hole in them could find no room, and then the backup gets an I/O error."""
    with session(house, recorder):
        (house.volume.data / "file").touch()
    found = (house.folder / "record/era.0").stat()
    assert found.st_size == era_metadata.needed(house.image.stat().st_size)
    assert found.st_blocks * 512 >= found.st_size
    assert "lukshook" not in tool("dmsetup", "ls")

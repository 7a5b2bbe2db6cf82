"""The recorder of the kernel engine: it misses nothing, it never stops a backup, and it leaves nothing behind."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.layers import dmcrypt, era_metadata
from lukshook.layers.base import Records
from lukshook.resize import compact
from lukshook.system import kernel
from lukshook.volume import stack, users
from lukshook.volume.work import work_on
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


@pytest.fixture
def trimming(house: KernelVolume, recorder: Recorder) -> KernelVolume:
    """A volume whose store is told which blocks are unused."""
    return evolve(house, volume=house.volume.trimming())


def test_discards_are_listed(trimming: KernelVolume, recorder: Recorder, chance: random.Random) -> None:
    """dm-era sees only where one begins, so none is longer than a block, and the block behind counts too."""
    data = trimming.volume.data
    with session(trimming, recorder):
        fill(data, 20, chance)
        (data / "large").write_bytes(chance.randbytes(20 << 20))
    with session(trimming, recorder):
        (data / "large").unlink()
        for number in range(0, 20, 2):
            (data / f"{number}").unlink()
        subprocess.run(["sync", "--file-system", data], check=True)
        tool("fstrim", str(trimming.volume.mountpoint))
    assert trimming.image.stat().st_blocks * 512 < 40 << 20
    with session(trimming, recorder):
        tool("mount", "-o", "remount,discard", str(trimming.volume.mountpoint))
        for number in range(1, 20, 2):
            (data / f"{number}").unlink()
        subprocess.run(["sync", "--file-system", data], check=True)


def test_discards_of_any_length_at_any_place_are_listed(
    trimming: KernelVolume, recorder: Recorder, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    """On the mapping itself: file systems discard in blocks of theirs, which need not lie in one of dm-era's."""
    with session(trimming, recorder):
        (trimming.volume.data / "file").write_bytes(chance.randbytes(60 << 20))
    with random_place(trimming, recorder) as device:
        length = kernel.block_size(device)
        for _ in range(rounds(40, 400)):
            begin, size = (chance.randrange(1, length // 4096 - 300) * 4096 for _ in range(2))
            tool("blkdiscard", "--force", f"--offset={begin}", f"--length={min(size, 1 << 20)}", device)


@contextmanager
def random_place(house: KernelVolume, recorder: Recorder) -> Iterator[str]:
    """The mapping of a volume that is not mounted, in a copy of its image that is put back at the end."""
    saved = house.folder / "saved"
    saved.write_bytes(house.image.read_bytes())
    before = recorded.digests(house.image)
    with work_on(house.volume, house.site) as work:
        layers = ("image", "loop", "era", "dmcrypt")
        opening = work.opening(work.trust(), read_only=False)
        record = stack.push_layers(work, opening, users.by_hand(), layers=layers)
        yield record.layers[-1][1].path
        stack.take_down(work)
    different = recorded.changed(before, recorded.digests(house.image))
    assert different
    assert set() == different - recorder.listed
    house.image.write_bytes(saved.read_bytes())


def test_without_the_option_no_discard_gets_through(house: KernelVolume, recorder: Recorder) -> None:
    """Also not one that the mapping lets through."""
    through = evolve(house, volume=evolve(house.volume, dmcrypt=dmcrypt.Spec(discard=True)))
    through.open()
    refused = subprocess.run(["fstrim", house.volume.mountpoint], capture_output=True, check=False)
    assert 0 != refused.returncode
    through.close()


def test_compacting_is_listed(house: KernelVolume, recorder: Recorder, chance: random.Random) -> None:
    """It frees what is unused, and every piece of that counts as written."""
    with session(house, recorder):
        (house.volume.data / "large").write_bytes(chance.randbytes(20 << 20))
    with session(house, recorder):
        (house.volume.data / "large").unlink()
    before = recorded.digests(house.image)
    freed = compact.compact(house.volume, house.site, lambda _: True)
    assert freed
    assert freed > 15 << 20
    different = recorded.changed(before, recorded.digests(house.image))
    assert set() == different - recorder.listed


@pytest.mark.parametrize("extra", [4096, 5 * 4096, 256 * 1024 - 4096])
def test_an_image_that_ends_within_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    """Its last piece is listed like any other."""
    house = kernel_volume.build(tmp_path, size="64MiB")
    with house.image.open("r+b") as image:
        image.truncate((64 << 20) + extra)
    recorder = recorded.armed(tmp_path, monkeypatch)
    with random_place(house, recorder) as device, open(device, "r+b", buffering=0) as place:
        place.seek(-512, os.SEEK_END)
        place.write(os.urandom(512))
    assert (64 << 20) // recorded.PIECE in recorder.listed


def test_a_device_as_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """The target stands on it without a loop device of ours."""
    store = tmp_path / "disk"
    with store.open("wb") as file:
        file.truncate(64 << 20)
    node = tool("losetup", "--find", "--show", str(store)).strip()
    try:
        house = kernel_volume.build(tmp_path, image=node, size=None)
        recorder = recorded.armed(tmp_path, monkeypatch)
        before = recorded.digests(Path(node))
        house.open()
        assert [] == house.warnings
        fill(house.volume.data, 10, chance)
        assert Path(f"/sys/block/{Path(node).name}/holders").iterdir()
        house.close()
        different = recorded.changed(before, recorded.digests(Path(node)))
        assert different
        assert set() == different - recorder.listed
    finally:
        tool("losetup", "--detach", node)

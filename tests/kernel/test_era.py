"""The recorder of the kernel engine: it misses nothing, it never stops a backup, and it leaves nothing behind."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.layers import dmcrypt, era, era_metadata
from lukshook.layers.base import Records
from lukshook.resize import compact, resizing
from lukshook.resize.intent import Interaction
from lukshook.system import kernel, loops
from lukshook.volume import stack, users
from lukshook.volume.work import work_on
from support import kernel_volume, kill_after_command, recorded
from support.kernel_volume import KernelVolume, tool
from support.recorded import Recorder, session
from support.volume import NAME, CliVolume, closing

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
    assert [] == [loop.node for loop in loops.look() if loop.mark and loop.mark.startswith(b"lukshook")]
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


@pytest.mark.parametrize("above", ["as below", "any"])
def test_discards_of_any_length_at_any_place_are_listed(
    trimming: KernelVolume, recorder: Recorder, chance: random.Random, rounds: Callable[[int, int], int], above: str
) -> None:
    """On the mapping itself: file systems discard in blocks of theirs, which need not lie in one of dm-era's."""
    with session(trimming, recorder):
        (trimming.volume.data / "file").write_bytes(chance.randbytes(60 << 20))
    with random_place(trimming, recorder) as device:
        length = kernel.block_size(device)
        if above == "any":  # the target itself divides what is longer
            queue = Path(f"/sys/dev/block/{kernel.number(device)}/queue")
            (queue / "discard_max_bytes").write_text(str(1 << 30))
            assert 1 << 30 == int((queue / "discard_max_bytes").read_text())
        for _ in range(rounds(40, 400)):
            begin, size = (chance.randrange(1, length // 4096 - 300) * 4096 for _ in range(2))
            tool("blkdiscard", "--force", f"--offset={begin}", f"--length={min(size, 1 << 20)}", device)


def test_discards_of_an_earlier_opening_are_listed(
    house: KernelVolume, trimming: KernelVolume, recorder: Recorder, chance: random.Random
) -> None:
    """A `compact` was killed, and the next opening, which continues its record, lets no discards through."""
    with session(trimming, recorder):
        (trimming.volume.data / "file").write_bytes(chance.randbytes(60 << 20))
    before = recorded.digests(trimming.image)
    with mapping(trimming) as device:
        begin = 40 * recorded.PIECE + recorded.PIECE // 2  # it ends in the next block
        tool("blkdiscard", "--force", f"--offset={begin}", f"--length={recorded.PIECE}", device)
    recorder.fresh.append(False)
    with mapping(house):
        pass
    different = recorded.changed(before, recorded.digests(house.image))
    assert (2, set()) == (len(different), different - recorder.listed)


@contextmanager
def mapping(house: KernelVolume) -> Iterator[str]:
    """The mapping of a volume that is not mounted."""
    with work_on(house.volume, house.site) as work:
        opening = work.opening(work.trust(), read_only=False)
        layers = ("image", "loop", "era", "dmcrypt")
        record = stack.push_layers(work, opening, users.by_hand(), layers=layers)
        yield record.layers[-1][1].path
        stack.take_down(work)


@contextmanager
def random_place(house: KernelVolume, recorder: Recorder) -> Iterator[str]:
    """The mapping of a volume that is not mounted, in a copy of its image that is put back at the end."""
    saved = house.folder / "saved"
    saved.write_bytes(house.image.read_bytes())
    before = recorded.digests(house.image)
    with mapping(house) as device:
        yield device
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


def grow_open(house: KernelVolume, length: str) -> None:
    """Give an open volume another size."""
    talk = Interaction(lambda done, total: None, lambda _: True, lambda _: None)
    resizing.resize(house.volume, length, house.site, talk)


@pytest.mark.parametrize("discards", [False, True])
def test_what_grows_while_it_is_open_is_listed(
    house: KernelVolume, recorder: Recorder, chance: random.Random, discards: bool
) -> None:
    """Twice: before, between and after; what is behind the old end counts as written."""
    if discards:
        house = evolve(house, volume=house.volume.trimming())
    data = house.volume.data
    with session(house, recorder):
        fill(data, 5, chance)
        grow_open(house, "128MiB")
        (data / "between").write_bytes(chance.randbytes(5 << 20))
        grow_open(house, "160MiB")
        write_at_random(data / "between", 10, chance)
        (data / "after").write_bytes(chance.randbytes(30 << 20))
        (data / "3").unlink()
        if discards:
            tool("fstrim", str(house.volume.mountpoint))
    assert [] == house.warnings
    assert set(range(96 * 4, 160 * 4)) <= recorder.listed
    assert 1 == len(recorder.lists)


def test_growing_goes_on_where_no_further_file_can_be_had(
    house: KernelVolume, recorder: Recorder, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume grows, and the list is known to be lost."""

    def no_room(file: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    house.open()
    monkeypatch.setattr(era_metadata, "make", no_room)
    grow_open(house, "128MiB")
    assert "linear" in tool("dmsetup", "table", TARGET)
    fill(house.volume.data, 5, chance)
    house.close()
    assert [(Records.THIS_OPENING, None)] == recorder.lists
    assert [] == os.listdir(recorder.folder)
    assert "nothing records any more what is written (the disk of the state folder has no room" in house.warnings[-1]


@pytest.fixture
def kept(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume with a ledger."""
    volume = CliVolume(tmp_path, template.engine)
    volume.prepare()
    volume.configure(ledger=True)
    volume.do("create", NAME)
    yield from closing(volume)


def check_bare(volume: CliVolume) -> None:
    """Closed, without a target left, and nothing of the image differs from the ledger."""
    assert volume.is_bare()
    assert [] == [mapping.name for mapping in kernel.mappings() if mapping.name.startswith("lukshook")]
    volume.do("verify", NAME)


def killed_at_each_step(volume: CliVolume, *arguments: str) -> Iterator[int]:
    """Run lukshook, killed after ever more changes, until it ends before that."""
    for number in range(100):
        done = volume.start(*arguments, prepare=partial(kill_after_command.arm, str(number))).wait()
        if done.returncode != -9:
            assert 0 == done.returncode, done.stderr
            return
        yield number


def test_an_opening_that_is_killed_leaves_nothing_behind(kept: CliVolume) -> None:
    """The next run finds the target, with and without a record of it."""
    steps = 0
    for steps in killed_at_each_step(kept, "open", NAME):
        kept.do("close", NAME)
        check_bare(kept)
        kept.do("open", NAME)
        (kept.data / f"{steps}").write_bytes(os.urandom(100_000))
        kept.do("close", NAME)
        check_bare(kept)
    assert steps > 2
    kept.do("close", NAME)


def test_a_closing_that_is_killed_leaves_nothing_behind(kept: CliVolume) -> None:
    """The next run closes what is left; what was listed is read again."""
    steps = 0
    kept.do("open", NAME)
    for steps in killed_at_each_step(kept, "close", NAME):
        kept.do("open", NAME)
        (kept.data / f"{steps}").write_bytes(os.urandom(100_000))
    assert steps > 2
    check_bare(kept)


def test_growing_that_is_killed_is_finished_by_the_same_command(kept: CliVolume) -> None:
    """It stays usable, and nothing is missed, neither what is freed."""
    kept.configure(ledger=True, discard=True)
    kept.do("open", NAME)
    length, steps = 64, 0
    for steps in killed_at_each_step(kept, "resize", NAME, "+4MiB"):
        length += 4
        (kept.data / f"{steps}").write_bytes(os.urandom(100_000))
        tool("fstrim", str(kept.mountpoint))
        kept.do("resize", NAME, f"{length}MiB")
        (kept.data / f"{steps}").unlink()
        tool("fstrim", str(kept.mountpoint))
    assert steps > 3
    kept.do("close", NAME)
    check_bare(kept)


def without(house: KernelVolume, recorder: Recorder, reason: str) -> None:
    """A backup works without a recorder, and a line says why; nothing is left that a later opening would continue."""
    house.open()
    assert kernel.mapping(TARGET) is None
    (house.volume.data / "file").write_bytes(b"content")
    house.close()
    assert [] == recorder.lists
    (line,) = house.warnings
    assert line.startswith(f"volume house: nothing records what is written ({reason}"), line
    assert "closing reads the whole image instead" in line
    assert [] == [name for name in os.listdir(recorder.folder) if name.startswith("era")]
    assert [] == [name for name in loops.attached().values() if "era" in name]


@pytest.mark.parametrize("length", [16 * 1024, 48 * 1024])
def test_metadata_without_room_are_not_used(
    house: KernelVolume, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Full metadata would end every write of the volume with an I/O error."""
    monkeypatch.setattr(era_metadata, "needed", lambda size: length)
    without(house, recorder, "dmsetup failed" if length == 16 * 1024 else "the metadata of lukshook-house+era have")


def test_a_full_state_folder_does_not_stop_a_backup(house: KernelVolume, recorder: Recorder) -> None:
    """There is no room for the file."""
    tool("mount", "-t", "tmpfs", "-o", "size=1M", "small", str(recorder.folder))
    try:
        without(house, recorder, "the disk of the state folder has no room for it")
    finally:
        tool("umount", str(recorder.folder))


def test_a_missing_tool_does_not_stop_a_backup(
    house: KernelVolume, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package is named."""
    monkeypatch.setattr(era_metadata, "TOOLS", ("era_missing",))
    without(house, recorder, "era_missing is not installed")


def test_metadata_that_fail_do_not_stop_a_backup(
    house: KernelVolume, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the state folder gives errors when the target is loaded."""
    monkeypatch.setattr(
        era, "_table", lambda node, below, size: f"0 {size // 512} era 7:250 {kernel.number(below)} 512"
    )
    without(house, recorder, "dmsetup failed")


def test_an_opening_without_a_recorder_ends_the_record(
    house: KernelVolume, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a later one would continue a list that lacks what was written in between."""
    with session(house, recorder):
        (house.volume.data / "file").touch()
    recorder.fresh.append(False)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(era_metadata, "TOOLS", ("era_missing",))
        house.open()
        house.close()
    house.open()
    house.close()
    assert Records.THIS_OPENING is recorder.lists[-1][0]


def test_an_unclean_opening_is_continued(house: KernelVolume, recorder: Recorder) -> None:
    """Also where the image has grown meanwhile."""
    before = recorded.digests(house.image)
    house.open()
    (house.volume.data / "first").write_bytes(os.urandom(3 << 20))
    house.close()
    recorder.fresh.append(False)
    house.open()
    (house.volume.data / "second").write_bytes(os.urandom(3 << 20))
    house.close()
    grow_open(house, "128MiB")
    house.open()
    (house.volume.data / "third").write_bytes(os.urandom(30 << 20))
    house.close()
    assert {Records.SINCE_CLEAN_CLOSE} == {covers for covers, _ in recorder.lists[1:]}
    different = {piece for piece in recorded.changed(before, recorded.digests(house.image)) if piece < len(before)}
    assert set() == different - recorder.listed
    assert [] == house.warnings


def test_damaged_metadata_are_not_continued(house: KernelVolume, recorder: Recorder) -> None:
    """era_check finds it, and the list covers this opening only."""
    with session(house, recorder):
        (house.volume.data / "file").touch()
    with (recorder.folder / "era.0").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(1 << 20))
    recorder.fresh.append(False)
    house.open()
    house.close()
    assert Records.THIS_OPENING is recorder.lists[-1][0]
    assert recorder.lists[-1][1] is not None

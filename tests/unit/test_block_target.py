"""A place for copies on block devices: its directory where the power was cut, or where others have written it."""

from __future__ import annotations

import json

import pytest

from lukshook.errors import Refused, Unavailable
from lukshook.store import block_target
from lukshook.store.block_target import DIRECTORY, BlockTarget
from support.faulty_blocks import LENGTH, BlockDisk
from support.faulty_target import Node, Steps

SLOT = DIRECTORY // 2
END = LENGTH - DIRECTORY


def content_of(disk: BlockDisk, index: int = 0) -> bytearray:
    """What lies on a device."""
    node = disk.nodes[index]
    assert node is not None
    return node.live


def directory(disk: BlockDisk, copy: object, beside: object, number: object = 1) -> None:
    """Write a slot that says so, with its digest in order."""
    said = json.dumps({"number": number, "copy": copy, "beside": beside}).encode()
    slot = (block_target._MAGIC + said).ljust(SLOT - 32, b"\0")
    content_of(disk)[END : END + SLOT] = slot + block_target._digest_of(slot + bytes(32))


def made(disk: BlockDisk) -> BlockTarget:
    """A copy of two bytes."""
    target = disk.target(Steps())
    target.plan(2, "r.part")
    file = target.create("r.part")
    file.resize(2)
    file.write(0, b"ab")
    file.sync()
    target.rename("r.part", "r")
    return target


@pytest.mark.parametrize("grows", [True, False])
def test_what_was_changed_before_it_is_ours_is_not_written_over(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host looks, and stalls; then another one has it, and leaves a journal."""
    monkeypatch.setattr(block_target, "_annex_length", lambda *sizes: LENGTH)
    disk = BlockDisk(grows=grows)
    made(disk)
    late, first = disk.target(Steps()), disk.target(Steps())
    first.claim()
    first.create("r.journal").write(0, b"journal")
    before = [bytes(content_of(disk, index)) for index in range(len(disk.nodes))]
    with pytest.raises(Unavailable, match="another process or host has changed"):
        late.claim()
    assert before == [bytes(content_of(disk, index)) for index in range(len(disk.nodes))]


def test_a_torn_slot_leaves_the_other_one() -> None:
    """Whatever of it was written, the directory is the one before."""
    disk = BlockDisk(grows=False)
    target = made(disk)
    before = bytes(content_of(disk)[END:])
    target.create("r.journal")
    after = bytes(content_of(disk)[END:])
    changed = next(at for at in (0, SLOT) if before[at : at + SLOT] != after[at : at + SLOT])
    last = max(at for at in range(changed, changed + SLOT) if before[at] != after[at])
    for torn in range(changed, last, 512):
        content_of(disk)[END:] = after[:torn] + before[torn:]
        found = disk.target(Steps())
        assert found.exists("r")
        assert not found.exists("r.journal")
    content_of(disk)[END:] = after
    assert disk.target(Steps()).exists("r.journal")


def test_a_first_slot_that_is_torn_leaves_an_empty_device() -> None:
    disk = BlockDisk(grows=False)
    content_of(disk)[END + SLOT : END + SLOT + 40] = block_target._MAGIC + b'{"number": 1, "copy": '
    assert not disk.target(Steps()).exists("r")
    assert b"ab" == made(disk).open("r", writable=False).read(0, 9)


@pytest.mark.parametrize("more", [0, 1, 511, 4095, SLOT - 1])
def test_no_block_of_a_disk_has_parts_of_both_slots(more: int) -> None:
    """Whatever the length of the device: a write that is torn touches one alone."""
    disk = BlockDisk(grows=False)
    content_of(disk).extend(bytes(more))
    made(disk)
    found = [at for at in range(0, LENGTH, 4096) if content_of(disk)[at : at + 18] == block_target._MAGIC]
    assert [END, END + SLOT] == found


@pytest.mark.parametrize(
    ("copy", "beside"),
    [
        ({"r": [0, 2], "s": [0, 2]}, {}),
        ({"r": [1, 2]}, {}),
        ({"another": [0, 2]}, {}),
        ({"r": [0, END + 1]}, {}),
        ({"r": [0, 1 << 62]}, {}),
        ({"r": [0, 100]}, {"r.journal": [50, 10]}),
        ({"r": [0, 100]}, {"r.journal": [200, 10], "r.part": [200, 10]}),
        ({"r": [0, 100]}, {"r.journal": [100, 50], "r.part": [120, 10]}),
        ({"r": [0, 100]}, {"r.journal": [END, 1]}),
        ({"r": [0, 100]}, {"r.journal": [1 << 62, 0]}),
        ({"r": [0, 100]}, {"../../etc/passwd": [200, 1]}),
    ],
)
def test_a_directory_that_says_something_impossible_is_refused(copy: object, beside: object) -> None:
    """Who keeps the device can make its digest."""
    disk = BlockDisk(grows=False)
    directory(disk, copy, beside)
    with pytest.raises(Refused, match="says something impossible"):
        disk.target(Steps())


@pytest.mark.parametrize(
    "said",
    [
        {"copy": [], "beside": {}},
        {"copy": {"r": 5}, "beside": {}},
        {"copy": {"r": [0, -1]}, "beside": {}},
        {"copy": {"r": [0, 1.5]}, "beside": {}},
        {"copy": {"r": ["0", "2"]}, "beside": {}},
        {"copy": {"r": [0, 1 << 70]}, "beside": {}},
        {"copy": {}, "beside": {}, "number": "one"},
        {"copy": {}, "beside": None},
    ],
)
def test_a_slot_without_a_directory_counts_as_none(said: dict[str, object]) -> None:
    disk = BlockDisk(grows=False)
    directory(disk, **said)
    assert not disk.target(Steps()).exists("r")


@pytest.mark.parametrize("place", [0, 1, 100_000, END - 1])
def test_what_others_have_on_a_device_is_a_file_that_nobody_knows(place: int) -> None:
    disk = BlockDisk(grows=False)
    content_of(disk)[place] = 1
    assert disk.target(Steps()).exists("r")
    assert END == disk.target(Steps()).open("r", writable=False).size


def test_an_image_of_others_under_the_name_of_the_journal_is_left_alone() -> None:
    disk = BlockDisk(grows=True)
    disk.nodes[1] = node = Node()
    node.live[:] = b"x" * LENGTH
    with pytest.raises(Refused, match="is not ours"):
        disk.target(Steps())
    assert b"x" * LENGTH == content_of(disk, 1)


def test_a_copy_without_a_directory_has_the_length_of_the_image_once_it_is_taken_over() -> None:
    """Also where that is killed at once: else there would be no room for its journal."""
    disk = BlockDisk(grows=False)
    content_of(disk)[:2] = b"ab"
    target = disk.target(Steps())
    target.plan(2, "r.part")
    target.create("r.part")
    assert (2, END - 2) == ((found := disk.target(Steps())).open("r", writable=False).size, found.free())


def test_what_an_interrupted_first_copy_has_needs_no_room_again() -> None:
    disk = BlockDisk(grows=False)
    target = disk.target(Steps())
    assert 100_000 == target.taken(100_000, 7)
    target.create("r.part").resize(100_000)
    again = disk.target(Steps())
    assert (0, END - 100_000) == (again.taken(100_000, 7), again.free())
    assert 50 == again.taken(100_050, 7)


def test_a_device_that_is_too_small_has_no_room() -> None:
    disk = BlockDisk(grows=False)
    del content_of(disk)[1000:]
    content_of(disk)[0] = 1
    target = disk.target(Steps())
    assert (0, 5000) == (target.free(), target.taken(5000, 7))
    with pytest.raises(OSError, match="No space left"):
        target.create("r.part").resize(5000)


def test_an_empty_file_has_a_place_of_its_own() -> None:
    """A kill can leave one: what is written into the next file must not lie where it is filled later."""
    target = made(BlockDisk(grows=False))
    first, second = target.create("r.READ-ME-FIRST"), target.create("r.journal")
    second.write(0, b"journal")
    first.write(0, b"text")
    assert (b"text", b"journal") == (first.read(0, 4), second.read(0, 7))


def filled(disk: BlockDisk, name: str, length: int) -> None:
    """A file beside the copy that a run has left, of that length."""
    file = disk.target(Steps()).create(name)
    file.resize(length)
    file.sync()


def check_room(disk: BlockDisk, size: int) -> BlockTarget:
    """What is free for a copy of *size* bytes can be written beside it, up to where the next 64 KiB begin."""
    target = disk.target(Steps())
    target.plan(size, "r.part")
    free = (target.free() or 0) - target.taken(size, 0)
    file = target.open("r.part", writable=True) if target.exists("r.part") else target.create("r.part")
    file.resize(free - 65536)
    assert free > 100_000
    return target


@pytest.mark.parametrize("size", [2, 10, 65_537])
@pytest.mark.parametrize("planned", [2, 65_537, 150_000])
def test_a_change_that_was_interrupted_takes_no_room_from_the_next(planned: int, size: int) -> None:
    """Whatever the length of the image was then; what still lies where it belongs is kept."""
    disk = BlockDisk(grows=False)
    target = made(disk)
    target.plan(planned, "r.part")
    target.create("r.part").write(0, b"sent")
    found = check_room(disk, size).open("r.part", writable=False)
    assert (found.read(0, 4) == b"sent") == (-(-planned // 65536) == -(-size // 65536))


def test_a_text_beside_it_makes_room_for_the_next_change() -> None:
    """Also where its length was noted ahead; only what a text can have is read."""
    disk = BlockDisk(grows=False)
    directory(disk, {"r": [0, 2]}, {"r.READ-ME-FIRST": [65536, END - 65536]})
    content_of(disk)[65536:65540] = b"text"
    found = check_room(disk, 2).open("r.READ-ME-FIRST", writable=False)
    assert (b"text", 65536) == (found.read(0, 4), found.size)
    assert b"text" == disk.target(Steps()).open("r.READ-ME-FIRST", writable=False).read(0, 4)


def test_where_a_text_cannot_move_there_is_no_room() -> None:
    disk = BlockDisk(grows=False)
    made(disk).create("r.READ-ME-FIRST").write(0, b"text")
    target = disk.target(Steps())
    target.plan(END - 1, "r.part")
    assert (target.free() or 0) < target.taken(END - 1, 7)
    assert b"text" == target.open("r.READ-ME-FIRST", writable=False).read(0, 4)


def test_a_second_file_lies_behind_the_first_one_whatever_the_copy_becomes() -> None:
    """The copy grows up to its journal when that is carried over, also in a run that knows nothing of a plan."""
    disk = BlockDisk(grows=False)
    target = made(disk)
    target.plan(70_000, "r.part")
    filled(disk, "r.journal", 10)
    disk.target(Steps()).create("r.READ-ME-FIRST").write(0, b"text")
    target = disk.target(Steps())
    target.open("r", writable=True).resize(65_536)
    assert b"text" == target.open("r.READ-ME-FIRST", writable=False).read(0, 4)


def test_an_annex_that_is_too_small_for_the_next_change_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = BlockDisk(grows=True)
    monkeypatch.setattr(block_target, "_annex_length", lambda *sizes: 4 * max(sizes) + LENGTH)
    target = made(disk)
    target.create("r.part").write(0, b"sent")
    for size in (LENGTH // 8, LENGTH):
        target = disk.target(Steps())
        target.plan(size, "r.part")
        assert target.exists("r.part") == (size < LENGTH)
    target.create("r.part").resize(LENGTH)


def test_a_device_that_is_full_is_not_damaged_by_one_more_file() -> None:
    disk = BlockDisk(grows=False)
    target = made(disk)
    target.plan(END + 1, "r.part")
    with pytest.raises(OSError, match="No space left"):
        target.create("r.journal")
    assert disk.target(Steps()).exists("r")


def test_a_device_that_grows_takes_room_for_what_is_new() -> None:
    assert 7 == BlockDisk(grows=True).target(Steps()).taken(100_000, 7)

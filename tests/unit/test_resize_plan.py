"""The plan of a change of size: pure, from measured sizes to steps; and what a size on the command line means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lukshook import size
from lukshook.errors import Refused, Unavailable, Usage
from lukshook.resize.intent import Intent, intend
from lukshook.resize.plan import (
    Means,
    Measured,
    Need,
    Step,
    check_leap,
    check_minimum,
    exact,
    plan,
    table,
    wanted,
)
from lukshook.store.room import Room
from lukshook.system.command import Command, change

MIB = 1 << 20
GIB = 1 << 30
OFFSET = 16 * MIB
STORE = Room(length=10 * GIB, allocated=10 * GIB, free=90 * GIB, total=100 * GIB)


def said(tool: str) -> Means:
    """Means whose commands name the part and the size, for comparing; *tool* is "open" or "closed"."""

    def part(name: str) -> Callable[[int], tuple[Command, ...]]:
        return lambda length: (change(name, str(length)),)

    return Means(
        online=tool == "open",
        file=part("file"),
        loop=part("loop"),
        mapping=part("mapping"),
        filesystem=part("filesystem"),
        opening=(change("open"),),
        check=(change("check"),),
        closing=(change("close"),),
    )


def names(steps: tuple[Step, ...]) -> list[str]:
    return [step.what for step in steps]


def opened(length: int) -> Measured:
    """An open volume of that length, whole."""
    inside = length - OFFSET
    return Measured(length, OFFSET, 4096, loop=length, mapping=inside, filesystem=inside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("750GiB", 750 * GIB),
        (" 750GiB ", 750 * GIB),
        ("1.5TiB", 3 * 512 * GIB),
        ("1048.576MB", 1000 * MIB),
        ("1048576B", MIB),
        ("+100GiB", 110 * GIB),
        ("+1MiB", 10 * GIB + MIB),
        ("-9GiB", GIB),
        ("max", 99 * GIB),
        ("1024PiB", 2**60),
    ],
)
def test_a_size_is_absolute_relative_or_max(text: str, expected: int) -> None:
    """What each form comes to for an image of 10 GiB on a store with 90 of 100 GiB free."""
    assert expected == wanted(text, 10 * GIB, STORE)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("500G", '"500G" has no unit lukshook knows', "write 500GiB (powers of 1024) or 500GB (powers of 1000)"),
        ("500", '"500" has no unit lukshook knows', "write 500GiB (powers of 1024) or 500GB (powers of 1000)"),
        ("500gib", '"500gib" has no unit lukshook knows', "write 500GiB (powers of 1024) or 500GB (powers of 1000)"),
        ("7m", '"7m" has no unit lukshook knows', "write 7MiB (powers of 1024) or 7MB (powers of 1000)"),
        ("1e3", '"1e3" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("1e3GiB", '"1e3GiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("0x10MiB", '"0x10MiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("1_000MiB", '"1_000MiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("1,5GiB", '"1,5GiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("", '"" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("MAX", '"MAX" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("+", '"" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("--5GiB", '"-5GiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("+max", '"max" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("٣GiB", '"٣GiB" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("0GiB", '"0GiB" is 0 bytes, not a multiple of 1 MiB', "use at least 1MiB"),
        ("+0MiB", '"0MiB" is 0 bytes, not a multiple of 1 MiB', "use at least 1MiB"),
        ("512KiB", '"512KiB" is 524288 bytes, not a multiple of 1 MiB', "use at least 1MiB"),
        ("20MB", '"20MB" is 20000000 bytes, not a multiple of 1 MiB', "use 19MiB or 20MiB"),
        ("0.3B", '"0.3B" is not a whole number of bytes', "use a smaller unit"),
        ("1025PiB", '"1025PiB" is more than 1 EiB', "ext4 ends there"),
        ("9999999999999999999PiB", '"9999999999999999999PiB" is more than 1 EiB', "ext4 ends there"),
        ("99999999999999999999B", '"99999999999999999999B" is not a size', 'write it like "500GiB" or "1.5TiB"'),
        ("-10GiB", '"-10GiB" leaves nothing of 10GiB', "lukshook resize NAME 10GiB sets a size"),
        ("-1TiB", '"-1TiB" leaves nothing of 10GiB', "lukshook resize NAME 10GiB sets a size"),
    ],
)
def test_a_bad_size_is_refused_with_what_would_do(text: str, message: str, hint: str) -> None:
    """The whole message and hint of each."""
    with pytest.raises(Usage) as caught:
        wanted(text, 10 * GIB, STORE)
    assert (message, hint) == (caught.value.message, caught.value.hint)


def test_a_relative_size_of_an_image_of_odd_length_comes_out_aligned_and_never_beyond_what_was_asked() -> None:
    """An image made by hand may have any length."""
    odd = 10 * GIB + 12345
    assert 11 * GIB == wanted("+1GiB", odd, STORE)
    assert 9 * GIB + MIB == wanted("-1GiB", odd, STORE)


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (STORE, 99 * GIB),
        (evolve(STORE, allocated=GIB), 90 * GIB),
        (evolve(STORE, total=GIB), 100 * GIB - 16 * MIB),
        (evolve(STORE, free=None, total=None), 10 * GIB),
    ],
    ids=["reserved", "sparse", "small store", "device"],
)
def test_max_leaves_a_reserve_on_the_store(store: Room, expected: int) -> None:
    """One part in a hundred of the store, at least 16 MiB; holes of the image count as not there yet."""
    assert expected == wanted("max", store.length, store)


def test_max_never_shrinks() -> None:
    """A sparse image larger than its store, or a store that is full, is refused."""
    with pytest.raises(Unavailable):
        wanted("max", 10 * GIB, evolve(STORE, free=MIB))


def test_a_tiny_ext4_does_not_get_very_large_at_once() -> None:
    """resize2fs breaks off then and leaves errors; the hint has a size on the way that is no leap."""
    tiny = evolve(STORE, length=64 * MIB)
    with pytest.raises(Usage, match="an image cannot grow from 64MiB to 70GiB in one step") as refused:
        check_leap(70 * GIB, tiny, "ext4")
    assert "first 32GiB" in refused.value.hint
    check_leap(32 * GIB, tiny, "ext4")
    check_leap(70 * GIB, evolve(tiny, length=32 * GIB), "ext4")
    check_leap(70 * GIB, tiny, "xfs")
    check_leap(70 * GIB, evolve(tiny, free=None, total=None), "ext4")


def test_an_open_volume_grows_from_the_bottom_up() -> None:
    """Each step says how large what is below has to be first."""
    steps = plan(opened(GIB), 2 * GIB, said("open"))
    assert ["file", "loop", "mapping", "filesystem"] == names(steps)
    assert [2 * GIB, 2 * GIB, 2 * GIB - OFFSET, 2 * GIB - OFFSET] == [step.after for step in steps]
    assert [
        Need("file", 0, 2 * GIB),
        Need("file", 2 * GIB),
        Need("loop", 2 * GIB),
        Need("mapping", 2 * GIB - OFFSET),
    ] == [step.need for step in steps]


def test_what_is_done_already_is_left_away() -> None:
    """From whatever state an interruption left."""
    now = opened(GIB)
    left = []
    for what, length in (("file", 2 * GIB), ("loop", 2 * GIB), ("mapping", 2 * GIB - OFFSET)):
        now = evolve(now, **{what: length})
        left.append(names(plan(now, 2 * GIB, said("open"))))
    assert [["loop", "mapping", "filesystem"], ["mapping", "filesystem"], ["filesystem"]] == left
    assert () == plan(opened(2 * GIB), 2 * GIB, said("open"))


def test_a_mapping_on_a_device_of_its_own_has_no_loop_step() -> None:
    """A block device is what the mapping stands on."""
    steps = plan(evolve(opened(GIB), file=2 * GIB, loop=None), 2 * GIB, said("open"))
    assert ["mapping", "filesystem"] == names(steps)
    assert Need("file", 2 * GIB) == steps[0].need


def test_a_closed_volume_grows_file_first_and_is_checked_before_its_file_system() -> None:
    """How large the file system is cannot be seen from outside, so it is always opened."""
    closed = Measured(GIB, OFFSET, 4096)
    assert ["file", "open", "check", "filesystem", "close"] == names(plan(closed, 2 * GIB, said("closed")))
    again = evolve(closed, file=2 * GIB)
    assert ["open", "check", "filesystem", "close"] == names(plan(again, 2 * GIB, said("closed")))


def test_a_closed_volume_shrinks_file_system_first_and_file_last() -> None:
    """The file is only cut where the file system has been seen to end before."""
    now = evolve(opened(2 * GIB), loop=None, mapping=None)
    steps = plan(now, GIB, said("closed"))
    assert ["open", "check", "filesystem", "close", "file"] == names(steps)
    assert Need("filesystem", 1, GIB - OFFSET) == steps[-1].need
    assert not steps[-1].need.met(now)
    assert ["file"] == names(plan(evolve(now, filesystem=GIB - OFFSET), GIB, said("closed")))


def test_an_open_volume_is_never_shrunk() -> None:
    """Neither file nor file system."""
    with pytest.raises(Refused):
        plan(opened(2 * GIB), GIB, said("open"))


def test_the_file_system_never_gets_larger_than_whole_sectors_and_blocks() -> None:
    """An image of odd length has a rest that is not used."""
    odd = Measured(GIB + 12345, OFFSET, 4096, block=4096)
    assert GIB - OFFSET + 8192 + 4096 == odd.room(odd.file)
    assert GIB - OFFSET + 12288 == evolve(odd, sector=512, block=1024).room(odd.file)
    assert 0 == odd.room(MIB)


def perform(measured: Measured, step: Step) -> Measured:
    """The world after a step."""
    return evolve(measured, **{step.what: step.after}) if step.after is not None else measured


lengths = st.integers(40, 10**6).map(lambda mib: mib * MIB)


@given(lengths, lengths, st.integers(0, 5), st.sampled_from([512, 4096]), st.booleans())
def test_whatever_interrupts_it_planning_again_comes_to_the_same_end(
    start: int, target: int, stop: int, sector: int, online: bool
) -> None:
    """After any prefix of the steps a new plan is the rest of it; needs hold; nothing is larger than what holds it."""
    online = online and target >= start
    now = evolve(opened(start), sector=sector)
    if not online:
        now = evolve(now, loop=None, mapping=max(start, target))
    means = said("open" if online else "closed")
    steps = plan(now, target, means)
    for step in steps[:stop]:
        assert step.need is None or step.need.met(now)
        now = perform(now, step)
        assert step.done(now)
        assert (now.filesystem or 0) <= now.file - OFFSET
    rest = [step for step in steps[stop:] if step.after is not None]
    assert names(tuple(rest)) == [step.what for step in plan(now, target, means) if step.after is not None]
    for step in rest:
        now = perform(now, step)
    assert (target, target - OFFSET) == (now.file, now.filesystem)
    assert () == plan(now, target, means)


def test_a_step_is_not_done_because_a_tool_said_so() -> None:
    """resize2fs exits with 0 and "Nothing to do!" where the device has not grown."""
    step = plan(opened(GIB), 2 * GIB, said("open"))[-1]
    assert not step.done(opened(GIB))
    assert step.done(opened(2 * GIB))
    assert step.done(evolve(opened(2 * GIB), filesystem=2 * GIB - OFFSET - 4 * MIB))
    assert not step.done(evolve(opened(2 * GIB), filesystem=None))


@pytest.mark.parametrize(
    ("minimum", "smallest"),
    [(100 * MIB, "132MiB"), (2 * GIB, None), (None, "48MiB"), (0, "48MiB"), (100 * MIB + 1, "133MiB")],
)
def test_too_small_is_refused_with_the_smallest_size_that_would_do(minimum: int | None, smallest: str | None) -> None:
    """With slack on what the file system says, and never below the least of its kind; that size itself is taken."""
    now = opened(4 * GIB)
    with pytest.raises(Refused) as caught:
        check_minimum(now, 32 * MIB, minimum, 32 * MIB)
    shown = caught.value.hint.removeprefix("the smallest possible size is ").split(";")[0]
    check_minimum(now, size.parse_aligned(shown), minimum, 32 * MIB)
    if smallest is not None:
        assert smallest == shown


@given(st.integers(1, 2**40))
def test_a_size_that_is_shown_can_be_typed(mib: int) -> None:
    """What a hint says is taken as it stands."""
    assert mib * MIB == size.parse_aligned(exact(mib * MIB))


def test_the_table_shows_what_was_measured_and_what_comes_of_it() -> None:
    """One line for each part there is."""
    closed = Measured(GIB, OFFSET, 4096)
    lines = table(closed, plan(closed, 2 * GIB, said("closed"))).splitlines()
    assert [["before", "after"], ["file", "1GiB", "2GiB"], ["filesystem", "closed", "2032MiB"]] == [
        line.split() for line in lines
    ]


@pytest.mark.parametrize(("length", "target"), [(10, 12), (11, 12), (12, 12), (9, 11), (20, 22)])
def test_a_relative_size_counts_from_where_it_was_begun(length: int, target: int) -> None:
    """While the image is on that way; one that got another size since counts from there."""
    begun = Intent("+2GiB", 10 * GIB, 12 * GIB)

    assert target * GIB == intend("+2GiB", evolve(STORE, length=length * GIB), begun).target

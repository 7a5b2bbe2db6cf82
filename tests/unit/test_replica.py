"""A replica is one whole state of the image, whenever the run that changes it ends."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from lukshook.errors import Exists, NotSafe, Refused
from lukshook.replica import notice
from lukshook.replica.journal import Change
from lukshook.replica.local import LocalTarget
from lukshook.replica.place import Place
from lukshook.replica.replica import Replica
from lukshook.store import block_target
from lukshook.system.signals import Interrupted
from support.faulty_blocks import LENGTH, BlockDisk
from support.faulty_target import Cut, Disk, FaultyFile, FaultyTarget, Node, Steps, held_in
from support.noted_signals import noted_signals

PIECE = 64
_SECRET = b"s" * 32


def digest_of(content: bytes) -> bytes:
    if not any(content):
        return bytes(16)
    return hashlib.blake2b(content, digest_size=16, key=_SECRET).digest()


def image(seed: int, pieces: int, *, holes: int = 3, end: int = 17) -> bytes:
    """An image with a short last piece, some of whose pieces are zeros."""
    chance = random.Random(seed)
    content = [bytes(PIECE) if chance.randrange(holes) == 0 else chance.randbytes(PIECE) for _ in range(pieces)]
    return b"".join(content) + chance.randbytes(end)


def changed(old: bytes, seed: int, size: int) -> bytes:
    """*old* with other pieces here and there, some of them zeros now, cut or extended to *size* bytes."""
    chance = random.Random(seed)
    new = bytearray(old[:size].ljust(size, b"\0"))
    for begin in range(0, size, PIECE):
        length = min(PIECE, size - begin)
        if chance.random() < 0.5:
            new[begin : begin + length] = bytes(length) if chance.random() < 0.3 else chance.randbytes(length)
    return bytes(new)


OLD = image(1, 12)
SIZES = {"same": len(OLD), "longer": len(OLD) + 3 * PIECE + 5, "shorter": len(OLD) - 2 * PIECE - 9}
NEWS = {name: changed(OLD, 8, size) for name, size in SIZES.items()}


def pieces(content: bytes) -> list[bytes]:
    return [content[begin : begin + PIECE] for begin in range(0, len(content), PIECE)]


def changes(replica: Replica, content: bytes) -> Iterator[Change]:
    column = replica.place.held.digests()
    try:
        for number, piece in enumerate(pieces(content)):
            if column.get(number, 1) != digest_of(piece):
                yield Change(number, digest_of(piece), lambda piece=piece: piece)  # type: ignore[misc]
    finally:
        column.close()


def copy(replica: Replica, content: bytes, generation: int = 7) -> int:
    """What the command does."""
    replica.recover()
    replica.plan(len(content))
    send = replica.update if replica.place.held.started else replica.first
    return send(changes(replica, content), len(content), generation)


@frozen
class Bench:
    """A target on a disk, and what is known of it in a folder."""

    disk: Disk | BlockDisk
    state: Path

    def replica(self, steps: Steps | None = None) -> Replica:
        """As the next process has it."""
        steps = steps or Steps()
        return Replica(Place(self.disk.target(steps), held_in(self.state, steps), digest_of, PIECE))

    def again(self, folder: Path) -> Bench:
        """The same once more, to be changed on its own."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.state, folder)
        return Bench(self.disk.copy(), folder)

    @property
    def content(self) -> bytes | None:
        return self.disk.content("r")

    @property
    def is_marked(self) -> bool:
        """Whether a file beside it says that it is mixed."""
        return "r.READ-ME-FIRST" in self.disk.names

    def check_whole(self, old: bytes | None, new: bytes) -> None:
        """It is one of these, unless it says that it is not; where nobody sees that, it has no header besides."""
        assert self.is_marked or self.content in (old, new)
        if isinstance(self.disk, BlockDisk) and self.content is not None and old is not None:
            header, rest = self.content[:PIECE], self.content[PIECE:]
            assert not any(header) or rest in (old[PIECE:], new[PIECE:])


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is in a folder of this machine, whose power is not cut here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


DISKS: dict[str, Callable[[], Disk | BlockDisk]] = {
    "plain": Disk,
    "clones": lambda: Disk(clones=True),
    "copies": lambda: Disk(copies=True),
    "one device": lambda: BlockDisk(grows=False),
    "two devices": lambda: BlockDisk(grows=True),
}


@pytest.fixture(params=list(DISKS.values()), ids=list(DISKS))
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Disk | BlockDisk:
    """An empty one of each kind."""
    monkeypatch.setattr(block_target, "_annex_length", lambda *sizes: LENGTH)
    monkeypatch.setattr(block_target, "_ALIGNED", PIECE)
    made: Disk | BlockDisk = request.param()
    return made


@pytest.fixture
def start(disk: Disk | BlockDisk, tmp_path: Path) -> Bench:
    """A target that holds `OLD`."""
    state = tmp_path / "start"
    state.mkdir(mode=0o700)
    bench = Bench(disk, state)
    copy(bench.replica(), OLD)
    assert OLD == bench.content
    return bench


@pytest.mark.parametrize("new", NEWS.values(), ids=NEWS)
def test_a_change_is_sent_and_nothing_is_left(start: Bench, new: bytes) -> None:
    start.disk.sent = 0
    sent = copy(start.replica(), new, 8)
    assert new == start.content
    assert ["r"] == list(start.disk.names)
    assert 0 < sent <= start.disk.sent
    assert (8, len(new), "") == (
        (found := start.replica().place.held.holding).generation,
        found.size,
        found.step,
    )
    assert 0 == copy(start.replica(), new, 9)
    assert [] == list(start.replica().wrong_pieces())


def test_where_the_far_side_copies_nothing_is_sent_twice(tmp_path: Path) -> None:
    sent = {}
    for copies in (False, True):
        state = tmp_path / str(copies)
        state.mkdir(mode=0o700)
        bench = Bench(Disk(copies=copies), state)
        copy(bench.replica(), OLD)
        bench.disk.sent = 0
        copy(bench.replica(), NEWS["same"])
        sent[copies] = bench.disk.sent
    assert sent[True] == sent[False] - sum(
        len(new) for old, new in zip(*map(pieces, (OLD, NEWS["same"])), strict=True) if old != new and any(new)
    )


def steps_of(bench: Bench, folder: Path, new: bytes) -> int:
    """How many steps a copy of *new* takes."""
    steps = Steps()
    copy(bench.again(folder).replica(steps), new)
    return steps.done


def run_cut(bench: Bench, new: bytes, at: int) -> bool:
    """Copy, and be gone at step *at*; whether it came to that."""
    try:
        copy(bench.replica(Steps(at)), new)
    except Cut:
        return True
    return False


@pytest.mark.parametrize("new", NEWS.values(), ids=NEWS)
def test_killed_at_each_step_and_again_in_the_recovery(
    start: Bench, new: bytes, tmp_path: Path, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    states = {"old": 0, "new": 0, "marked": 0}
    for at in range(steps_of(start, tmp_path / "count", new)):
        first = start.again(tmp_path / "first")
        assert run_cut(first, new, at)
        first.check_whole(OLD, new)
        states["marked" if first.is_marked else "old" if first.content == OLD else "new"] += 1
        for _ in range(rounds(1, 20)):
            bench = first.again(tmp_path / "second")
            run_cut(bench, new, chance.randrange(40))
            bench.check_whole(OLD, new)
            copy(bench.replica(), new)
            assert new == bench.content
            assert ["r"] == list(bench.disk.names)
    assert states["old"] > 0
    assert states["new"] > 0
    assert (states["marked"] > 0) != start.disk.clones


@pytest.mark.parametrize("new", NEWS.values(), ids=NEWS)
def test_power_cut_at_each_step_and_again_in_the_recovery(
    start: Bench, new: bytes, tmp_path: Path, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    for at in range(steps_of(start, tmp_path / "count", new)):
        for _ in range(rounds(2, 20)):
            bench = start.again(tmp_path / "cut")
            assert run_cut(bench, new, at)
            bench.disk.power_cut(chance)
            bench.check_whole(OLD, new)
            run_cut(bench, new, chance.randrange(30))
            bench.disk.power_cut(chance)
            bench.check_whole(OLD, new)
            bench.replica().recover()
            assert bench.content in (OLD, new)
            copy(bench.replica(), new)
            assert new == bench.content


@pytest.mark.parametrize("remain", [(), (0,), (67, 68, 69, 70), (93,), (94,), (99,), tuple(range(100))])
def test_an_annex_that_is_half_removed_is_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remain: tuple[int, ...]
) -> None:
    """Whatever parts of it remain."""
    monkeypatch.setattr(block_target, "_annex_length", lambda *sizes: LENGTH)
    state = tmp_path / "start"
    state.mkdir(mode=0o700)
    disk = BlockDisk(grows=True)
    disk.remain = remain
    start = Bench(disk, state)
    copy(start.replica(), OLD)
    for at in range(steps_of(start, tmp_path / "count", NEWS["same"])):
        bench = start.again(tmp_path / "cut")
        assert run_cut(bench, NEWS["same"], at)
        bench.replica().recover()
        assert bench.content in (OLD, NEWS["same"])
        copy(bench.replica(), NEWS["same"])
        assert NEWS["same"] == bench.content
        assert ["r"] == list(bench.disk.names)


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_on_a_device_a_mix_has_no_header(
    grows: bool, size: int, tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that does not change: it is away while the copy is mixed, and the next copy brings it back."""
    monkeypatch.setattr(block_target, "_annex_length", lambda *sizes: LENGTH)
    monkeypatch.setattr(block_target, "_ALIGNED", PIECE)
    (state := tmp_path / "start").mkdir(mode=0o700)
    start, header = Bench(BlockDisk(grows=grows), state), b"H" * PIECE
    old, new = header + OLD[PIECE:], header + changed(OLD, 8, size)[PIECE:]
    copy(start.replica(), old)
    mixed = 0
    for at in range(steps_of(start, tmp_path / "count", new)):
        for cut in (False, True):
            bench = start.again(tmp_path / "killed")
            assert run_cut(bench, new, at)
            if cut:
                bench.disk.power_cut(chance)
            bench.check_whole(old, new)
            mixed += bench.content not in (old, new)
            copy(bench.replica(), new)
            assert new == bench.content
            assert [] == list(bench.replica().wrong_pieces())
    assert mixed > 0


def test_an_image_that_grows_after_a_kill_is_copied(start: Bench, tmp_path: Path) -> None:
    """Where everything lies on one device, it grows into the place of what was left."""
    for at in range(steps_of(start, tmp_path / "count", NEWS["same"])):
        bench = start.again(tmp_path / "killed")
        assert run_cut(bench, NEWS["same"], at)
        copy(bench.replica(), NEWS["longer"])
        assert NEWS["longer"] == bench.content
        assert ["r"] == list(bench.disk.names)


def test_a_first_copy_that_is_killed_continues(disk: Disk | BlockDisk, tmp_path: Path, chance: random.Random) -> None:
    """What it has until then has no header."""
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    start, whole = Bench(disk, empty), b"H" * PIECE + OLD[PIECE:]
    for at in range(steps_of(start, tmp_path / "count", whole)):
        for cut in (False, True, True):
            bench = start.again(tmp_path / "first")
            assert run_cut(bench, whole, at)
            if cut:
                bench.disk.power_cut(chance)
            assert bench.content in (None, whole)
            part = bench.disk.content("r.part")
            assert not part or not any(part[:PIECE]) or part[PIECE:] == whole[PIECE:]
            now = chance.choice((whole, *NEWS.values()))  # there was a backup meanwhile
            copy(bench.replica(), now)
            assert now == bench.content
            assert ["r"] == list(bench.disk.names)
            assert [] == list(bench.replica().wrong_pieces())


def test_a_killed_change_is_not_sent_again(start: Bench, tmp_path: Path) -> None:
    """Only what was half written, and what was not."""
    start.disk.sent = 0
    whole = copy(start.again(tmp_path / "whole").replica(), NEWS["same"])
    bench = start.again(tmp_path / "killed")
    last = 0
    for at in range(40):  # to the last step before the journal is decided on
        bench = start.again(tmp_path / "killed")
        run_cut(bench, NEWS["same"], at)
        if "r.journal" in bench.disk.names:
            break
        last = at
    bench = start.again(tmp_path / "killed")
    run_cut(bench, NEWS["same"], last)
    assert copy(bench.replica(), NEWS["same"]) < whole / 3
    assert NEWS["same"] == bench.content


def test_an_unsynced_store_is_noticed(tmp_path: Path, chance: random.Random, rounds: Callable[[int, int], int]) -> None:
    """A store that ignores fsync can lose anything; then the replica is refused, or verifying finds what is wrong."""
    silent = 0
    noticed = {"refused": 0, "found": 0, "whole": 0}
    for round_ in range(rounds(100, 2000)):
        state = tmp_path / str(round_)
        state.mkdir(mode=0o700)
        bench = Bench(Disk(), state)
        copy(bench.replica(), OLD)
        bench.disk.honest = False
        run_cut(bench, NEWS["same"], chance.randrange(60))
        bench.disk.power_cut(chance)
        try:
            copy(bench.replica(), NEWS["same"])
        except (Refused, NotSafe, FileNotFoundError):
            noticed["refused"] += 1
            continue
        whole = bench.content == NEWS["same"]
        found = bool(list(bench.replica().wrong_pieces()))
        silent += whole == found
        noticed["whole" if whole else "found"] += 1
    assert 0 == silent
    assert noticed["refused"] > 0


class Told(Steps):
    """A signal comes at step *tell*."""

    def __init__(self, tell: int) -> None:
        super().__init__()
        self.tell = tell

    def take(self) -> bool:
        if self.done == self.tell:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().take()


def told_at_each_step(start: Bench, folder: Path, work: Callable[[Replica], object]) -> list[bool]:
    """*work* is told to stop at each of its steps, and before the first; whether it did."""
    steps = Steps()
    work(start.again(folder / "count").replica(steps))
    stopped = []
    for at in range(-1, steps.done):
        bench = start.again(folder / "told")
        with noted_signals():
            if at < 0:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                work(bench.replica(Told(at)))
            except Interrupted:
                stopped.append(True)
            else:
                stopped.append(False)
        copy(bench.replica(), NEWS["same"])
        assert NEWS["same"] == bench.content
    return stopped


def test_a_copy_that_is_told_to_stop_does_before_the_next_piece(start: Bench, tmp_path: Path) -> None:
    """At each step but those at its end; the next run continues."""
    stopped = told_at_each_step(start, tmp_path, lambda replica: copy(replica, NEWS["same"]))
    assert stopped[0]
    first = stopped.index(False)
    assert first > len(stopped) / 2
    assert not any(stopped[first:])


def test_finishing_a_change_can_be_interrupted(mixed: Bench, tmp_path: Path) -> None:
    stopped = told_at_each_step(mixed, tmp_path, Replica.recover)
    assert stopped[0]
    assert stopped.index(False) > len(stopped) / 2


def test_a_first_copy_can_be_interrupted_also_while_it_is_read_back(disk: Disk | BlockDisk, tmp_path: Path) -> None:
    state = tmp_path / "first"
    state.mkdir(mode=0o700)
    stopped = told_at_each_step(Bench(disk, state), tmp_path, lambda replica: copy(replica, OLD))
    assert stopped[0]
    assert stopped.index(False) > len(stopped) / 2


def test_looking_at_a_copy_can_be_interrupted(start: Bench) -> None:
    """Before the next piece."""
    for look in (lambda: list(start.replica().wrong_pieces()), lambda: start.replica().adopt(len(OLD))):
        with noted_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted):
                look()


def killed_while_applying(start: Bench, tmp_path: Path) -> Bench:
    """A target that is mixed."""
    for at in range(100):
        bench = start.again(tmp_path / "mixed")
        assert run_cut(bench, NEWS["longer"], at)
        if bench.content not in (OLD, NEWS["longer"]):
            return bench
    raise AssertionError("it is never mixed")


@pytest.fixture
def mixed(tmp_path: Path) -> Bench:
    """A target that is mixed, with a journal beside it."""
    state = tmp_path / "mixed-start"
    state.mkdir(mode=0o700)
    bench = Bench(Disk(), state)
    copy(bench.replica(), OLD)
    return killed_while_applying(bench, tmp_path)


def test_a_damaged_journal_is_refused_and_kept(mixed: Bench) -> None:
    journal = mixed.disk.names["r.journal"].live
    for place in range(0, len(journal), 3):
        journal[place] ^= 1
        before = bytes(journal), mixed.content
        with pytest.raises(Refused, match="is damaged"):
            mixed.replica().recover()
        assert before == (mixed.disk.content("r.journal"), mixed.content)
        journal[place] ^= 1
    copy(mixed.replica(), NEWS["longer"])
    assert NEWS["longer"] == mixed.content


def test_a_short_journal_is_refused(mixed: Bench) -> None:
    journal = mixed.disk.names["r.journal"].live
    whole = bytes(journal)
    for size in range(0, len(whole), 13):
        journal[:] = whole[:size]
        with pytest.raises(Refused, match="is damaged"):
            mixed.replica().recover()
    journal[:] = whole + b"\0"
    with pytest.raises(Refused, match="is damaged"):
        mixed.replica().recover()


class Endless(FaultyFile):
    """A journal whose head says *head*, and that has one piece of zeros after the other; *length*: what it says."""

    head, length, most = b"", 1 << 62, 3000

    @property
    def size(self) -> int:
        return self.length

    def read(self, offset: int, length: int) -> bytes:
        if offset < len(self.head):
            return self.head[offset : offset + length]
        number = (offset - len(self.head)) // 28
        assert number < self.most
        return (struct.pack("<QI16s", number, 0, bytes(16)) * 2)[:length]


@pytest.mark.parametrize("piece", [1, PIECE])
@pytest.mark.parametrize("is_told", [True, False])
def test_an_endless_journal_is_refused_at_once(
    mixed: Bench, piece: int, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Only its end could prove that it is ours; the server may also say that it is as long as ours."""
    ours = mixed.disk.content("r.journal")
    assert ours is not None
    head = ours[:20] + struct.pack("<I", piece) + ours[24:64] + struct.pack("<Q", 1 << 62)
    monkeypatch.setattr(Endless, "head", head)
    monkeypatch.setattr(Endless, "length", len(ours) if is_told else 1 << 62)
    monkeypatch.setattr(FaultyTarget, "open", lambda self, name, writable: Endless(self.disk, Node(), self.steps))
    with pytest.raises(Refused, match="is damaged"):
        mixed.replica().recover()


def test_a_removed_journal_is_noticed(mixed: Bench) -> None:
    del mixed.disk.names["r.journal"]
    with pytest.raises(Refused, match="mixed"):
        mixed.replica().recover()
    mixed.replica().adopt(len(NEWS["longer"]))
    copy(mixed.replica(), NEWS["longer"])
    assert NEWS["longer"] == mixed.content


def test_an_older_journal_is_refused(mixed: Bench) -> None:
    """The store has kept it, with its digest in order."""
    old = bytes(mixed.disk.names["r.journal"].live)
    copy(mixed.replica(), NEWS["longer"])
    copy(mixed.replica(), NEWS["shorter"])
    node = mixed.replica().place.target.create("r.journal")
    node.write(0, old)
    with pytest.raises(Refused, match="not the change that was decided on last"):
        copy(mixed.replica(), NEWS["shorter"])
    assert NEWS["shorter"] == mixed.content


def test_the_last_journal_may_come_back(mixed: Bench) -> None:
    """A store that has not kept its removal: to carry it over once more changes nothing."""
    old = bytes(mixed.disk.names["r.journal"].live)
    copy(mixed.replica(), NEWS["longer"])
    mixed.replica().place.target.create("r.journal").write(0, old)
    copy(mixed.replica(), NEWS["longer"])
    assert NEWS["longer"] == mixed.content
    assert ["r"] == list(mixed.disk.names)


def test_a_replica_put_back_is_noticed(start: Bench) -> None:
    copy(start.replica(), NEWS["same"])
    start.disk.names["r"].live[:] = OLD
    next_one = changed(NEWS["same"], 8, len(OLD))  # of the pieces that differ, it changes one more time
    with pytest.raises(Refused, match="is not as the last copy left it"):
        copy(start.replica(), bytes(len(OLD)))
    assert OLD == start.content
    assert [] != list(start.replica().wrong_pieces())
    start.replica().adopt(len(next_one))
    copy(start.replica(), next_one)
    assert next_one == start.content


def test_taking_over_that_is_killed_is_begun_again(mixed: Bench, tmp_path: Path) -> None:
    """At each step, in a replica that is mixed."""
    steps = Steps()
    mixed.again(tmp_path / "count").replica(steps).adopt(len(NEWS["same"]))
    for at in range(steps.done):
        bench = mixed.again(tmp_path / "adopted")
        with pytest.raises(Cut):
            bench.replica(Steps(at)).adopt(len(NEWS["same"]))
        if at > 0:
            with pytest.raises(Refused, match="was not read to its end"):
                copy(bench.replica(), NEWS["same"])
        bench.replica().adopt(len(NEWS["same"]))
        assert bench.is_marked
        copy(bench.replica(), NEWS["same"])
        assert NEWS["same"] == bench.content
        assert ["r"] == list(bench.disk.names)


def test_what_was_taken_over_is_mixed_until_a_change_is_applied(
    mixed: Bench, tmp_path: Path, chance: random.Random
) -> None:
    """Also where the name of the next journal does not outlive a power cut: that is no old state to go back to."""
    old, new = mixed.content, NEWS["longer"]
    mixed.replica().adopt(len(new))
    for at in range(steps_of(mixed, tmp_path / "count", new)):
        for cut in (False, True):
            bench = mixed.again(tmp_path / "killed")
            assert run_cut(bench, new, at)
            if cut:
                bench.disk.power_cut(chance)
            bench.replica().recover()
            assert bench.is_marked or new == bench.content
            copy(bench.replica(), new)
            assert new == bench.content
            assert ["r"] == list(bench.disk.names)
    assert old == mixed.content


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A copy on one device, with room for one journal of all of it and not for two."""
    monkeypatch.setattr(block_target, "_ALIGNED", PIECE)
    monkeypatch.setattr(block_target, "_SHORT", 2048)
    state = tmp_path / "full"
    state.mkdir(mode=0o700)
    bench = Bench(BlockDisk(grows=False, length=block_target.DIRECTORY + (1 << 14)), state)
    copy(bench.replica(), LARGE)
    return bench


#: All pieces of `LARGE` differ from those of `LARGE_NEW`.
LARGE, LARGE_NEW = (image(seed, 64, holes=1 << 30) for seed in (11, 12))


def test_what_is_taken_over_needs_no_room_for_the_journal_beside_it(full: Bench, tmp_path: Path) -> None:
    """Of a change that cannot be finished: it was killed when it was decided on, and then damaged."""
    while not full.is_marked:
        assert run_cut(full, LARGE_NEW, 90)
    full.disk.names["r.journal"].live[-1] ^= 1
    steps = Steps()
    full.again(tmp_path / "count").replica(steps).adopt(len(LARGE))
    for at in (*range(steps.done), None):
        bench = full.again(tmp_path / "adopted")
        if at is not None:
            with pytest.raises(Cut):
                bench.replica(Steps(at)).adopt(len(LARGE))
        bench.replica().adopt(len(LARGE))
        assert bench.is_marked
        copy(bench.replica(), image(14, 64, holes=1 << 30))
        assert ["r"] == list(bench.disk.names)


def test_a_change_of_a_longer_image_that_was_interrupted_leaves_room(full: Bench) -> None:
    assert run_cut(full, LARGE_NEW + image(13, 90), 20)
    assert "r.part" in full.disk.names
    copy(full.replica(), LARGE_NEW)
    assert LARGE_NEW == full.content
    assert ["r"] == list(full.disk.names)


def test_of_what_is_taken_over_no_more_is_read_than_the_image_has(start: Bench) -> None:
    """A server can say that a file has any length."""
    longer = OLD + changed(OLD, 9, len(OLD))
    copy(start.replica(), longer)
    read: list[int] = []
    Replica(evolve(start.replica().place, progress=read.append)).adopt(len(OLD))
    assert len(OLD) // PIECE == max(read)
    copy(start.replica(), OLD)
    assert OLD == start.content
    assert [] == list(start.replica().wrong_pieces())


@pytest.mark.parametrize("place", [0, 100, len(OLD) - 1])
def test_a_changed_byte_is_found(start: Bench, place: int) -> None:
    assert [] == list(start.replica().wrong_pieces())
    start.disk.names["r"].live[place] ^= 0x40
    assert [place // PIECE] == list(start.replica().wrong_pieces())


@pytest.mark.parametrize("bad", [0, 5, 12])
def test_a_bad_place_of_a_replica(start: Bench, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, and what belongs there is sent again, which a disk then writes elsewhere."""
    file = start.replica().place.target.open("r", writable=False)
    kind, whole, place = type(file), type(file).read, bad * PIECE
    file.close()

    def broken(file: Any, offset: int, length: int) -> bytes:
        if offset <= place < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        found: bytes = whole(file, offset, length)
        return found

    content = bytearray(OLD)
    content[place] ^= 1
    with monkeypatch.context() as patch:
        patch.setattr(kind, "read", broken)
        assert [bad] == list(start.replica().wrong_pieces())
        start.replica().adopt(len(OLD))
    copy(start.replica(), bytes(content))
    assert bytes(content) == start.content
    assert [] == list(start.replica().wrong_pieces())


def test_damage_at_the_source_leaves_the_replica(start: Bench) -> None:
    def damaged(replica: Replica) -> Iterator[Change]:
        yield from list(changes(replica, NEWS["same"]))[:2]
        raise Refused("piece 5 is damaged", hint="heal it")

    with pytest.raises(Refused, match="piece 5"):
        (replica := start.replica()).update(damaged(replica), len(OLD), 8)
    assert OLD == start.content
    assert ["r"] == list(start.disk.names)


def test_what_lies_there_is_not_replaced(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    bench = Bench(Disk(), state)
    bench.replica().place.target.create("r").write(0, b"somebody's")
    with pytest.raises(Exists):
        copy(bench.replica(), OLD)
    assert b"somebody's" == bench.content


# On a real file system


def test_a_path_is_a_target(tmp_path: Path) -> None:
    state, folder = tmp_path / "state", tmp_path / "disk"
    state.mkdir(mode=0o700)
    folder.mkdir()
    with LocalTarget(folder / "r") as target:
        for content in (OLD, *NEWS.values()):
            replica = Replica(Place(target, held_in(state, Steps()), digest_of, PIECE))
            copy(replica, content)
            assert content == (folder / "r").read_bytes()
            assert [] == list(replica.wrong_pieces())
        assert ["r"] == [entry.name for entry in folder.iterdir()]
        assert 0o600 == (folder / "r").stat().st_mode & 0o777


def test_the_file_beside_it_says_how_to_finish_by_hand(mixed: Bench, tmp_path: Path) -> None:
    """Its own lines do, in a shell."""
    text = mixed.disk.content("r.READ-ME-FIRST")
    assert notice.text("r", "r.journal") == text
    for name in mixed.disk.names:
        (tmp_path / name).write_bytes(mixed.disk.content(name) or b"")
    script = text.decode().partition("run:\n")[2].partition("\nIt can be")[0]
    for _ in range(2):
        done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "finished: ./r\n" == done.stdout
        assert NEWS["longer"] == (tmp_path / "r").read_bytes()

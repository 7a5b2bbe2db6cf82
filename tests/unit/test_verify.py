"""`verify` finds every change that the store makes, and nothing where lukshook itself made it."""

from __future__ import annotations

import errno
import os
import random
import signal
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve, frozen

from lukshook.errors import BadConfiguration, Denied, LukshookError, NotSafe, Refused, Unavailable
from lukshook.layers.base import Extent, Records
from lukshook.layers.image import Handle, handle_of
from lukshook.ledger import ledger
from lukshook.ledger.ledger import BAD, UNKNOWN, Ledger, State
from lukshook.ledger.pieces import PIECE
from lukshook.ledger.reading import Stretch
from lukshook.proof import verify
from lukshook.proof.verify import Asked, Verified
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system import kernel, signals
from lukshook.system.command import DryRunRunner, Runner
from lukshook.system.secret import Secret
from lukshook.volume import backup_end, closing, ledger_keeping, opening, remote
from lukshook.volume.known_state import Known, KnownState
from lukshook.volume.ledger_keeping import Ending, Recorded
from lukshook.volume.records import Record
from lukshook.volume.work import Work, work_on
from support.direct_volume import NAME, DirectVolume, parsed, site_in

COUNT = 64
SIZE = (COUNT - 1) * PIECE + 12_345
ALL = Asked()


@frozen
class Kept(DirectVolume):
    """An image of 64 pieces that is kept a ledger of; every eighth piece is a hole, and the last is short."""

    def verify(self, asked: Asked = ALL) -> Verified:
        found = verify.verify(self.volume, self.site, asked, lambda done, total: None)
        assert found is not None
        return found

    def rehearsed(self) -> Kept:
        """For a dry run."""
        return evolve(self, site=evolve(self.site, runner=DryRunRunner()))

    def kept_files(self) -> dict[str, bytes]:
        """All that the ledger is."""
        return {
            path.name: path.read_bytes() for path in self.site.state(self.volume).ledger.iterdir() if path.is_file()
        }

    def bad(self) -> dict[int, str]:
        return {damage.offset // PIECE: damage.how for damage in self.verify(Asked(restart=True)).bad}

    @contextmanager
    def working(self) -> Iterator[tuple[Work, ImageFile]]:
        with open_image(self.image, writable=True) as image, work_on(self.volume, self.site) as work:
            yield work, image

    @contextmanager
    def open(self) -> Iterator[Path]:
        """As between opening and closing, without a layer that records writes."""
        with self.working() as (work, image):
            ledger_keeping.begin(work, image)
            yield self.image
            handle = handle_of(image)
            ledger_keeping.finish(work, handle, None)

    def change(self, place: int, content: bytes) -> None:
        with self.image.open("r+b") as image:
            image.seek(place)
            image.write(content)

    def content(self, piece: int) -> bytes:
        with self.image.open("rb") as image:
            image.seek(piece * PIECE)
            return image.read(PIECE)

    def book(self) -> Ledger:
        found = ledger.load(self.site.state(self.volume).ledger)
        assert found is not None
        return found

    def state(self) -> State:
        with self.book() as book:
            return book.state


def record_of(handle: Handle) -> Record:
    """Of a volume of which nothing but the image is open."""
    return Record(NAME, "", "kernel", False, 0.0, layers=(("image", handle),))


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def volume(tmp_path: Path, warned: list[str]) -> Kept:
    made = random.Random(0)
    with (tmp_path / "image").open("wb") as out:
        for number in range(COUNT):
            if number % 8 != 7:
                out.seek(number * PIECE)
                out.write(made.randbytes(min(PIECE, SIZE - number * PIECE)))
        out.truncate(SIZE)
    site = site_in(tmp_path, lambda volume: Secret(b""), warned.append)
    kept = Kept(tmp_path, parsed(tmp_path, ledger=True), site)
    kept.site.state(kept.volume).make_folder()
    with kept.working() as (work, image):
        ledger_keeping.start(work, image)
    return kept


def test_noting_that_takes_long_is_not_due_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each piece of reading would be followed by it."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = verify._Pace(None)
    now[0] = 60.0
    assert pace.is_due()
    now[0] = 120.0
    pace.noted()
    assert not pace.is_due()


def test_an_image_as_it_was_made(volume: Kept) -> None:
    found = volume.verify()
    assert ((), 0, "", 0, 0) == (found.bad, found.count, found.length, found.settled, found.open)
    assert found.compared == COUNT * PIECE
    assert volume.state().verified is not None


def test_the_first_and_the_last_byte_of_a_piece(volume: Kept) -> None:
    """In data, in a hole, and in the short last piece; without a trace when they are put back."""
    for place in (0, PIECE - 1, PIECE, 7 * PIECE, 8 * PIECE - 1, SIZE - 1):
        old = volume.content(place // PIECE)[place % PIECE]
        volume.change(place, bytes([old ^ 1]))
        assert {place // PIECE: "changed"} == volume.bad()
        volume.change(place, bytes([old]))
        assert {} == volume.bad()


@pytest.mark.parametrize("part", range(10))
def test_random_places(volume: Kept, chance: random.Random, part: int) -> None:
    """100 places each time: bytes, words, sectors."""
    places = chance.sample(range(SIZE), 100)
    before = [(place, volume.content(place // PIECE)[place % PIECE :][:512]) for place in places]
    for place, old in before:
        length = chance.choice((1, 1, 4, 512))
        volume.change(place, bytes(byte ^ chance.randrange(1, 256) for byte in old[:length]))
    touched = {place // PIECE for place in places}
    assert touched == set(volume.bad())


def test_an_older_piece(volume: Kept) -> None:
    old = volume.content(3)
    with volume.open():
        volume.change(3 * PIECE + 5, b"new")
    assert {} == volume.bad()
    volume.change(3 * PIECE, old)
    assert {3: "older"} == volume.bad()


def test_pieces_that_were_swapped(volume: Kept) -> None:
    one, other = volume.content(2), volume.content(9)
    volume.change(2 * PIECE, other)
    volume.change(9 * PIECE, one)
    assert {2: "changed", 9: "changed"} == volume.bad()


def test_a_hole_that_is_filled_with_zeros_is_no_damage(volume: Kept) -> None:
    """A store may keep holes or not."""
    volume.change(7 * PIECE, bytes(PIECE))
    assert {} == volume.bad()


def test_data_that_becomes_a_hole(volume: Kept) -> None:
    volume.change(4 * PIECE, bytes(PIECE))
    assert {4: "changed"} == volume.bad()


@pytest.mark.parametrize(("length", "word"), [(SIZE - 1, "shorter"), (PIECE, "shorter"), (SIZE + 1, "longer")])
def test_another_length(volume: Kept, length: int, word: str) -> None:
    os.truncate(volume.image, length)
    found = volume.verify()
    assert word in found.length
    assert (word == "shorter") == bool(found.count)


def test_a_piece_that_cannot_be_read(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def broken(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= 5 * PIECE < offset + len(buffers[0]):
            raise OSError(5, "Input/output error")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    assert {5: "unreadable"} == volume.bad()


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.ESTALE, errno.EIO])
def test_a_store_that_is_gone_is_no_damage(volume: Kept, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """No piece can be read then. Where the kernel says no more than that, the store is asked."""

    def gone(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def asked(*_: object) -> None:
        raise Unavailable("the store does not answer: it was asked")

    before = volume.kept_files()["read"]
    monkeypatch.setattr(os, "preadv", gone)
    monkeypatch.setattr(remote, "check_answers", asked)
    with pytest.raises(Unavailable, match="the store does not answer"):
        volume.verify()
    assert before == volume.kept_files()["read"]


@pytest.mark.parametrize("left", [0, 3, 6])
def test_a_store_that_fails_every_read_from_some_moment_on_is_no_damage(
    volume: Kept, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """A disk that was pulled, or a server that a soft mount has given up: each read gives EIO, as a bad place does."""
    whole, reads = os.preadv, iter(range(left))

    def pulled(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if next(reads, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", pulled)
    with pytest.raises(Unavailable, match="answers every read with an error"):
        volume.verify()
    monkeypatch.undo()
    with volume.book() as book:
        assert [] == list(book.bad())
    assert {} == volume.bad()


def test_a_store_that_goes_while_a_piece_is_read_again_is_no_damage(
    volume: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before said that it reads."""
    volume.change(5 * PIECE, b"x")
    whole, reads = verify._Judge._read_again, os.preadv

    def gone(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def again(judge: verify._Judge, piece: int) -> bytes | None:
        monkeypatch.setattr(os, "preadv", gone)
        return whole(judge, piece)

    monkeypatch.setattr(verify._Judge, "_read_again", again)
    with pytest.raises(Unavailable, match="answers every read with an error"):
        volume.verify()
    monkeypatch.setattr(os, "preadv", reads)
    with volume.book() as book:
        assert [] == list(book.bad())


def test_damage_is_kept_until_it_is_gone(volume: Kept) -> None:
    old = volume.content(3)
    volume.change(3 * PIECE, b"x" * 10)
    volume.bad()
    with volume.book() as book:
        assert [3] == list(book.bad())
    volume.change(3 * PIECE, old)
    volume.bad()
    with volume.book() as book:
        assert [] == list(book.bad())


def test_what_an_opening_writes_is_no_damage(volume: Kept, chance: random.Random) -> None:
    for _ in range(20):
        with volume.open():
            for _ in range(chance.randrange(5)):
                volume.change(chance.randrange(SIZE - 100), chance.randbytes(100))
        assert {} == volume.bad()
    assert 20 == volume.state().generation


def test_damage_outlives_a_lost_record(volume: Kept) -> None:
    """What was found damaged does not count as it is because nobody knows what was written since; `trust` says so."""
    volume.change(3 * PIECE, b"x")
    assert {3: "changed"} == volume.bad()
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        volume.change(5 * PIECE, b"written without a record")
        ledger_keeping.finish(work, handle_of(image), Recorded(Records.THIS_OPENING, None))
    found = volume.verify()
    assert ([3 * PIECE], 0) == ([damage.offset for damage in found.bad], found.settled)
    assert {3: "changed"} == volume.bad()
    with volume.working() as (work, image):
        ledger_keeping.accept(work, image)
    with volume.book() as book:
        assert [] == list(book.bad())
    assert 0 == volume.verify().count


def test_with_a_lost_record_the_close_reads_the_whole_image(volume: Kept) -> None:
    """As the message says: nothing is left in doubt, so what the store changes afterwards is damage."""
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        volume.change(5 * PIECE, b"written without a record")
        ledger_keeping.finish(work, handle_of(image), Recorded(Records.THIS_OPENING, None))
    with volume.book() as book:
        assert not [mark for mark in book.marks(0, COUNT) if mark & UNKNOWN]
    volume.change(9 * PIECE, b"x")
    assert {9: "changed"} == volume.bad()


def test_a_record_that_cannot_be_read_does_not_keep_a_volume_open(volume: Kept, warned: list[str]) -> None:
    @frozen
    class Recorder(Handle):
        @property
        def records(self) -> Records:
            return Records.THIS_OPENING

        def written(self, runner: Runner) -> tuple[Extent, ...]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        handle = handle_of(image)
        record = record_of(handle)
        ending = Ending(work, record)
        ending.look(Recorder(handle.path, handle.device, handle.inode, handle.size, handle.block), record)
        ending.finish(failed=False)
    assert "the record of what was written is lost" in warned[0]
    assert not volume.state().writing


def test_damage_outlives_a_close_without_a_recorder(volume: Kept, warned: list[str]) -> None:
    """Nobody knows whether it was written since: it stays reported, and `heal` leaves it alone."""
    volume.change(3 * PIECE, b"x")
    volume.verify()
    for _ in range(2):
        with volume.open():
            volume.change(5 * PIECE, b"written")
        assert {3: "changed"} == volume.bad()
    with volume.book() as book:
        assert [UNKNOWN | BAD, 0] == [mark & (UNKNOWN | BAD) for mark in (book.marks(3, 1)[0], book.marks(5, 1)[0])]
    with volume.working() as (work, image):
        ledger_keeping.accept(work, image)
    with volume.open():
        pass
    assert {} == volume.bad()
    assert [] == warned


def test_doubt_outlives_a_close_without_a_recorder(volume: Kept) -> None:
    """Until a verification has said so."""
    volume.change(3 * PIECE, b"x")
    with volume.book() as book:
        book.set_unknown(((3, 2),))
    with volume.open():
        volume.change(5 * PIECE, b"written")
    with volume.book() as book:
        assert [UNKNOWN, 0, 0] == [mark & (UNKNOWN | BAD) for mark in book.marks(3, 3)]
    assert (0, 1) == ((found := volume.verify()).count, found.settled)
    assert (0, 0) == ((found := volume.verify()).count, found.settled)


@pytest.mark.parametrize("top", ["dmcrypt", "mount"])
@pytest.mark.parametrize("unclean", [False, True])
def test_a_failed_opening_without_a_recorder_takes_nothing_over(
    volume: Kept, warned: list[str], top: str, unclean: bool
) -> None:
    """What stopped it may be damage. Before the mount nothing of ours writes to what was closed cleanly."""
    with volume.working() as (work, image):
        if unclean:
            ledger_keeping.begin(work, image)
        ledger_keeping.begin(work, image)
        volume.change(3 * PIECE, b"damage")
        handle = handle_of(image)
        record = record_of(handle).push(top, handle)
        ending = Ending(work, record, sure=False)
        ending.look(handle, record)
        ending.finish(failed=True)
    damaged = top == "dmcrypt" and not unclean
    assert not volume.state().writing
    assert int(not unclean) == len(warned)
    found = volume.verify()
    assert ((1, 0) if damaged else (0, 1)) == (found.count, found.settled)
    volume.change(5 * PIECE, b"later")
    assert ({3, 5} if damaged else {5}) == set(volume.bad())


def test_what_is_left_out_is_not_verified(volume: Kept) -> None:
    """An image counts as verified as a whole only if all of it was compared, or nothing of it was being written."""
    before = volume.verify()
    verified = volume.state().verified
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
    volume.change(3 * PIECE, b"being written")
    found = volume.verify()
    assert (0, 1, before.compared - PIECE) == (found.count, found.open, found.compared)
    assert (verified, None, 0) == ((state := volume.state()).verified, state.began, state.position)


def test_what_an_interrupted_verification_left_out_is_not_verified(volume: Kept) -> None:
    with volume.book() as book:
        book.save(evolve(book.state, began=1.0, position=10, left_out=True))
    volume.verify()
    assert (None, False) == (volume.state().verified, volume.state().left_out)
    volume.verify()
    assert volume.state().verified is not None


@pytest.mark.parametrize("asked", [ALL, Asked(part=0.5), Asked(restart=True)])
@pytest.mark.parametrize("writing", [False, True])
def test_a_dry_run_finds_all_and_notes_nothing(
    volume: Kept, asked: Asked, writing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage, what was damaged before, what nobody knows, and what is being written; a part is the same one twice."""
    monkeypatch.setattr("secrets.randbelow", lambda most: 0)
    volume.change(3 * PIECE, b"x")
    volume.verify()
    volume.change(4 * PIECE, b"y")
    volume.change(5 * PIECE, b"z")
    with volume.book() as book:
        book.set_unknown(((5, 1), (6, 1)))
        book.save(evolve(book.state, writing=writing, began=1.0, position=2))
    before = volume.kept_files()

    found = volume.rehearsed().verify(asked)

    assert before == volume.kept_files()
    assert found == volume.verify(asked)


def test_a_dry_run_begins_no_ledger_and_completes_no_change(volume: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    folder = volume.site.state(volume.volume).ledger
    (folder / "changes").write_bytes(b"")
    with pytest.raises(Unavailable, match="a change of it is not complete"):
        volume.rehearsed().verify()
    (folder / "changes").unlink()
    folder.rename(folder.with_name("aside"))
    assert verify.verify(volume.volume, volume.rehearsed().site, ALL, lambda done, total: None) is None
    assert f"# begins a ledger: mkdir --parents -- {folder}\n" == capsys.readouterr().out
    assert not folder.exists()


def test_a_killed_opening_is_no_damage(volume: Kept) -> None:
    """What it wrote is not known, so it is left out until a clean close, and counts as it is after that."""
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
    volume.change(3 * PIECE, b"written before the kill")
    found = volume.verify()
    assert (0, 0, 1) == (found.count, found.settled, found.open)
    assert (COUNT - 1) * PIECE == found.compared
    with volume.open():
        pass
    assert {} == volume.bad()


def test_a_close_that_was_killed_after_its_recorder_takes_nothing_over(volume: Kept) -> None:
    """Only the image is left to be closed then, and nobody knows any more what was written."""
    volume.change(40 * PIECE, b"damage")
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        Ending(work, record_of(handle_of(image))).finish(failed=False)
    assert volume.state().writing
    assert 0 == volume.state().generation


@pytest.mark.parametrize("number", [0, 3, 20_000])
def test_what_was_recorded_outlives_a_closing_that_is_tried_again(volume: Kept, number: int) -> None:
    """In the record of what is open, up to what has room there; with more, everything counts as written."""
    extents = tuple((piece * 2 * PIECE, PIECE) for piece in range(number))
    record = Recorded(Records.THIS_OPENING, extents).noted(record_of(Handle(str(volume.image), 1, 2, SIZE, False)))
    with volume.working() as (work, _):
        work.record.save(evolve(record, boot=kernel.boot_id()))
    with volume.working() as (work, _):
        kept = work.record.load()
    assert kept is not None
    assert Recorded.of(kept) == Recorded(Records.THIS_OPENING, extents if number < 20_000 else None)


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("lacking", ["ledger", "known"])
def test_a_close_that_could_not_be_noted_is_tried_again(
    volume: Kept, monkeypatch: pytest.MonkeyPatch, lacking: str, failed: bool
) -> None:
    """It is not done before all of it is noted, and then it is noted as what it was."""
    monkeypatch.setattr(backup_end.Closed, "_prove_bare", lambda _: None)
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        volume.change(3 * PIECE, b"backup")
        open_ = evolve(record_of(handle_of(image)), boot=kernel.boot_id(), stood=True, written=7)
        work.record.save(Recorded(Records.THIS_OPENING, ((3 * PIECE, 6),)).noted(open_))
    with monkeypatch.context() as full:
        if lacking == "ledger":
            full.setattr(Ledger, "commit", _no_room)
        else:
            full.setattr(KnownState, "save", _no_room)
        for words in ({"failed": failed}, {"failed": failed}, {}):
            with pytest.raises(Unavailable, match="No space left on device"):
                closing.close_volume(volume.volume, None, volume.site, **words)
            assert (None, "") == (volume.known().written, volume.known().last_result)

    closing.close_volume(volume.volume, None, volume.site)

    known, state = volume.known(), volume.state()
    assert (7, "failed" if failed else "done") == (known.written, known.last_result)
    assert failed == (known.last_success is None)
    assert (False, 1) == (state.writing, state.generation)
    assert {} == volume.bad()
    closing.close_volume(volume.volume, None, volume.site)
    assert known == volume.known()


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_never_open_is_no_backup(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """`before-backup` was killed when it had just begun, and its host calls `after-backup` as after a good backup."""
    monkeypatch.setattr(backup_end.Closed, "_prove_bare", lambda _: None)
    monkeypatch.setattr(closing, "leftovers", lambda _: (("loop", None),))
    with volume.working() as (work, image):
        work.record.save(evolve(record_of(handle_of(image)), boot=kernel.boot_id()))
    closing.close_volume(volume.volume, None, volume.site)
    assert ("", None) == (volume.known().last_result, volume.known().last_success)


def test_a_ledger_that_was_not_kept_is_not_believed(volume: Kept) -> None:
    """`ledger = true` was taken out of the configuration and put back."""
    with volume.working() as (work, _):
        ledger_keeping.abandon(work)
    volume.change(3 * PIECE, b"written without a ledger")
    with volume.open():
        pass
    assert {} == volume.bad()


def test_an_image_that_is_taken_as_it_is(volume: Kept) -> None:
    volume.change(3 * PIECE, b"by another host")
    with volume.working() as (work, image):
        ledger_keeping.accept(work, image)
    found = volume.verify()
    assert (0, 1) == (found.count, found.settled)
    assert (0, 0) == ((again := volume.verify()).count, again.settled)


@pytest.mark.parametrize("killed", [False, True])
def test_a_header_that_lukshook_changes(volume: Kept, killed: bool) -> None:
    state = volume.site.state(volume.volume)
    with volume.working() as (_, image):
        changing = ledger_keeping.header_changing(state, image, PIECE + 1)
        changing.__enter__()
        volume.change(10, b"header")
        volume.change(PIECE + 10, b"header")
        if not killed:
            changing.__exit__(None, None, None)
    found = volume.verify()
    assert (0, 2 if killed else 0) == (found.count, found.settled)
    volume.change(20, b"x")
    assert {0: "changed"} == volume.bad()


@pytest.mark.parametrize("length", [SIZE + 3 * PIECE, SIZE + 100, 40 * PIECE, 40 * PIECE + 5, 1])
def test_a_length_that_lukshook_changes(volume: Kept, length: int) -> None:
    with volume.working() as (work, image), ledger_keeping.length_changing(work.state, image, length):
        os.truncate(volume.image, length)
    found = volume.verify()
    assert (0, "", 0) == (found.count, found.length, found.settled)
    place = min(SIZE, length) - 1
    volume.change(place, bytes([volume.content(place // PIECE)[place % PIECE] ^ 1]))
    assert {place // PIECE: "changed"} == volume.bad()


LONG = 1 << 61  #: no file system of these tests has that; the sums in bytes are right for it


@pytest.mark.parametrize("found", [None, Recorded(Records.THIS_OPENING, ())])
def test_a_close_does_not_follow_an_image_that_the_store_made_longer(
    volume: Kept, warned: list[str], found: Recorded | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read, and keep a digest of, as much as the store likes."""
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        lengthened(volume, monkeypatch)
        ledger_keeping.finish(work, handle_of(image), found)
    assert (SIZE, False) == (volume.state().size, volume.state().writing)
    assert "is longer than this host made it" in warned[0]
    assert "longer" in volume.verify().length


def lengthened(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the store. Not every file system can have that length, so the image says that it has."""
    os.truncate(volume.image, SIZE + 3 * PIECE)
    monkeypatch.setattr(ImageFile, "size", property(lambda image: LONG))


@pytest.mark.parametrize("doing", ["begin", "accept", "verify"])
def test_no_ledger_of_an_image_of_any_length(volume: Kept, monkeypatch: pytest.MonkeyPatch, doing: str) -> None:
    """Its marks would fill the disk of this host."""
    state = volume.site.state(volume.volume)
    monkeypatch.setattr(KnownState, "known", Known(pins={"uuid": "", "offset": PIECE}, extent=SIZE - PIECE))
    lengthened(volume, monkeypatch)
    if doing != "accept":
        for file in state.ledger.iterdir():
            file.unlink()
    with pytest.raises(Refused, match="and its file system needs"):
        if doing == "verify":
            volume.verify()
        else:
            with volume.working() as (work, image):
                (ledger_keeping.accept if doing == "accept" else ledger_keeping.begin)(work, image)


def test_marks_of_many_pieces_can_be_interrupted(tmp_path: Path) -> None:
    signals._State.first, signals._State.raised = signal.SIGTERM, False
    with pytest.raises(signals.Interrupted):
        ledger.begin(tmp_path / "ledger", LONG, "")


def test_a_length_that_the_owner_takes(volume: Kept) -> None:
    """A device that has grown: `resize` says that it is right; the marks say what was never read."""
    volume.change(SIZE + 2 * PIECE, b"what was there before")
    assert "longer" in volume.verify().length
    with volume.working() as (work, image):
        ledger_keeping.take_length(work.state, image)
    assert (0, "", 0) == ((found := volume.verify()).count, found.length, found.settled)
    volume.change(SIZE + PIECE, b"x")
    assert 1 == volume.verify().count


def test_a_length_that_is_known_leaves_nothing_in_doubt(volume: Kept) -> None:
    """Each resize asks; also while the volume is open, whose record may not have the last piece."""
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        ledger_keeping.take_length(work.state, image)
        ledger_keeping.finish(work, handle_of(image), Recorded(Records.THIS_OPENING, ()))
    with volume.book() as book:
        assert not [mark for mark in book.marks(0, COUNT) if mark & UNKNOWN]


def test_a_volume_that_grows_while_it_is_open(volume: Kept, warned: list[str]) -> None:
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        with ledger_keeping.length_changing(work.state, image, SIZE + 3 * PIECE):
            os.truncate(volume.image, SIZE + 3 * PIECE)
        volume.change(SIZE + PIECE, b"written")
        ledger_keeping.finish(work, handle_of(image), Recorded(Records.THIS_OPENING, ((SIZE + PIECE, 7),)))
    assert (SIZE + 3 * PIECE, 0) == (volume.state().size, volume.state().grown)
    assert ((), "") == ((found := volume.verify()).bad, found.length)
    assert [] == warned


@pytest.mark.parametrize("length", [SIZE + 3 * PIECE, 40 * PIECE + 5])
def test_a_change_of_length_that_was_interrupted(volume: Kept, length: int) -> None:
    """The next opening takes the length as it is, and its close all that is new."""
    with volume.working() as (work, image):
        ledger_keeping.length_changing(work.state, image, length).__enter__()
        os.truncate(volume.image, length)
    with volume.open():
        pass
    assert {} == volume.bad()
    assert volume.state().size == length


def test_an_unfinished_resize_is_completed_first(volume: Kept) -> None:
    volume.site.state(volume.volume).resizing.write_text("{}")
    with pytest.raises(Unavailable, match="a resize of volume house is not complete"):
        volume.verify()


def test_no_ledger(tmp_path: Path, volume: Kept) -> None:
    without = evolve(volume, volume=parsed(tmp_path, ledger=False))
    for file in volume.site.state(volume.volume).ledger.iterdir():
        file.unlink()
    with pytest.raises(BadConfiguration, match="has no ledger"):
        without.verify()


def test_a_volume_that_was_there_before_its_ledger(volume: Kept) -> None:
    """The first verification reads all of it, the second compares."""
    for file in volume.site.state(volume.volume).ledger.iterdir():
        file.unlink()
    assert 0 == volume.verify().count
    volume.change(3 * PIECE, b"x")
    assert {3: "changed"} == volume.bad()


def test_a_part_is_what_was_not_read_for_the_longest_time(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four quarters on four days read everything; damage is found by the quarter it lies in, and by those after it."""
    volume.change(40 * PIECE, b"x")
    found, today = [], ledger.today()
    for day in range(today + 1, today + 5):
        monkeypatch.setattr(ledger, "today", lambda day=day: day)
        found.append(volume.verify(Asked(part=0.25)))
    assert [COUNT // 4 * PIECE] * 4 == [one.compared for one in found]
    bad = [one.count for one in found]
    assert ([0, 0, 0, 0] != bad, sorted(bad)) == (True, bad)


def test_a_part_while_the_clock_was_wrong(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day that is still to come says nothing: such a piece counts as never read."""
    today = ledger.today()
    with volume.book() as book:
        book.mark(0, array("H", (today,) * COUNT))
        book.mark(40, array("H", (today + 9000,) * 8))
    volume.verify(Asked(part=8 / COUNT))
    with volume.book() as book:
        assert [today] * COUNT == list(book.marks(0, COUNT))


def test_a_part_while_the_clock_stands_still(volume: Kept) -> None:
    """A machine without a clock of its own has the same day after each start."""
    volume.change(60 * PIECE, b"x")
    assert any(volume.verify(Asked(part=0.25)).count for _ in range(60))


def test_a_part_begins_with_what_was_found_damaged(volume: Kept) -> None:
    """It may be right again; half of the part is for the others all the same."""
    today = ledger.today()
    with volume.book() as book:
        book.mark(0, array("H", (today - 5,) * COUNT))
        book.mark(50, array("H", (BAD | today,) * 4))
    volume.verify(Asked(part=16 / COUNT))
    with volume.book() as book:
        assert [] == list(book.bad())
        book.mark(0, array("H", (BAD | today,) * 40))
    volume.verify(Asked(part=16 / COUNT))
    with volume.book() as book:
        assert 40 - 8 == sum(1 for _ in book.bad())


@pytest.mark.parametrize("number", [1, 7, 63, 64])
def test_a_part_is_as_large_as_it_should_be(volume: Kept, chance: random.Random, number: int) -> None:
    with volume.book() as book:
        for _ in range(50):
            marks = [chance.randrange(4) | BAD * (chance.random() < chance.choice((0, 0.1, 0.9))) for _ in range(COUNT)]
            book.mark(0, array("H", marks))
            runs = list(verify._oldest(book, number / COUNT))
            assert number == len(set(runs)), marks
            assert runs == sorted(runs)


def test_an_interrupted_verification_continues(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.change(2 * PIECE, b"x")
    monkeypatch.setattr(verify, "_BATCH", 1)

    def interrupt(done: int, total: int) -> None:
        if done >= total // 2:
            signals._State.first, signals._State.raised = signal.SIGTERM, False

    with pytest.raises(signals.Interrupted):
        verify.verify(volume.volume, volume.site, Asked(), interrupt)
    signals.install()
    position = volume.state().position
    assert COUNT // 2 <= position < COUNT
    rest = volume.verify()
    assert (rest.compared, rest.count) == ((COUNT - position) * PIECE, 0)
    assert volume.state().verified is not None
    assert {2: "changed"} == volume.bad()


def test_damage_that_was_found_before_is_not_forgotten(volume: Kept) -> None:
    """In the first half of a verification that was interrupted, or in another part."""
    assert "" == volume.state().result
    volume.change(3 * PIECE, b"x")
    volume.change(50 * PIECE, b"y")
    with volume.book() as book:
        book.save(evolve(book.state, began=1.0, position=10))
        book.mark(3, array("H", (BAD | 1,)))

    found = volume.verify()

    assert [50 * PIECE] == [damage.offset for damage in found.bad]
    assert (1, 1, "damaged") == (found.count, found.earlier, volume.state().result)
    assert (2, 0) == ((again := volume.verify(Asked(restart=True))).count, again.earlier)


def test_what_was_found_is_noted(volume: Kept) -> None:
    """For `status`, which does not read the image."""
    volume.verify(Asked(part=0.05))
    assert ("intact", None) == (volume.state().result, volume.state().verified)
    os.truncate(volume.image, SIZE - 1)
    volume.verify()
    assert "damaged" == volume.state().result
    assert volume.state().verified is not None


def test_a_backup_meanwhile_is_no_damage(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is written, and the volume closed, after the piece was read and before the result is noted."""
    done: list[int] = []

    def backup(read: int, total: int) -> None:
        if not done:
            done.append(read)
            with volume.open():
                volume.change(0, b"backup")
                volume.change(50 * PIECE, b"backup")

    found = verify.verify(volume.volume, volume.site, Asked(), backup)
    assert found is not None
    assert (0, 0) == (found.count, found.settled)


@pytest.mark.parametrize("known", [False, True])
def test_a_lost_record_meanwhile_is_no_damage(volume: Kept, known: bool) -> None:
    """What was read before the close says nothing of a piece that nobody knows after it."""
    done: list[int] = []

    def lose(read: int, total: int) -> None:
        if not done:
            done.append(read)
            with volume.working() as (work, image):
                ledger_keeping.begin(work, image)
                volume.change(0, b"written while nothing recorded it")
                ledger_keeping.finish(work, handle_of(image), Recorded(Records.THIS_OPENING, None))

    if not known:
        volume.change(0, b"by another host")
        with volume.book() as book:
            book.set_unknown(((0, 1),))
    verify.verify(volume.volume, volume.site, Asked(), lose)
    assert {} == volume.bad()


def test_an_image_that_is_replaced_meanwhile_is_not_noted(volume: Kept) -> None:
    """Another image was put there and trusted, while the one that was there before is still read."""
    fresh = volume.image.read_bytes()[::-1]
    done: list[int] = []

    def replace(read: int, total: int) -> None:
        if not done:
            done.append(read)
            volume.image.unlink()
            volume.image.write_bytes(fresh)
            with volume.working() as (work, image):
                ledger_keeping.accept(work, image)

    with pytest.raises(Unavailable, match="moved or replaced"):
        verify.verify(volume.volume, volume.site, Asked(), replace)
    volume.verify()
    assert {} == volume.bad()


def test_two_verifications_at_once(volume: Kept) -> None:
    """Both have read the whole image, so it was verified."""
    done: list[int] = []

    def another(read: int, total: int) -> None:
        if not done:
            done.append(read)
            volume.verify()

    verify.verify(volume.volume, volume.site, Asked(), another)
    assert volume.state().verified is not None


def test_a_hole_is_compared_once(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no part of it is as it should be: the lock is held meanwhile."""
    os.truncate(volume.image, 0)
    os.truncate(volume.image, SIZE)
    monkeypatch.setattr(verify, "_CHUNK", 2)
    seen: list[int] = []
    whole = Stretch.each

    def counted(stretch: Stretch) -> Iterator[tuple[int, bytes | None]]:
        for found in whole(stretch):
            seen.append(found[0])
            yield found

    monkeypatch.setattr(Stretch, "each", counted)
    assert COUNT - COUNT // 8 == volume.verify().count
    assert len(seen) <= 3 * COUNT


def test_an_opening_compares_a_sample(volume: Kept) -> None:
    for piece in range(COUNT):
        volume.change(piece * PIECE, b"damage everywhere")
    with volume.working() as (work, image), pytest.raises(Refused, match="is not as this host wrote it"):
        ledger_keeping.check_sample(work, image)


def test_a_restore_is_told_of_damage_and_goes_on(volume: Kept, warned: list[str]) -> None:
    """Whether its sample meets it, or a verification has found it. Who writes, and a backup, are refused."""
    for piece in range(COUNT):
        volume.change(piece * PIECE, b"damage everywhere")
    for verified in (False, True):
        if verified:
            volume.verify()
        with volume.working() as (work, image):
            opening._check_pieces(work, image, restoring=True)
            with pytest.raises(Refused, match="is not as this host wrote it"):
                opening._check_pieces(work, image, restoring=False)
    assert 2 == len(warned)
    assert "the piece at byte" in warned[0]
    assert f"damaged pieces: {COUNT}; it is opened read-only all the same" in warned[1]
    for line in warned:
        assert "which files are damaged: lukshook verify --name-files house" in line
        assert "from a copy: lukshook heal house --from TARGET" in line


def test_an_opening_accepts_what_it_may_have_written_itself(volume: Kept) -> None:
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        for piece in range(COUNT):
            volume.change(piece * PIECE, b"written before the kill")
        ledger_keeping.check_sample(work, image)


@pytest.mark.parametrize("lost", ["digests", "earlier", "read"])
def test_a_ledger_without_a_column_is_damaged(volume: Kept, warned: list[str], lost: str) -> None:
    """It must not say that the image is."""
    (volume.site.state(volume.volume).ledger / lost).unlink()
    with pytest.raises(LukshookError, match="the ledger of volume house is damaged"):
        volume.verify()
    with volume.open():
        pass
    assert 1 == len(warned)
    assert {} == volume.bad()


@pytest.mark.parametrize("doing", ["verify", "close"])
def test_a_state_folder_without_room(volume: Kept, monkeypatch: pytest.MonkeyPatch, doing: str) -> None:
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        handle = handle_of(image)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="the ledger of volume house cannot be written: No space left"):
        if doing == "verify":
            volume.verify()
        else:
            ledger_keeping.finish(work, handle, Recorded(Records.THIS_OPENING, None))


def test_a_ledger_of_another_user(volume: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(folder: Path, **_: object) -> Ledger:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(ledger, "load", denied)
    with pytest.raises(Denied, match="the ledger of volume house cannot be read"):
        volume.verify()


def test_an_image_that_is_replaced_before_it_is_read_back(volume: Kept) -> None:
    with volume.working() as (work, image):
        ledger_keeping.begin(work, image)
        handle = handle_of(image)
        volume.image.rename(volume.image.with_name("aside"))
        volume.image.write_bytes(b"x" * SIZE)
        with pytest.raises(NotSafe, match="was replaced"):
            ledger_keeping.finish(work, handle, None)


def test_a_damaged_ledger_does_not_keep_a_volume_closed(volume: Kept, warned: list[str]) -> None:
    (volume.site.state(volume.volume).ledger / "ledger.json").write_text("no")
    with pytest.raises(LukshookError, match="the ledger of volume house is damaged"):
        volume.verify()
    with volume.open():
        pass
    assert 1 == len(warned)
    assert {} == volume.bad()


@pytest.fixture(autouse=True)
def no_signal() -> Iterator[None]:
    yield
    signals._State.first, signals._State.raised, signals._State.waiting = None, False, 0

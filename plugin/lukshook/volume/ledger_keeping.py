"""A volume's ledger while the volume is opened, closed and changed.

Before anything can write to an image, the ledger says so durably. After that, what was written is read again past
the page cache, and only then does the ledger say that it is up to date. docs/internals/ledger.md has the whole.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from attrs import evolve, frozen

from lukshook import size as sizes
from lukshook.errors import Denied, LukshookError, NotSafe, Refused, Unavailable
from lukshook.layers import image as image_layer
from lukshook.layers.base import Extent, LayerHandle, Recording, Records
from lukshook.ledger import digests, ledger, pieces
from lukshook.ledger.ledger import BAD, DAY, UNKNOWN, Ledger
from lukshook.ledger.pieces import Run
from lukshook.ledger.reading import Reader, Stretch
from lukshook.replica import held
from lukshook.store.image_file import Identity, ImageFile, open_image
from lukshook.system import json_files, signals
from lukshook.volume.engine_choice import stack_of
from lukshook.volume.known_state import Known, KnownState
from lukshook.volume.records import Record
from lukshook.volume.work import Work

#: Pieces that an opening compares, and seconds that it takes for that at most.
_SAMPLE = 8
_SAMPLE_SECONDS = 1.0
#: Places that a record keeps of what was written: half of what its file may have.
_MOST_KEPT = 16_384
#: Pieces that are compared at once.
_CHUNK = 65536
#: An image that is longer than this, and so many times as long as what is in it, is none that somebody made larger.
_LONG, _MOST_LEAP = 1 << 40, 16
#: Layers with which the kernel or a daemon writes to the file system.
_MOUNTED = frozenset({"mount", "fuse2fs"})
#: Layers below the one that decrypts: while no other stands, nothing writes to the image.
_BELOW = frozenset({"image", "loop"})


@frozen
class Recorded:
    """What a layer recorded: what that covers, and where the image was written, None where the record is lost."""

    covers: Records
    extents: tuple[Extent, ...] | None

    @classmethod
    def of(cls, record: Record) -> Recorded | None:
        """What an earlier closing has noted in *record*, None where it did not come to that."""
        if record.covers not in {kind.value for kind in Records}:
            return None
        places = record.places
        extents = None if places is None else tuple(zip(places[::2], places[1::2], strict=False))
        return cls(Records(record.covers), extents)

    def noted(self, record: Record) -> Record:
        """*record* with it, for a closing that is tried again; very much has no room there, and is lost then."""
        kept = self.extents is not None and len(self.extents) <= _MOST_KEPT
        places = tuple(itertools.chain.from_iterable(self.extents or ())) if kept else None
        return evolve(record, covers=self.covers.value, places=places)


class Ending:
    """The end of an opening: the layers that stand are closed from the top, and what they recorded is read back.

    *sure*: it is known to have come to its end; otherwise what is not as it was may be damage that stopped it.
    """

    def __init__(self, work: Work, record: Record, *, sure: bool = True) -> None:
        self.work = work
        self._sure = sure
        layers = dict(record.layers)
        self._image = layers.get("image")
        self._untouched = layers.keys() <= _BELOW
        self._mounted = self._untouched or not layers.keys().isdisjoint(_MOUNTED)
        self._recorded = Recorded.of(record)
        self._recording = any(handle.records is not Records.NOTHING for handle in layers.values())

    def look(self, handle: LayerHandle, record: Record) -> Record:
        """*handle* is closed next: it is asked what it recorded, *record* with that."""
        if self._recorded is None and handle.records is not Records.NOTHING:
            self._recorded = Recorded(handle.records, self._written(handle))
        elif self._recorded is None and not self._recording and not self._untouched:
            self._recorded = Recorded(Records.NOTHING, None)
        else:
            return record
        return self._recorded.noted(record)

    def _written(self, handle: LayerHandle) -> tuple[Extent, ...] | None:
        try:
            return handle.written(self.work.runner)
        except (LukshookError, OSError) as error:  # whatever it is: the volume has to be closed
            name, why = self.work.name, error.message if isinstance(error, LukshookError) else str(error)
            self.work.site.warn(
                f"volume {name}: the record of what was written is lost: {why}; closing reads the whole image instead"
            )
            return None

    def finish(self, *, failed: bool, written: int | None = None) -> None:
        """All is closed and nothing was lost. Raises `NotSafe` when it cannot be read back, `Unavailable`.

        *written*: the file system's count, None where it is not known. *failed*: the opening has failed; where nothing
        could write yet, nothing counts as written. Where an earlier closing was killed before it noted what the layer
        has recorded, that is gone: the ledger stays in doubt, and the next opening notes that.
        """
        if self._untouched and self._recorded is None:
            if failed:
                put_back(self.work)
        elif isinstance(self._image, image_layer.Handle):
            finish(self.work, self._image, self._recorded, doubt=self._doubt, written=written)

    @property
    def _doubt(self) -> int:
        """How to mark a piece that has changed while nothing recorded it; 0: it counts as written.

        Below a file system that was closed cleanly nothing writes before it is mounted (e2fsck repairs what is not
        right, which is damage).
        """
        return 0 if self._sure else UNKNOWN if self._mounted else BAD


def begin(work: Work, image: ImageFile, *, counts: bool = True) -> Recording:
    """Note durably that *image* will be written; what the layers are asked to record. Raises `Unavailable`.

    *counts*: `judge_count` is called before anything can be written.
    """
    folder = work.state.ledger / "recorder"
    with writing(work), _known_or_new(work, image) as book:
        earlier = book.state.writing
        if "era" not in stack_of(work.volume):
            shutil.rmtree(folder, ignore_errors=True)
        book.save(
            evolve(
                book.state,
                writing=True,
                unclean=earlier,
                judged=book.state.judged or not counts,
                uuid=book.state.uuid or _uuid(work.state),
            )
        )
    return Recording(folder, book.state.piece, fresh=not earlier)


def judge_count(work: Work, written: int | None, *, read_only: bool) -> None:
    """Compare what was ever *written*, as the file system counts it, with what the ledger is about.

    More than that was written elsewhere, or is in an image that is newer than what this host knows: no piece is known
    then, nor what the copies have. A store cannot raise that count without the key. Raises `Unavailable`.
    """
    book = _loaded(work.state)
    if book is None:
        return
    with writing(work), book:
        state = book.state
        if state.judged or (read_only and state.writing):
            return
        newer = None not in (written, state.written) and (written or 0) > (state.written or 0)
        if newer:
            book.set_unknown(pieces.whole(state.size, state.piece))
            _doubt_copies(work)
            state = evolve(state, written=written)
        if newer or not read_only:
            book.save(evolve(state, judged=not read_only))
    if newer:
        work.site.warn(
            f"volume {work.name}: more was written to its image than this host knows of: this host was restored from a "
            "backup, or another host has used the image; its ledger counts no longer, run: "
            f"lukshook verify {work.name}; and for each copy: lukshook copy {work.name} TARGET --adopt"
        )


def _doubt_copies(work: Work) -> None:
    """What is known of the copies is of another time, too: the next change of each reads all of it first (--adopt)."""
    with suppress(Refused):
        for copy in held.every(work.state.copies):
            copy.save(ledger="")


def put_back(work: Work) -> None:
    """Nothing was written after `begin`: what the ledger knew before is right. An earlier doubt stays."""
    book = _loaded(work.state)
    if book is None:
        return
    with writing(work), book:
        if book.state.writing and not book.state.unclean:
            book.save(evolve(book.state, writing=False, judged=False))


def abandon(work: Work) -> None:
    """The image will be written without a ledger: one that is there must not be believed later."""
    if not work.state.ledger.is_dir():
        return
    with writing(work):
        book = _loaded(work.state)
        if book is not None:
            with book:
                shutil.rmtree(work.state.ledger / "recorder", ignore_errors=True)
                book.save(evolve(book.state, writing=True, unclean=True, judged=True))


def finish(
    work: Work, image: image_layer.Handle, found: Recorded | None, *, doubt: int = 0, written: int | None = None
) -> None:
    """Read back what was written, now that all layers of the volume are closed, and bring the ledger up to date.

    *doubt*: where nothing was recorded, how to mark what has changed (`_Sieve`). *written*: the file system's count,
    None where it is not known. Raises `NotSafe` when the store does
    not give back what was written.
    """
    book = _loaded(work.state)
    if book is None or not book.state.writing:
        return
    with book, open_image(work.volume.image.image, writable=False) as opened:
        if opened.identity != Identity(image.device, image.inode):
            raise NotSafe(
                f"the image {work.volume.image.shown} was replaced before it was read back",
                hint="the backup went into the file that was there before; who else can write to its folder?",
            )
        length = book.state.own_length(opened.size)
        lost = _has_lost_end(book, length)
        with writing(work):
            runs = _to_read(book, length, found, work)
        done = evolve(
            book.state,
            size=book.state.size if lost else length,
            writing=False,
            unclean=False,
            generation=book.state.generation + 1,
            closed=time.time(),
            grown=0,
            written=book.state.written if written is None and not book.state.judged else written,
            judged=False,
        )
        if opened.size > length:
            work.site.warn(
                f"the image of volume {work.name} is longer than this host made it: "
                f"{sizes.show_instead(opened.size, length)}; what follows is not read; run: lukshook verify {work.name}"
            )
        reader = book.reader(opened.descriptor, length)
        if _is_recorded(found):
            _take(book, reader, runs, done, work.name)
        else:
            _sift(book, reader, runs, done, work, UNKNOWN if book.state.unclean else doubt)


def _is_recorded(found: Recorded | None) -> bool:
    """Whether it is known what was written; a record that is lost is none."""
    return found is not None and found.covers is not Records.NOTHING and found.extents is not None


def _to_read(book: Ledger, length: int, found: Recorded | None, work: Work) -> tuple[Run, ...]:
    """The pieces that have to be read again after an opening."""
    piece, everything = book.state.piece, pieces.whole(length, book.state.piece)
    if found is None or found.extents is None or not _is_recorded(found):
        work.runner.note(f"# no layer records writes: lukshook reads all of {work.volume.image.image}")
        return everything
    if book.state.unclean and found.covers is not Records.SINCE_CLEAN_CLOSE:
        book.set_unknown(everything)
    if _has_lost_end(book, length):
        return pieces.runs(found.extents, length, piece)
    edge = min(length, book.state.size)
    behind = ((edge, max(length, book.state.size) - edge),) if length != book.state.size else ()
    cut = ((edge - 1, 1),) if length != book.state.size and edge else ()
    return pieces.runs((*found.extents, *behind, *cut), length, piece)


def _has_lost_end(book: Ledger, length: int) -> bool:
    """Whether an image of *length* bytes has lost its end: no open volume is made shorter."""
    return length < book.state.size and not book.state.unclean


def _sift(book: Ledger, reader: Reader, runs: tuple[Run, ...], state: ledger.State, work: Work, doubt: int) -> None:
    """As `_take`, where nothing was recorded: not all that has changed counts as written."""
    unclean = book.state.unclean  # an opening that was killed may have written anything
    sieve = _Sieve(book, UNKNOWN if unclean else doubt)
    _commit(book, _entries(sieve.passed(reader.read(runs)), book.state.piece, work.name), state, work.name)
    if sieve.kept and doubt and not unclean:
        work.site.warn(
            f"volume {work.name}: pieces of its image that are not as at the last close: {sieve.kept}; "
            + ("they are damaged" if doubt == BAD else "the opening that failed may have written them")
            + f"; run: lukshook verify --name-files {work.name}"
        )


class _Sieve:
    """Lets those pieces pass that count as they are, and marks the others, of which the ledger keeps what it knows.

    *doubt*: the mark of a piece that has changed, 0: it passes. One that was in doubt or damaged before stays that.
    """

    def __init__(self, book: Ledger, doubt: int) -> None:
        self._book, self._doubt = book, doubt
        self.kept = 0

    def passed(self, stretches: Iterable[Stretch]) -> Iterator[Stretch]:
        """Those of *stretches*, in parts; what was never known passes."""
        for stretch in stretches:
            for begin in range(0, stretch.number, _CHUNK):
                part = stretch.part(begin, min(_CHUNK, stretch.number - begin))
                yield from (part,) if self._is_known(part) else self._each(part)

    def _is_known(self, part: Stretch) -> bool:
        return part.joined() == self._book.digests(part.first, part.number)

    def _each(self, part: Stretch) -> Iterator[Stretch]:
        marks, known = self._book.marks(part.first, part.number), self._book.digests(part.first, part.number)
        for index, (piece, found) in enumerate(part.each()):
            mark, width = marks[index], digests.LENGTH
            right = found == known[index * width : (index + 1) * width]
            kept = self._doubt or mark & (UNKNOWN | BAD)
            if right or not kept or not mark & DAY:
                yield part.part(index, 1)
            else:
                self.kept += 1
                self._book.mark(piece, array("H", (mark | (UNKNOWN if mark & UNKNOWN else self._doubt or UNKNOWN),)))


def _take(book: Ledger, reader: Reader, runs: Iterable[Run], state: ledger.State, name: str) -> None:
    """Read *runs* and commit their digests with *state*. Raises `NotSafe`, `Unavailable`."""
    _commit(book, _entries(reader.read(runs), reader.piece, name), state, name)


def _commit(book: Ledger, entries: Iterable[tuple[int, bytes]], state: ledger.State, name: str) -> None:
    try:
        book.commit(entries, state)
    except OSError as error:
        raise Unavailable(
            f"the ledger of volume {name} cannot be written: {error.strerror}",
            hint=f"the backup is on the store; free space in the state folder, then run: lukshook after-backup {name}",
        ) from error


def _entries(stretches: Iterable[Stretch], size: int, name: str) -> Iterator[tuple[int, bytes]]:
    for stretch in stretches:
        for piece, found in stretch.each():
            if piece % _CHUNK == 0:  # a hole may be as long as the image
                signals.check()
            if found is None:
                where = piece * size
                raise NotSafe(
                    f"what was written to the image of volume {name} cannot be read back at byte {where}",
                    hint="the last backup is not safely stored; check the store and run it again",
                )
            yield piece, found


def start(work: Work, image: ImageFile) -> None:
    """A ledger for a new image: all of it is read. Raises `NotSafe`, `Unavailable`."""
    with writing(work), ledger.begin(work.state.ledger, image.size, "") as book:
        done = evolve(book.state, closed=time.time(), written=work.state.known.written)
        _take(book, book.reader(image.descriptor), pieces.whole(image.size, book.state.piece), done, work.name)


def accept(work: Work, image: ImageFile) -> None:
    """*image* counts as it is: no piece of it is known any more. Raises `Unavailable`."""
    book = _loaded(work.state)
    if book is None:
        return
    length = image.size
    check_length(work.name, work.state.known, length)
    with writing(work), book:
        book.set_unknown(pieces.whole(length, book.state.piece))
        book.commit((), evolve(book.state, size=length, grown=0))
        book.forget()


def renew(work: Work, image: ImageFile) -> None:
    """All of a closed *image* has changed, and counts as it is read now. Raises `NotSafe`, `Unavailable`."""
    book = _loaded(work.state)
    if book is None:
        return
    with writing(work), book:
        length = book.state.own_length(image.size)
        done = evolve(book.state, size=length, generation=book.state.generation + 1)
        _take(book, book.reader(image.descriptor, length), pieces.whole(length, book.state.piece), done, work.name)


@contextmanager
def header_changing(state: KnownState, image: ImageFile, length: int) -> Iterator[None]:
    """The first *length* bytes of a closed image change meanwhile, and are read back. Raises `NotSafe`."""
    with _changing(state, image, 0, length):
        yield


@contextmanager
def length_changing(state: KnownState, image: ImageFile, target: int) -> Iterator[None]:
    """A closed image gets *target* bytes meanwhile; from its end on, it is read again. Raises `NotSafe`.

    A shorter length is noted before: an image that is shorter than its ledger says has lost its end.
    """
    edge = min(image.size, target)
    with _changing(state, image, max(edge - 1, 0), None, target=target):
        yield


def take_length(state: KnownState, image: ImageFile) -> None:
    """Where *image* is longer than it was closed, its owner says that this is right. Raises `NotSafe`."""
    length, book = image.size, _loaded(state)
    if book is None:
        return
    book.close()
    if length > book.state.size:
        with length_changing(state, image, length):
            pass


def check_length(volume: str, known: Known, length: int) -> None:
    """Check that a ledger can be begun of an image of *length* bytes: a store can make a file as long as it likes.

    Raises `Refused`.
    """
    if known.pins is None or known.extent is None:
        return
    end = known.pins["offset"] + known.extent
    if length > max(end * _MOST_LEAP, _LONG):
        raise Refused(
            f"the image of volume {volume} has {sizes.show(length)}, and its file system needs {sizes.show(end)}",
            hint="who else can write to the image? what is behind its file system is not needed",
        )


@contextmanager
def _changing(
    state: KnownState, image: ImageFile, begin: int, end: int | None, target: int | None = None
) -> Iterator[None]:
    """The bytes from *begin* to *end*, None for all that follow, change outside of an opening.

    *target*: the length that the image gets; None: it keeps its length.
    """
    book = _loaded(state)
    if book is None:
        yield
        return
    with book:
        book.set_unknown(_between(book, book.state.size, begin, end))
        if target is not None:
            begin = min(begin, max(book.state.size - 1, 0))  # one that was killed may have made it longer
            grown = target if target > book.state.size else 0
            book.save(evolve(book.state, size=min(book.state.size, target), grown=grown))
        yield
        if book.state.writing:  # the next clean close decides
            return
        length = book.state.own_length(image.size)
        reader, runs = book.reader(image.descriptor, length), _between(book, length, begin, end)
        _take(book, reader, runs, evolve(book.state, size=length, grown=0), state.volume)


def _between(book: Ledger, length: int, begin: int, end: int | None) -> tuple[Run, ...]:
    return pieces.runs([(begin, (length if end is None else end) - begin)], length, book.state.piece)


def check_sample(work: Work, image: ImageFile) -> None:
    """Check that some pieces of *image* are as this host wrote them, before the key is used. Raises `Refused`."""
    book = _loaded(work.state)
    if book is None:
        return
    with book:
        if book.state.writing or book.state.uuid not in ("", _uuid(work.state)):
            return
        end = time.monotonic() + _SAMPLE_SECONDS
        for piece in random.sample(range(book.count), min(_SAMPLE, book.count)):
            if time.monotonic() > end:
                return
            _check_piece(book, image, piece, work.name)


def check_found(work: Work) -> None:
    """Check that no piece was found damaged and is so still. Raises `Refused`."""
    book = _loaded(work.state)
    if book is None:
        return
    with book:
        number = sum(1 for _ in book.bad())
    if number:
        raise Refused(
            f"the image of volume {work.name} is not as this host wrote it: damaged pieces: {number}",
            hint=f"which files are damaged: lukshook verify --name-files {work.name}",
        )


def _check_piece(book: Ledger, image: ImageFile, piece: int, name: str) -> None:
    if book.marks(piece, 1)[0] & UNKNOWN or (piece + 1) * book.state.piece > image.size:
        return
    for stretch in book.reader(image.descriptor).read(((piece, 1),)):
        found = next(iter(stretch.each()))[1]
    if found in (None, book.digests(piece, 1)):
        return
    old = found != digests.HOLE and found == book.earlier(piece)
    raise Refused(
        f"the image of volume {name} is not as this host wrote it: the piece at byte {piece * book.state.piece} "
        + ("is older" if old else "has changed"),
        hint=f"how much is damaged: lukshook verify {name}; to use the image as it is, if this host was restored: "
        f"lukshook trust {name}",
    )


def _uuid(state: KnownState) -> str:
    pins = state.known.pins
    return str(pins["uuid"]) if pins else ""


def _known_or_new(work: Work, image: ImageFile) -> Ledger:
    try:
        book = ledger.load(work.state.ledger)
    except json_files.Damaged as error:
        work.site.warn(
            f"the ledger of volume {work.name} is damaged, so lukshook begins a new one: {error}; "
            f"run: lukshook verify {work.name}"
        )
        book = None
    if book is not None and book.state.uuid in ("", _uuid(work.state)):
        return book
    check_length(work.name, work.state.known, image.size)
    return ledger.begin(work.state.ledger, image.size, _uuid(work.state))


def load(state: KnownState, *, writable: bool = True) -> Ledger | None:
    """The ledger, or None where there is none; without *writable* only to be read, as in a dry run.

    Raises `json_files.Damaged`, `Unavailable`, `Denied`.
    """
    try:
        return ledger.load(state.ledger, writable=writable)
    except PermissionError as error:
        raise Denied(
            f"the ledger of volume {state.volume} cannot be read: permission denied",
            hint="run as root, or as the user who opens the volume",
        ) from error
    except OSError as error:  # it completes a change that was interrupted
        raise Unavailable(
            f"the ledger of volume {state.volume} cannot be read or brought up to date: {error.strerror}",
            hint=f"is there free space for {state.ledger}?" if writable else "run it without --dry-run",
        ) from error


def _loaded(state: KnownState) -> Ledger | None:
    """The ledger, or None where there is none, or one that the next opening replaces."""
    with suppress(json_files.Damaged):
        return load(state)
    return None


@contextmanager
def writing(work: Work) -> Iterator[None]:
    """While the ledger is written. Raises `Unavailable` where that fails."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the ledger of volume {work.name} cannot be written: {error.strerror}",
            hint=f"free space for {work.state.ledger}, or drop ledger = true",
        ) from error

"""The ledger: digests of pieces, the file format, and that an interrupted change of it is complete or did not begin."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.ledger import changes, digests, ledger, pieces, reading
from lukshook.ledger.ledger import Ledger
from lukshook.ledger.pieces import PIECE
from lukshook.system import json_files

SIZE = 5 * PIECE + 1234


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """An image of six pieces: two with data, a hole, data, a hole, and a short last one with data."""
    path = tmp_path / "image"
    with path.open("wb") as out:
        out.truncate(SIZE)
        for number, length in ((0, PIECE), (1, PIECE), (3, PIECE), (5, 1234)):
            out.seek(number * PIECE)
            out.write(random.Random(number).randbytes(length))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def fresh(tmp_path: Path, size: int = SIZE) -> Ledger:
    return ledger.begin(tmp_path / "v.ledger", size, "uuid")


def read(book: Ledger, image: int, runs: tuple[pieces.Run, ...] | None = None) -> dict[int, bytes | None]:
    stretches = book.reader(image).read(runs or pieces.whole(SIZE, PIECE))
    return {number: found for stretch in stretches for number, found in stretch.each()}


def test_every_piece_has_a_digest(tmp_path: Path, image: int) -> None:
    with fresh(tmp_path) as book:
        found = read(book, image)
    assert list(range(6)) == list(found)
    assert [2, 4] == [number for number, value in found.items() if value == digests.HOLE]
    assert len(set(found.values())) == 5
    content = memoryview(os.pread(image, PIECE, 5 * PIECE))
    assert found[5] == digests.digest(book.secret, content)


def test_zeros_that_are_written_are_a_hole_too(tmp_path: Path, image: int) -> None:
    os.pwrite(image, bytes(PIECE), 2 * PIECE)
    with fresh(tmp_path) as book:
        assert read(book, image)[2] == digests.HOLE


def test_any_changed_byte_changes_the_digest(tmp_path: Path, image: int) -> None:
    with fresh(tmp_path) as book:
        before = read(book, image)
        for place in random.Random(1).sample(range(SIZE), 60):
            old = os.pread(image, 1, place)
            os.pwrite(image, bytes([old[0] ^ 1]), place)
            after = read(book, image, ((place // PIECE, 1),))
            assert after[place // PIECE] != before[place // PIECE]
            os.pwrite(image, old, place)
        assert read(book, image) == before


def test_two_ledgers_have_different_digests(tmp_path: Path, image: int) -> None:
    """A store that knows one cannot prepare anything for another."""
    with fresh(tmp_path / "a") as one, fresh(tmp_path / "b") as other:
        assert read(one, image)[0] != read(other, image)[0]


def test_a_shortened_image_has_pieces_that_cannot_be_read(tmp_path: Path, image: int) -> None:
    os.ftruncate(image, 3 * PIECE + 5)
    with fresh(tmp_path) as book:
        found = read(book, image)
    assert [3, 4, 5] == [number for number, value in found.items() if value is None]


def test_a_piece_that_the_disk_cannot_read(tmp_path: Path, image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def broken(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= PIECE < offset + len(buffers[0]):
            raise OSError(5, "Input/output error")
        return whole(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    with fresh(tmp_path) as book:
        found = read(book, image)
    assert [1] == [number for number, value in found.items() if value is None]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_file_system_without_direct_reads(
    tmp_path: Path, image: int, monkeypatch: pytest.MonkeyPatch, when: str, code: int
) -> None:
    """Some refuse the flag when a file is opened, others accept it there and refuse each read."""
    opens, reads = os.open, os.preadv

    def opened(path: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if when == "opened" and flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return opens(path, flags, *rest, dir_fd=dir_fd)

    def read_it(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return reads(descriptor, buffers, offset)

    with fresh(tmp_path) as book:
        expected = read(book, image), book.reader(image).content(1)
        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "preadv", read_it)
        assert expected == (read(book, image), book.reader(image).content(1))
    assert None not in expected[0].values()


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ((), ()),
        (((0, 1),), ((0, 1),)),
        (((PIECE - 1, 2),), ((0, 2),)),
        (((3 * PIECE, PIECE), (0, PIECE)), ((0, 1), (3, 1))),
        (((0, PIECE), (PIECE, PIECE)), ((0, 2),)),
        (((0, 10 * PIECE), (PIECE, 1)), ((0, 6),)),
        (((SIZE - 1, 4096),), ((5, 1),)),
        (((SIZE, 4096), (7, 0)), ()),
    ],
)
def test_runs(extents: tuple[tuple[int, int], ...], expected: tuple[pieces.Run, ...]) -> None:
    assert expected == pieces.runs(extents, SIZE, PIECE)


def test_runs_name_every_piece_that_is_touched() -> None:
    chance = random.Random(2)
    for _ in range(300):
        extents = [(chance.randrange(SIZE), chance.randrange(1, 3 * PIECE)) for _ in range(chance.randrange(6))]
        touched = {place // PIECE for at, length in extents for place in range(at, min(at + length, SIZE), 512)}
        touched |= {min(at + length - 1, SIZE - 1) // PIECE for at, length in extents}
        runs = pieces.runs(extents, SIZE, PIECE)
        assert touched == {first + index for first, number in runs for index in range(number)}
        assert pieces.total(runs) == len(touched)


def test_a_new_ledger_knows_nothing(tmp_path: Path) -> None:
    fresh(tmp_path)
    found = ledger.load(tmp_path / "v.ledger")
    assert found is not None
    with found as book:
        assert [ledger.UNKNOWN] * 6 == list(book.marks(0, 6))
        assert (book.count, book.state.size, book.state.generation) == (6, SIZE, 0)


def test_a_commit_is_kept(tmp_path: Path) -> None:
    with fresh(tmp_path) as book:
        book.commit([(1, b"a" * 16), (5, b"b" * 16)], evolve(book.state, generation=1))
        book.commit([(1, b"c" * 16)], evolve(book.state, generation=2))
    found = ledger.load(tmp_path / "v.ledger")
    assert found is not None
    with found as book:
        assert book.digests(0, 6) == bytes(16) + b"c" * 16 + bytes(48) + b"b" * 16
        assert (book.earlier(1), book.earlier(5)) == (b"a" * 16, bytes(16))
        assert book.state.generation == 2
        day = ledger.today()
        assert [ledger.UNKNOWN, day, *[ledger.UNKNOWN] * 3, day] == list(book.marks(0, 6))
    assert not (tmp_path / "v.ledger" / "changes").exists()


def test_holes_take_no_room_in_a_column(tmp_path: Path) -> None:
    count = 20_000
    with ledger.begin(tmp_path / "v.ledger", count * PIECE, "") as book:
        holes = ((piece, digests.HOLE) for piece in range(count) if piece != 9_000)
        book.commit(sorted([*holes, (9_000, b"a" * 16)]), book.state)
        assert b"a" * 16 == book.digests(9_000, 1)
        assert {ledger.today()} == set(book.marks(0, count))
    assert (tmp_path / "v.ledger" / "digests").stat().st_blocks * 512 < count * 16 // 2


def test_no_ledger(tmp_path: Path) -> None:
    assert ledger.load(tmp_path / "v.ledger") is None


def test_a_shorter_image_forgets_what_was_behind_it(tmp_path: Path) -> None:
    """So that the same place counts as a hole when the image is longer again."""
    with fresh(tmp_path) as book:
        book.commit([(5, b"b" * 16)], book.state)
        book.commit([], evolve(book.state, size=2 * PIECE))
        book.commit([], evolve(book.state, size=SIZE))
        assert book.digests(5, 1) == bytes(16)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 1}', b"\xff", b'{"version": 2, "size": 1}'])
def test_a_damaged_ledger(tmp_path: Path, content: bytes) -> None:
    fresh(tmp_path)
    (tmp_path / "v.ledger" / "ledger.json").write_bytes(content)
    with pytest.raises(json_files.Damaged):
        ledger.load(tmp_path / "v.ledger")


def test_damaged_changes_are_not_applied(tmp_path: Path) -> None:
    with fresh(tmp_path) as book:
        changes.Changes.write(tmp_path / "v.ledger" / "changes", [(1, b"a" * 16)], {})
        raw = bytearray((tmp_path / "v.ledger" / "changes").read_bytes())
        raw[-1] ^= 1
        (tmp_path / "v.ledger" / "changes").write_bytes(raw)
        with pytest.raises(json_files.Damaged):
            book.complete()
        assert book.digests(1, 1) == bytes(16)


class _Killed(Exception):
    """What stands for the end of the process."""


def test_a_commit_that_is_interrupted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each of its system calls, and killed again while it is completed: the old state or the new."""
    calls = ("pwrite", "fsync", "replace", "ftruncate", "unlink", "open")
    states = set()
    for at in range(200):
        folder = tmp_path / str(at)
        with ledger.begin(folder, SIZE, "uuid") as book:
            book.commit([(0, b"x" * 16), (1, b"y" * 16)], evolve(book.state, generation=1))
            ended = _interrupted(book, at, calls, monkeypatch)
        for again in range(at % 7):
            _load_killed(folder, again, calls, monkeypatch)
        found = ledger.load(folder)
        assert found is not None
        with found:
            held = (found.state.generation, found.digests(0, 2), found.earlier(0))
            states.add(held)
        assert not (folder / "changes").exists()
        if ended:
            break
    else:
        pytest.fail("the commit has more system calls than were tried")
    old = (1, b"x" * 16 + b"y" * 16, bytes(16))
    new = (2, b"z" * 16 + b"y" * 16, b"x" * 16)
    assert states == {old, new}


def _interrupted(book: Ledger, at: int, calls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        _kill_before(at, calls, patch)
        try:
            book.commit([(0, b"z" * 16)], evolve(book.state, generation=2))
        except _Killed:
            return False
        return True


def _load_killed(folder: Path, at: int, calls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _kill_before(at, calls, patch)
        try:
            found = ledger.load(folder)
        except _Killed:
            return
        assert found is not None
        found.__exit__(None, None, None)


def _kill_before(at: int, calls: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    """Raise before the system call number *at*."""
    left = [at]

    def wrapped(name: str) -> object:
        whole = getattr(os, name)

        def call(*args: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise _Killed
            return whole(*args, **named)

        return call

    for name in calls:
        patch.setattr(os, name, wrapped(name))


def test_marks(tmp_path: Path) -> None:
    with fresh(tmp_path) as book:
        book.mark(2, array("H", (ledger.BAD | 3, 4)))
        assert [ledger.UNKNOWN] * 2 + [ledger.BAD | 3, 4] + [ledger.UNKNOWN] * 2 == list(book.marks(0, 6))
        assert [2] == list(book.bad())


def test_what_root_writes_is_private(tmp_path: Path) -> None:
    fresh(tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "v.ledger").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "v.ledger").stat().st_mode & 0o777 == 0o700


def test_a_silent_store(tmp_path: Path, image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in the kernel is left behind."""
    inside, outside = os.pipe()
    monkeypatch.setattr(os, "preadv", lambda *_: len(os.read(inside, 1)))
    monkeypatch.setattr(reading, "SECONDS", 0.1)
    with fresh(tmp_path) as book, pytest.raises(Exception, match="the store does not answer"):
        read(book, image)
    os.close(outside)

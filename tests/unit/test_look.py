"""A server that comes back is let in with the same image alone."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lukshook.store.remote import export, pieces, relay
from lukshook.store.remote.connection import Broken, Writes
from lukshook.store.remote.export import Export
from lukshook.store.remote.look import Look
from lukshook.store.remote.pieces import Pieces
from lukshook.store.remote.reading import Reading
from lukshook.store.remote.watch import Watch

LENGTH = 1 << 16
HEADER = b"LUKS\xba\xbe" + bytes(range(250)) * 16
IMAGE = HEADER.ljust(LENGTH, b"\0")
CAN = Export(LENGTH, flushes=True, syncs=True)


def simple(request: bytes, image: bytes) -> bytes:
    """The answer of a server with that *image*."""
    cookie, offset, length = struct.unpack(">8x8sQI", request)
    return struct.pack(">II8s", 0x67446698, 0, cookie) + image[offset : offset + length]


def looked(folder: Path, image: bytes, now: Export = CAN) -> Pieces:
    """A connection to a server with that *image*, which is then used. Raises `Broken`."""
    known = Pieces()
    one = Look(folder, now, known, extended=False)
    asked = one.requests
    for at in range(0, len(asked), 28):
        assert not one.is_done
        one.take(simple(asked[at : at + 28], image))
    assert one.is_done
    export.note(folder, now)
    return known


def write(known: Pieces, offset: int, content: bytes, unsynced: int = 0, cookie: bytes = b"a write.") -> None:
    """A write that the server has answered."""
    if known.asked(cookie, offset, len(content)):
        known.content(cookie, content[: pieces.MOST])
    known.answered(cookie, unsynced)


def with_piece(image: bytes, offset: int, content: bytes) -> bytes:
    return image[:offset] + content + image[offset + len(content) :]


OTHERS = {
    "an empty file": bytes(LENGTH),
    "another image": with_piece(IMAGE, 168, b"another UUID"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_image_is_refused(tmp_path: Path, other: bytes) -> None:
    """However often it comes; the right one is let in again."""
    looked(tmp_path, IMAGE)
    for _ in range(2):
        with pytest.raises(Broken, match="another image"):
            looked(tmp_path, other)
    looked(tmp_path, IMAGE)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Export(LENGTH - 512, flushes=True, syncs=True), "bytes long"),
        (Export(LENGTH, syncs=True), "cannot flush"),
        (Export(LENGTH, flushes=True), "cannot sync"),
        (Export(LENGTH, flushes=True, syncs=True, read_only=True), "takes no writes"),
    ],
)
def test_a_server_that_offers_less_is_refused(tmp_path: Path, now: Export, why: str) -> None:
    """As the first connection would have been, or because more is at stake then. More is no harm."""
    looked(tmp_path, IMAGE)
    with pytest.raises(Broken, match=why):
        looked(tmp_path, IMAGE, now)
    looked(tmp_path, IMAGE, Export(LENGTH, flushes=True, syncs=True, zeroes=True))
    assert CAN == export.noted(tmp_path)


def test_an_older_copy_of_the_image_is_refused(tmp_path: Path) -> None:
    """Its begin is the same, but what was written last is not there."""
    known = looked(tmp_path, IMAGE)
    now = IMAGE
    for at in range(8192, 40960, 1024):
        content = os.urandom(1024)
        write(known, at, content)
        now = with_piece(now, at, content)
    known.note_all(tmp_path)
    with pytest.raises(Broken, match="another image"):
        looked(tmp_path, IMAGE)
    again = looked(tmp_path, now)
    again.note_all(tmp_path)
    with pytest.raises(Broken, match="another image"):
        looked(tmp_path, IMAGE)


def test_a_new_header_is_the_one_that_counts(tmp_path: Path) -> None:
    """As `create`, a new key and `header restore` write it; also where the process is killed at any moment."""
    known = looked(tmp_path, bytes(LENGTH))
    known.asked(b"a write.", 0, 4096)
    known.note_begin(tmp_path)
    for image in (bytes(LENGTH), IMAGE):
        looked(tmp_path, image)
    known.content(b"a write.", IMAGE[:4096])
    known.answered(b"a write.", 0)
    known.note_begin(tmp_path)
    with pytest.raises(Broken):
        looked(tmp_path, bytes(LENGTH))
    looked(tmp_path, IMAGE)


def test_a_connection_that_was_killed_leaves_the_begin_alone(tmp_path: Path) -> None:
    """It may have changed all other pieces since they were noted."""
    known = looked(tmp_path, IMAGE)
    write(known, 8192, b"a" * 512)
    known.note_all(tmp_path)
    now = with_piece(IMAGE, 8192, b"a" * 512)
    write(looked(tmp_path, now), 8192, b"b" * 512)
    looked(tmp_path, with_piece(IMAGE, 8192, b"b" * 512))


def test_what_is_not_stored_counts_for_nothing(tmp_path: Path) -> None:
    """A write without an answer, one that failed, one that no flush has stored, what two at once have written."""
    known = looked(tmp_path, IMAGE)
    piece = b"a" * 512
    for at in range(8192, 8192 + 6 * 512, 512):
        write(known, at, b"0" * 512)
    assert known.asked(b"no answer", 8192, 512)
    known.content(b"no answer", piece)
    write(known, 8192 + 100, piece)  # while that one has no answer
    assert known.asked(b"a failure", 8192 + 1024, 512)
    known.content(b"a failure", piece)
    known.failed(b"a failure")
    write(known, 8192 + 1536, piece, unsynced=1)
    write(known, 8192 + 2048, piece, unsynced=2)
    known.flushed(1)
    assert known.asked(b"a discard", 8192 + 2560, 512)
    known.answered(b"a discard", 0)
    known.note_all(tmp_path)
    assert {0, 8192 + 1536} == {one.offset for one in pieces.noted(tmp_path) or []}


def test_few_pieces_are_kept_and_always_the_begin(tmp_path: Path) -> None:
    """The last ones."""
    known = looked(tmp_path, IMAGE)
    for at in range(4096, LENGTH, 512):
        write(known, at, b"a" * 512)
    known.note_all(tmp_path)
    kept = [one.offset for one in pieces.noted(tmp_path) or []]
    assert [0, *range(LENGTH - 16 * 512, LENGTH, 512)] == sorted(kept)


def test_a_server_that_reads_larger_blocks_alone_is_believed(tmp_path: Path) -> None:
    """It can be used as before."""
    for _ in range(2):
        known = Pieces()
        one = Look(tmp_path, CAN, known, extended=False)
        if one.requests:
            one.take(struct.pack(">II8s", 0x67446698, 22, one.requests[8:16]))
        assert one.is_done
        export.note(tmp_path, CAN)
        write(known, 8192, b"a" * 512)
        known.note_begin(tmp_path)
        known.note_all(tmp_path)
    assert pieces.noted(tmp_path) is None


def chunks(cookie: bytes, head: Callable[[int, int, int], bytes]) -> bytes:
    """Data, a hole, and an end without anything. *head*: of flags, kind, and length."""
    return (
        head(0, 1, 8 + 100) + struct.pack(">Q", 4096 + 412) + b"b" * 100
        + head(0, 2, 12) + struct.pack(">QI", 4096 + 100, 312)
        + head(0, 1, 8 + 100) + struct.pack(">Q", 4096) + b"a" * 100
        + head(1, 0, 0)
    )  # fmt: skip


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_structured_answers(extended: bool, size: int) -> None:
    """In any order, and pieces of any size."""
    reading = Reading([(4096, 512)], extended=extended)
    asked = reading.requests
    assert (32 if extended else 28) == len(asked)
    cookie = asked[8:16]

    def head(flags: int, kind: int, length: int) -> bytes:
        if extended:
            return struct.pack(">IHH8sQQ", 0x6E8A278C, flags, kind, cookie, 4096, length)
        return struct.pack(">IHH8sI", 0x668E33EF, flags, kind, cookie, length)

    said = chunks(cookie, head)
    for at in range(0, len(said), size):
        assert not reading.is_done
        reading.take(said[at : at + size])
    assert reading.is_done
    assert {4096: b"a" * 100 + bytes(312) + b"b" * 100} == reading.found
    assert not reading.failed


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP",
        struct.pack(">II8s", 0x67446698, 0, b"a cookie"),
        struct.pack(">IHH8sI", 0x668E33EF, 1, 1, b"look 000", 1 << 31),
        struct.pack(">IHH8sI", 0x668E33EF, 1, 1, b"look 000", 16) + struct.pack(">Q8x", 4096 + 510),
        struct.pack(">IHH8sI", 0x668E33EF, 1, 1, b"look 000", 16) + struct.pack(">Q8x", 0),
        struct.pack(">IHH8sI", 0x668E33EF, 1, 2, b"look 000", 12) + struct.pack(">QI", 4096, 1 << 31),
        struct.pack(">IHH8sI", 0x668E33EF, 1, 9, b"look 000", 12) + bytes(12),
    ],
)
def test_foreign_answers(said: bytes) -> None:
    """A server can say anything."""
    with pytest.raises(Broken):
        Reading([(4096, 512)], extended=False).take(said)


def test_an_error_in_chunks() -> None:
    """It is one of the read."""
    reading = Reading([(4096, 512)], extended=False)
    reading.take(struct.pack(">IHH8sI", 0x668E33EF, 1, 1 << 15 | 1, b"look 000", 6) + bytes(6))
    assert reading.is_done
    assert reading.failed


GREETING = b"NBDMAGICIHAVEOPT\0\3"
GIVEN = (
    struct.pack(">QIII", 0x3E889045565A9, 7, 3, 12) + struct.pack(">HQH", 0, LENGTH, 0b1101)
    + struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
)  # fmt: skip


@pytest.mark.parametrize("same", [True, False])
def test_the_client_has_no_export_before_the_image_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Else it would take that for a connection, and wait for ever: its patience begins with each one anew."""
    monkeypatch.setattr(relay, "is_served", lambda: None)
    looked(tmp_path, IMAGE)
    (client, ask), (hear, to_client) = os.pipe(), os.pipe()
    (asked, to_server), (server, say) = os.pipe(), os.pipe()
    monkeypatch.setattr(relay, "CLIENT_IN", client)
    monkeypatch.setattr(relay, "CLIENT_OUT", to_client)
    watch = Watch((to_server, server), tmp_path, 30.0, Writes(tmp_path))
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            watch.serve()
        except Broken as error:
            raised.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    os.write(say, GREETING)
    assert GREETING == os.read(hear, 100)
    os.write(say, GIVEN)
    request = os.read(asked, 100)
    assert not select.select([hear], [], [], 0.2)[0]
    os.write(say, simple(request, IMAGE if same else bytes(LENGTH)))
    if same:
        assert GIVEN == os.read(hear, 1000)
        os.close(ask)
    thread.join(30)
    assert not thread.is_alive()
    assert same == (not raised)
    assert not select.select([hear], [], [], 0)[0]
    for descriptor in {client, hear, to_client, asked, to_server, server, say} | (set() if same else {ask}):
        os.close(descriptor)

"""A connection that is watched: what goes through is not changed, and a server that says nothing is left."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from lukshook.store.remote import connection, relay
from lukshook.store.remote.connection import Broken, Tool, Writes
from lukshook.store.remote.due import Due
from lukshook.store.remote.export import Export, noted
from lukshook.store.remote.kind import LATE, LOST, OWN_WORDS, WRITING
from lukshook.store.remote.stream import Stream
from lukshook.store.remote.watch import _FEW, Answers, Watch
from lukshook.system import journald, kernel

COOKIE = b"a cookie"
GREETING = b"NBDMAGICIHAVEOPT\0\3"
GO = b"\0\0\0\3IHAVEOPT" + struct.pack(">II", 7, 6) + bytes(6)
ACK = struct.pack(">QIII", 0x3E889045565A9, 7, 3, 12) + bytes(12) + struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)


def request(kind: int, length: int, cookie: bytes = COOKIE) -> bytes:
    return struct.pack(">IHH8sQI", 0x25609513, 0, kind, cookie, 4096, length) + (bytes(length) if kind == 1 else b"")


def simple(cookie: bytes = COOKIE, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">II8s", 0x67446698, error, cookie) + data


def chunk(flags: int, data: bytes) -> bytes:
    return struct.pack(">IHH8sI", 0x668E33EF, flags, 1, COOKIE, len(data)) + data


def long_request(kind: int, length: int, cookie: bytes = COOKIE) -> bytes:
    """With an extended header; qemu sets the flag that its length is that of the data that follows."""
    flags = 32 if kind == 1 else 0
    head = struct.pack(">IHH8sQQ", 0x21E41C71, flags, kind, cookie, 4096, length)
    return head + (bytes(length) if kind == 1 else b"")


def long_chunk(flags: int, data: bytes = b"", cookie: bytes = COOKIE, kind: int = 1) -> bytes:
    return struct.pack(">IHH8sQQ", 0x6E8A278C, flags, kind, cookie, 4096, len(data)) + data


class Both:
    """Both directions, fed as they come."""

    def __init__(self) -> None:
        self.answers = Answers(Due(0.0))
        self.client, self.server = Stream(self.answers.from_client()), Stream(self.answers.from_server())
        self.server.feed(GREETING)
        self.client.feed(GO)
        self.server.feed(ACK)
        assert self.answers.begun


def test_what_has_no_answer_yet() -> None:
    """Reads, writes, answers in chunks and with errors, in any order."""
    both = Both()
    both.client.feed(request(0, 512) + request(1, 512, b"another.") + request(3, 0, b"a third."))
    assert {COOKIE: 512, b"another.": 0, b"a third.": 0} == both.answers.missing
    assert {b"another."} == both.answers.writes
    both.server.feed(simple(b"a third."))
    both.server.feed(chunk(0, bytes(100)))
    both.server.feed(chunk(1, bytes(412)) + simple(b"another.", 5))
    assert not both.answers.missing
    assert not both.answers.writes
    both.client.feed(request(0, 8) + request(0, 8, b"another."))
    both.server.feed(simple(error=5) + simple(b"another.", data=b"12345678"))
    assert not both.answers.missing
    assert not both.answers.leaving
    both.client.feed(request(2, 0))
    assert both.answers.leaving


def test_extended_headers() -> None:
    """qemu 8.2 and newer use them with a server that can too, such as its own qemu-nbd."""
    both = Both()
    both.client.feed(long_request(0, 512) + long_request(1, 512, b"another.") + long_request(6, 1 << 40, b"a third."))
    assert {COOKIE: 512, b"another.": 0, b"a third.": 0} == both.answers.missing
    assert {b"another.", b"a third."} == both.answers.writes
    both.server.feed(long_chunk(0, bytes(100)) + long_chunk(1, bytes(412)))
    both.server.feed(long_chunk(1, cookie=b"another.", kind=0))
    assert [b"a third."] == list(both.answers.missing)
    both.server.feed(long_chunk(1, b"\0\0\0\5\0\0", b"a third.", 1 << 15 | 1))
    assert both.answers.failed
    assert not both.answers.missing
    both.client.feed(long_request(7, 8) + long_request(2, 0))
    assert both.answers.leaving


def test_pieces_of_any_size_say_the_same(chance: Random) -> None:
    """A stream has no borders."""
    both = Both()
    said = b"".join(request(chance.choice((0, 1)), 300, struct.pack(">Q", number)) for number in range(50))
    while said:
        size = chance.randrange(1, 400)
        both.client.feed(said[:size])
        said = said[size:]
    assert 50 == len(both.answers.missing)
    answers = b"".join(simple(cookie, data=bytes(brings)) for cookie, brings in list(both.answers.missing.items()))
    while answers:
        size = chance.randrange(1, 400)
        both.server.feed(answers[:size])
        answers = answers[size:]
    assert not both.answers.missing


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2p1 Debian", GREETING + b"HTTP", GREETING + simple()])
def test_a_server_that_says_anything_else(said: bytes) -> None:
    """An answer that nobody asked for, too."""
    answers = Answers(Due(0.0))
    with pytest.raises(Broken):
        Stream(answers.from_server()).feed(said)
    with pytest.raises(Broken):
        Stream(answers.from_client()).feed(b"GET / HTTP/1.1\r\n\r\n")


class Ends:
    """The pipes around a watch."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, silence: float) -> None:
        (client, self.ask), (self.hear, to_client) = os.pipe(), os.pipe()
        (self.asked, to_server), (server, self.say) = os.pipe(), os.pipe()
        monkeypatch.setattr(relay, "CLIENT_IN", client)
        monkeypatch.setattr(relay, "CLIENT_OUT", to_client)
        monkeypatch.setattr(signal, "alarm", lambda seconds: 0)
        self.watch = Watch((to_server, server), folder, silence, Writes(folder))
        self.all = {client, self.ask, self.hear, to_client, self.asked, to_server, server, self.say}
        self.raised: list[BaseException] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.watch.serve()
        except (Broken, OSError) as error:
            self.raised.append(error)

    def ended(self) -> BaseException | None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.raised[0] if self.raised else None

    def close(self) -> None:
        for descriptor in (self.ask, self.say):
            os.close(descriptor)
        self.ended()
        for descriptor in self.all - {self.ask, self.say}:
            os.close(descriptor)


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Ends]]:
    made: list[Ends] = []

    def make(silence: float) -> Ends:
        made.append(Ends(tmp_path, monkeypatch, silence))
        return made[-1]

    yield make
    for one in made:
        one.close()


def begin(ends: Ends) -> None:
    """What both sides say before the first request."""
    os.write(ends.say, GREETING)
    assert os.read(ends.hear, 18) == GREETING
    os.write(ends.ask, GO)
    assert os.read(ends.asked, len(GO)) == GO
    os.write(ends.say, ACK)
    assert os.read(ends.hear, len(ACK)) == ACK


def test_what_goes_through_is_not_changed(ends: Callable[[float], Ends], tmp_path: Path) -> None:
    """In both directions; and when the client leaves, it ends."""
    one = ends(30.0)
    begin(one)
    os.write(one.ask, request(1, 64))
    assert os.read(one.asked, 100) == request(1, 64)
    assert (tmp_path / WRITING).exists()
    os.write(one.say, simple())
    assert os.read(one.hear, 100) == simple()
    os.write(one.ask, request(2, 0))
    assert one.ended() is None
    assert os.read(one.asked, 100) == request(2, 0)


def test_a_silent_server_is_left(ends: Callable[[float], Ends]) -> None:
    """Though it answered something else meanwhile."""
    one = ends(1.0)
    begin(one)
    both = request(0, 64) + request(0, 64, b"another.")
    os.write(one.ask, both)
    assert os.read(one.asked, 100) == both
    os.write(one.say, simple(data=bytes(64)))
    found = one.ended()
    assert isinstance(found, Broken)
    assert found.silent


@pytest.mark.parametrize("asked", [request(0, 64), request(1, 64), request(3, 0)], ids=("read", "write", "flush"))
@pytest.mark.parametrize("others", [False, True], ids=("a byte", "all other answers"))
def test_a_server_that_says_something_now_and_then_holds_nobody(
    ends: Callable[[float], Ends], asked: bytes, others: bool
) -> None:
    """What is missing is the rest of an answer, or all of it."""
    one = ends(1.0)
    begin(one)
    os.write(one.ask, asked)
    heard(one.asked, len(asked))
    for byte in simple(data=bytes(64)):
        if not one.thread.is_alive():
            break
        if others:
            os.write(one.ask, request(0, 64, b"another."))
            if kernel.wait_until(lambda: b"another." in one.watch.answers.missing, 2.0):
                os.write(one.say, simple(b"another.", data=bytes(64)))
        else:
            os.write(one.say, bytes([byte]))
        time.sleep(0.4)
    found = one.ended()
    assert isinstance(found, Broken)
    assert found.silent
    assert "a request has no answer" in str(found)


def test_a_slow_line_has_time_for_what_is_under_way() -> None:
    """10 kB/s, with 4 MiB before a request; a part of those answered does not shorten that."""
    due = Due(10.0)
    for number in range(32):
        due.asked(number, 1 << 17, stores=True)
    due.asked("a read", 4096, stores=False)
    for second in range(420):
        due.passed(1.0)
        assert not due.is_late()
        due.answered(second // 13)
    for _ in range(3000):
        due.passed(1.0)
    assert due.is_late()
    due.answered("a read")
    assert not due.is_late()


def test_a_process_of_ours_that_was_frozen_has_not_waited() -> None:
    """What the server said meanwhile is still to be read."""
    due = Due(10.0)
    due.asked("a read", 4096, stores=False)
    due.passed(3600.0)
    assert not due.is_late()


def test_the_log_has_one_line_when_it_is_lost_and_one_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a new connection is tried."""
    folder = tmp_path / "offsite.remote"
    folder.mkdir()
    (folder / "noted").write_text('{"url": "ssh://h/b"}')
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "journal"))
    monkeypatch.setattr(journald, "JOURNAL", tmp_path / "journal")
    for _ in range(3):
        connection.tell_lost(folder, "no answer within 90 s")
    for _ in range(2):
        connection.tell_back(folder)
    journal.settimeout(0.0)
    lost, back = journal.recv(4096).decode(), journal.recv(4096).decode()
    assert "MESSAGE=offsite: the connection to ssh://h/b is lost: no answer within 90 s; writing waits\n" in lost
    assert "LUKSHOOK_VOLUME=offsite\n" in lost
    assert "MESSAGE=offsite: the connection to ssh://h/b is back after " in back
    with pytest.raises(BlockingIOError):
        journal.recv(4096)
    assert not (folder / LOST).exists()
    journal.close()


#: How ssh, or another tool, ends: "$1" is the file with its own words, standard error is open to the far side too.
ENDS = {
    "the far side has closed": ('echo "Connection to h closed by remote host." >"$1"; exit 255', False),
    "the server there has ended": ("exit 0", False),
    "the tool waits for what we say": ("exec >&-; cat >/dev/null; exit 1", False),
    "killed": ("kill -9 $$", True),
    "ssh gave up": ('echo "Timeout, server h not responding." >"$1"; exit 255', True),
    "socat gave up": ('echo "socat[1] E read(5): Connection timed out" >&2; exit 1', True),
    "the far side says that all ended well": (
        'echo "ended 0" >&2; exec >&-; sleep 1; echo "Timeout, server h not responding." >"$1"; exit 255',
        True,
    ),
    "the far side says that, and ssh is killed": ('echo "ended 0\nstatus 0" >&2; exec >&-; sleep 1; kill -9 $$', True),
    "the far side says more than anybody reads": (
        'echo "Timeout, server h not responding." >"$1"; head -c 200000 /dev/zero >&2; exit 255',
        True,
    ),
}


@pytest.mark.parametrize("ends", ENDS)
def test_whether_what_was_sent_may_still_arrive(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the far side has closed. Nothing that the far side writes can hide that the line was cut."""
    script, cut = ENDS[ends]
    with (tmp_path / "said").open("wb") as said:
        monkeypatch.setattr(connection, "ERRORS", said.fileno())
        with connection.tool(("sh", "-c", script, "sh", OWN_WORDS), tmp_path, {}) as tool:
            tool.answers.read()
            assert cut == tool.was_cut()
    assert ["said"] == os.listdir(tmp_path)
    writes = Writes(tmp_path)
    writes.begin()
    writes.end(late=cut)
    Writes(tmp_path).begin()
    assert cut == (tmp_path / LATE).exists()


def test_a_fault_of_our_own_leaves_the_note_that_writes_may_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an answer that is cut short, which nobody takes apart."""
    writes = Writes(tmp_path)
    watch = Watch((1, 1), tmp_path, 30.0, writes)

    def fault() -> None:
        writes.begin()
        watch.answers.writes.add(COOKIE)
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(watch, "serve", fault)
    unused = Tool(io.BytesIO(), io.BytesIO(), lambda seconds: None, tmp_path)
    with pytest.raises(struct.error):
        relay.serve(watch, unused, tmp_path, writes)
    Writes(tmp_path).begin()
    assert (tmp_path / LATE).exists()


def export(flags: int) -> bytes:
    """What a server says of an export with those flags."""
    info = struct.pack(">HQH", 0, 1 << 20, flags)
    return (
        struct.pack(">QIII", 0x3E889045565A9, 7, 3, len(info)) + info + struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
    )


@pytest.mark.parametrize("asked", [request(1, 64), request(4, 64), request(6, 64), long_request(1, 64)])
@pytest.mark.parametrize("flags", [0b0101, 0b1101], ids=("cannot sync", "can sync"))
def test_what_a_restart_may_lose(ends: Callable[[float], Ends], asked: bytes, flags: int, tmp_path: Path) -> None:
    """A write is synced before it is answered, where the server can do that; else what was not flushed counts."""
    one = ends(30.0)
    os.write(one.say, GREETING + export(flags))
    look(one)
    os.read(one.hear, 200)
    assert Export.of(1 << 20, flags) == noted(tmp_path)
    os.write(one.ask, GO)
    os.read(one.asked, len(GO))
    for byte in asked:  # in pieces of any size
        os.write(one.ask, bytes([byte]))
    heard = b""
    while len(heard) < len(asked):
        heard += os.read(one.asked, 100)
    can_sync = bool(flags & 8)
    assert (asked[:5] + bytes([asked[5] | can_sync]) + asked[6:]) == heard
    os.write(one.say, simple())
    assert simple() == os.read(one.hear, 100)
    assert can_sync != one.watch.answers.has_unflushed
    os.write(one.ask, request(3, 0))
    os.read(one.asked, 100)
    os.write(one.say, simple())
    os.read(one.hear, 100)
    assert not one.watch.answers.has_unflushed


def look(one: Ends, image: bytes = bytes(8192)) -> None:
    """Answer what is read of the image before the client has it."""
    while not one.watch._told and one.thread.is_alive():
        if select.select([one.asked], [], [], 0.01)[0]:
            cookie, offset, length = struct.unpack(">8x8sQI", heard(one.asked, 28))
            os.write(one.say, simple(cookie, data=image[offset : offset + length]))


CONTEXT = struct.pack(">QIII", 0x3E889045565A9, 10, 4, 19) + b"\0\0\0\7base:allocation"


def heard(descriptor: int, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += os.read(descriptor, count - len(found))
    return found


def between(one: Ends, asked: bytes, answer: bytes) -> None:
    """A request that the server gets, and its answer."""
    os.write(one.ask, asked)
    heard(one.asked, len(asked))
    os.write(one.say, answer)
    assert answer == heard(one.hear, len(answer))


def answered_here(one: Ends, asked: bytes, answer: bytes) -> None:
    """A request that the server never gets."""
    os.write(one.ask, asked)
    assert answer == heard(one.hear, len(answer))
    between(one, request(0, 8, b"the next"), simple(b"the next", data=bytes(8)))


def greeted(one: Ends, flags: int) -> None:
    """The server gives an export with those *flags*, and has a name for its holes."""
    said = GREETING + CONTEXT + export(flags)
    os.write(one.say, said)
    look(one)
    heard(one.hear, len(said))
    os.write(one.ask, GO)
    heard(one.asked, len(GO))


def test_a_flush_of_what_is_synced_has_nothing_to_do(ends: Callable[[float], Ends]) -> None:
    """It takes no round trip: the server has stored all that it has answered.

    The first flush goes to the server all the same: an earlier connection may have written.
    """
    one = ends(30.0)
    greeted(one, 0b1101)
    for _ in range(2):  # one that fails counts for nothing
        between(one, request(3, 0), simple(error=5))
    between(one, request(3, 0), simple())
    answered_here(one, request(3, 0), simple())
    between(one, request(1, 64), simple())
    answered_here(one, request(3, 0), simple())
    answered_here(one, long_request(3, 0), long_chunk(1, kind=0))


def test_a_flush_of_what_is_not_synced_goes_to_the_server(ends: Callable[[float], Ends]) -> None:
    """Unless nothing was answered since the last one."""
    one = ends(30.0)
    greeted(one, 0b0101)
    between(one, request(1, 64), simple())
    between(one, request(3, 0), simple())
    answered_here(one, request(3, 0), simple())
    between(one, request(1, 64), simple())
    between(one, request(3, 0), simple())


def test_a_flush_stores_nothing_that_was_answered_after_it_was_asked(ends: Callable[[float], Ends]) -> None:
    """So the next one goes to the server too."""
    one = ends(30.0)
    greeted(one, 0b0101)
    between(one, request(1, 64), simple())
    flush, late = request(3, 0, b"a flush."), request(1, 64, b"is late.")
    os.write(one.ask, flush + late)
    assert flush + late == heard(one.asked, len(flush + late))
    for answer in (simple(b"is late."), simple(b"a flush.")):
        os.write(one.say, answer)
        assert answer == heard(one.hear, len(answer))
    between(one, request(3, 0), simple())
    answered_here(one, request(3, 0), simple())


def fenced(one: Ends, trip: float) -> None:
    """The server lets no other connection in; to it and back, it takes *trip* seconds."""
    one.watch._writes = one.watch.answers.pieces = None
    os.write(one.say, GREETING)
    heard(one.hear, len(GREETING))
    os.write(one.ask, GO)
    heard(one.asked, len(GO))
    one.watch._trip = trip  # at most: what the clock says counts too
    one.watch._asked_at = None
    os.write(one.say, export(0b1101))
    heard(one.hear, len(export(0b1101)))


def is_synced(one: Ends, kind: int) -> bool:
    """Whether the server is asked to sync a write of that *kind*, which it answers."""
    asked = request(kind, 64)
    os.write(one.ask, asked)
    got = heard(one.asked, len(asked))
    os.write(one.say, simple())
    heard(one.hear, len(simple()))
    return bool(got[5])


@pytest.mark.parametrize("trip", [0.0, 1.0])
def test_over_a_slow_line_a_fenced_server_syncs_writes(ends: Callable[[float], Ends], trip: float) -> None:
    """There two flushes for each synced file would cost more."""
    one = ends(30.0)
    fenced(one, trip)
    assert bool(trip) == is_synced(one, 1)


@pytest.mark.parametrize("kind", [1, 4, 6])
def test_of_many_writes_behind_a_flush_only_the_first_are_synced(ends: Callable[[float], Ends], kind: int) -> None:
    """A hard disk there would have to sync for each of them. The flush that stores the others goes to the server."""
    one = ends(30.0)
    fenced(one, 1.0)
    between(one, request(3, 0), simple())
    assert [True] * _FEW + [False] * 2 == [is_synced(one, kind) for _ in range(_FEW + 2)]
    between(one, request(3, 0), simple())
    assert is_synced(one, kind)
    answered_here(one, request(3, 0), simple())


@pytest.mark.parametrize("make", [request, long_request])
def test_whether_a_small_piece_is_a_hole_is_not_asked(
    ends: Callable[[float], Ends], make: Callable[[int, int], bytes]
) -> None:
    """It would take as long as reading it. Whether a large one is, the server says."""
    one = ends(30.0)
    greeted(one, 0b0101)
    if make is request:
        said = b"\0\0\0\7" + struct.pack(">II", 65536, 0)
        answer = struct.pack(">IHH8sI", 0x668E33EF, 1, 5, COOKIE, len(said)) + said
    else:
        answer = long_chunk(1, b"\0\0\0\7" + struct.pack(">IQQ", 1, 65536, 0), kind=6)
    answered_here(one, make(7, 65536), answer)
    between(one, make(7, 65537), simple())


def test_our_own_answers_go_between_those_of_the_server(ends: Callable[[float], Ends], chance: Random) -> None:
    """Of which a part may be here already."""
    one = ends(30.0)
    greeted(one, 0b0101)
    between(one, request(3, 0), simple())
    for number in range(30):
        cookie = struct.pack(">Q", number)
        os.write(one.ask, request(0, 64, cookie))
        heard(one.asked, 28)
        answer = simple(cookie, data=chance.randbytes(64))
        at = chance.randrange(4, len(answer))
        os.write(one.say, answer[:at])
        assert answer[:4] == heard(one.hear, 4)
        os.write(one.ask, request(3, 0))
        assert kernel.wait_until(lambda: bool(one.watch._answered), 30.0)
        os.write(one.say, answer[at:])
        assert answer[4:] + simple() == heard(one.hear, len(answer) - 4 + 16)


def test_a_tool_that_hears_nothing_more_has_ended_the_connection(ends: Callable[[float], Ends]) -> None:
    """Though its output is still open: else nobody would ask whether something is lost with it."""
    one = ends(30.0)
    begin(one)
    os.close(one.asked)
    one.all.remove(one.asked)
    os.write(one.ask, request(1, 64))
    assert isinstance(one.ended(), Broken)


@pytest.mark.parametrize("is_cut_off", [True, False])
def test_a_tool_that_stays_when_the_server_has_left(
    ends: Callable[[float], Ends], monkeypatch: pytest.MonkeyPatch, is_cut_off: bool
) -> None:
    """Its errors are those of a broken connection: they never reach the client. An error of the server does."""
    one = ends(30.0)
    begin(one)
    monkeypatch.setattr(one.watch, "_is_cut_off", lambda: is_cut_off)
    os.write(one.ask, request(0, 64))
    os.read(one.asked, 100)
    os.write(one.say, simple(error=108))
    if is_cut_off:
        assert isinstance(one.ended(), Broken)
    else:
        assert simple(error=108) == os.read(one.hear, 100)

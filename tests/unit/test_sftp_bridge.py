"""What stands between NBD and SFTP, with a server and a client that say anything."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.store.remote import nbd_server, relay
from lukshook.store.remote.connection import Broken
from lukshook.store.remote.kind import EARLIER, LATE, WRITING
from lukshook.store.remote.nbd_server import FLUSH, READ, WRITE, NotNbd
from lukshook.store.remote.sftp_bridge import Bridge
from lukshook.store.sftp_client import SftpFile
from support.sftp_answers import answered

SIZE = 1 << 20


def closed(number: int) -> bytes:
    """The server has done the request of that number."""
    return struct.pack(">IBII", 9, 101, number, 0)


def test_an_answer_that_nobody_waits_for_is_passed_over(tmp_path: Path) -> None:
    """Whatever it is; an answer that fits nothing is an error all the same."""
    failed, opened, strange = (
        struct.pack(">IBII", 9, 101, 1, 4),
        struct.pack(">IBI", 10, 102, 2) + b"\0\0\0\1h",
        struct.pack(">IBII", 9, 101, 7, 0),
    )
    with answered(tmp_path, failed + opened + strange) as (sftp, _):
        SftpFile(sftp, b"h").leave()
        assert (102, b"\0\0\0\1h") == sftp.ask(3, b"")
        SftpFile(sftp, b"h").leave()
        with pytest.raises(OSError, match="fits no request"):
            sftp.ask(3, b"")


def test_an_answer_that_nobody_waits_for_may_come_late(tmp_path: Path) -> None:
    """In any order. None of them is left for what reads from the server next; one that fits nothing is an error."""
    opened = struct.pack(">IBI", 10, 102, 3) + b"\0\0\0\1h"
    with answered(tmp_path, closed(2) + opened + closed(1) + b"the rest" + closed(9)) as (sftp, answers):
        for _ in range(2):
            SftpFile(sftp, b"h").leave()
        assert (102, b"\0\0\0\1h") == sftp.ask(3, b"")
        sftp.settle()
        sftp.settle()
        assert b"the rest" == answers.read(8)
        SftpFile(sftp, b"h").leave()
        with pytest.raises(OSError, match="fits no request"):
            sftp.settle()


class Ends:
    """The pipes around a bridge: *ask* of and *hear* from the client's side, *asked* and *say* at the server's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, silence: float = 30.0) -> None:
        (client, self.ask), (self.hear, to_client) = os.pipe(), os.pipe()
        (self.asked, to_server), (server, self.say) = os.pipe(), os.pipe()
        monkeypatch.setattr(relay, "CLIENT_IN", client)
        monkeypatch.setattr(relay, "CLIENT_OUT", to_client)
        self.bridge = Bridge(b"\0\0\0\1h", SIZE, (to_server, server), folder, silence)
        self.all = [client, self.ask, self.hear, to_client, self.asked, to_server, server, self.say]
        self.threads: list[threading.Thread] = []

    def close(self) -> None:
        """The client and the server leave; then nobody uses the pipes any more."""
        for descriptor in {self.ask, self.say} & set(self.all):
            os.close(descriptor)
            self.all.remove(descriptor)
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        for descriptor in self.all:
            os.close(descriptor)

    def request(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> None:
        os.write(
            self.ask, struct.pack(">IHH8sQI", 0x25609513, 0, kind, b"a cookie", offset, length or len(data)) + data
        )

    def served(self) -> tuple[int, int, bytes]:
        """The next request at the server: kind, number, the rest."""
        length, kind, number = struct.unpack(">IBI", os.read(self.asked, 9))
        return kind, number, os.read(self.asked, length - 5) if length > 5 else b""

    def status(self, number: int, code: int) -> None:
        os.write(self.say, struct.pack(">IBII", 9, 101, number, code))

    def data(self, number: int, content: bytes) -> None:
        os.write(self.say, struct.pack(">IBII", 9 + len(content), 103, number, len(content)) + content)

    def answer(self, length: int = 0) -> tuple[int, bytes]:
        """What the client hears: errno(3), data."""
        _, error, cookie = struct.unpack(">II8s", os.read(self.hear, 16))
        assert cookie == b"a cookie"
        return error, os.read(self.hear, length) if length and not error else b""


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    ends = Ends(tmp_path, monkeypatch)
    yield ends
    ends.close()


def running(ends: Ends) -> Callable[[], BaseException | None]:
    """Let it serve; call what is given for what has ended it."""
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            ends.bridge.serve()
        except (Broken, NotNbd, OSError) as error:
            raised.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    ends.threads.append(thread)
    thread.start()

    def ended() -> BaseException | None:
        thread.join(30)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return ended


def test_a_write_is_answered_when_it_is_synced(ends: Ends, tmp_path: Path) -> None:
    """The sync is asked for at once, and what it says is what the client hears."""
    ended = running(ends)
    ends.request(WRITE, 4096, data=b"x" * 40000)
    kinds = [ends.served() for _ in range(3)]
    assert [6, 6, 200] == [kind for kind, _, _ in kinds]
    assert (tmp_path / WRITING).exists()
    assert not (tmp_path / LATE).exists()
    for _, number, _ in kinds:
        ends.status(number, 0)
    assert (0, b"") == ends.answer()
    ends.request(FLUSH)
    assert (0, b"") == ends.answer()
    ends.request(nbd_server.DISCONNECT)
    assert ended() is None


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_fails_there_fails_here(ends: Ends, failing: int) -> None:
    """A part of a write, or the sync: never a success."""
    running(ends)
    ends.request(WRITE, 0, data=b"x" * 40000)
    for index in range(3):
        ends.status(ends.served()[1], 4 if index == failing else 0)
    assert (5, b"") == ends.answer()


def test_writes_that_come_while_a_sync_is_under_way_share_the_next(ends: Ends) -> None:
    """None is answered by a sync that was asked for before it."""
    running(ends)
    ends.request(WRITE, 0, data=b"x")
    _, first, _ = ends.served()
    _, sync, _ = ends.served()
    ends.request(WRITE, 1, data=b"y")
    ends.request(WRITE, 2, data=b"z")
    others = [ends.served()[1] for _ in range(2)]
    for number in (first, *others, sync):
        ends.status(number, 0)
    kind, second, _ = ends.served()
    assert 200 == kind
    assert (0, b"") == ends.answer()
    ends.status(second, 0)
    assert [(0, b""), (0, b"")] == [ends.answer(), ends.answer()]


def test_a_read_that_comes_in_pieces(ends: Ends) -> None:
    """Whatever the server gives at once; where it has nothing, that is an error and not zeros."""
    running(ends)
    ends.request(READ, 10, 6)
    ends.data(ends.served()[1], b"abcd")
    _, number, rest = ends.served()
    assert (14, 2) == struct.unpack(">QI", rest[-12:])
    ends.data(number, b"ef")
    assert (0, b"abcdef") == ends.answer(6)
    ends.request(READ, 0, 6)
    ends.status(ends.served()[1], 1)
    assert (5, b"") == ends.answer()


def test_what_lies_behind_the_end_is_refused(ends: Ends) -> None:
    """Without asking the server."""
    running(ends)
    ends.request(READ, SIZE - 1, 2)
    assert 22 == ends.answer()[0]
    ends.request(9)
    assert 22 == ends.answer()[0]


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 64,
        struct.pack(">IBII", 9, 101, 77, 0),
        struct.pack(">I", 1) + b"x" * 9,
        b"",
        b"Welcome to this host, have a nice day!",
    ],
)
def test_a_server_that_says_anything_ends_the_connection(ends: Ends, said: bytes) -> None:
    """The next connection finds the mark that writes were under way."""
    ended = running(ends)
    ends.request(WRITE, 0, data=b"x")
    ends.served()
    os.write(ends.say, said)
    os.close(ends.say)
    ends.all.remove(ends.say)
    assert isinstance(ended(), Broken)


def test_more_data_than_was_asked_for(ends: Ends) -> None:
    """It never gets to the client."""
    ended = running(ends)
    ends.request(READ, 0, 4)
    ends.data(ends.served()[1], b"12345")
    assert isinstance(ended(), Broken)


def test_a_silent_server_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer is missing; one that was asked nothing may be silent."""
    ends = Ends(tmp_path, monkeypatch, silence=0.3)
    ended = running(ends)
    ends.request(READ, 0, 4)
    found = ended()
    assert isinstance(found, Broken)
    assert found.silent
    ends.close()


def test_a_server_that_gives_a_byte_now_and_then_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its answers is a new one, to a new request of ours; the client has waited since its own."""
    ends = Ends(tmp_path, monkeypatch, silence=1.0)
    ended = running(ends)
    ends.request(READ, 0, 4096)
    for _ in range(40):
        if not ends.threads[-1].is_alive() or not select.select([ends.asked], [], [], 5.0)[0]:
            break
        ends.data(ends.served()[1], b"x")
        time.sleep(0.4)
    found = ended()
    assert isinstance(found, Broken)
    assert found.silent
    assert "a request has no answer" in str(found)
    ends.close()


@pytest.mark.parametrize("note", [WRITING, EARLIER])
def test_earlier_writes_that_may_come_late_are_noted(ends: Ends, tmp_path: Path, note: str) -> None:
    """Before the first write of ours: of this opening, or of one before."""
    (tmp_path / note).touch()
    running(ends)
    ends.request(READ, 0, 4)
    ends.served()
    assert not (tmp_path / LATE).exists()
    ends.request(WRITE, 0, data=b"x")
    ends.served()
    assert (tmp_path / LATE).exists()


def test_a_client_that_speaks_something_else(ends: Ends) -> None:
    """It is left."""
    ended = running(ends)
    os.write(ends.ask, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert isinstance(ended(), NotNbd)


def greeted(said: bytes) -> tuple[bool, bytes]:
    """What `greet` makes of a client that says *said*: whether it goes on, and what the client hears."""
    rest, heard = [said], bytearray()

    def hear(count: int) -> bytes:
        taken, rest[0] = rest[0][:count], rest[0][count:]
        return taken

    return nbd_server.greet(hear, heard.extend, SIZE, 5), bytes(heard)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def test_options_of_a_client() -> None:
    """An unknown one is refused, and the client asks for something else; an export may be asked for in the old way."""
    flags = struct.pack(">I", 3)
    go = struct.pack(">IH", 0, 0)
    goes_on, heard = greeted(flags + option(8) + option(6, go) + option(7, go))
    assert goes_on
    assert struct.pack(">I", (1 << 31) + 1) in heard
    assert 2 == heard.count(struct.pack(">HQH", 0, SIZE, 5))
    assert (True, struct.pack(">QH", SIZE, 5)) == (greeted(flags + option(1))[0], greeted(flags + option(1))[1][-10:])
    assert not greeted(flags + option(2))[0]
    for wrong in (b"x" * 16, b"IHAVEOPT" + struct.pack(">II", 7, 1 << 30)):
        with pytest.raises(NotNbd):
            greeted(flags + wrong)

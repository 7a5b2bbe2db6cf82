"""Our client for copies at NBD exports, and servers that answer anything."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import frozen

from lukshook.store.pipes import Pipes
from lukshook.store.remote.export import Export
from lukshook.store.remote.nbd_client import Nbd, NoExport

GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
FLUSHES, ZEROES = 1 | 4, 1 | 4 | 64
#: Bytes that the client says until it has the export "".
BEFORE = 4 + 8 + 12 + 2


def reply(kind: int, data: bytes = b"", magic: int = 0x3E889045565A9) -> bytes:
    """To our option."""
    return struct.pack(">QIII", magic, 7, kind, len(data)) + data


def given(flags: int = FLUSHES, length: int = 1 << 20) -> bytes:
    """All that a server says until there is an export."""
    return GREETING + reply(3, struct.pack(">HQH", 0, length, flags)) + reply(1)


def answer(cookie: int, code: int = 0, content: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, code, cookie) + content


@frozen
class Server:
    """It has said everything before it is asked, in a file; another file has what it was asked."""

    folder: Path
    nbd: Nbd

    @property
    def asked(self) -> bytes:
        """Since there is an export."""
        return (self.folder / "asked").read_bytes()[BEFORE:]

    @property
    def requests(self) -> list[tuple[int, int, int]]:
        """Kind, offset and length of each request; none has content."""
        words = struct.iter_unpack(">IHHQQI", self.asked)
        return [(kind, offset, length) for _, _, kind, _, offset, length in words]


Serve = Callable[[bytes], Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as kept:

        def server(said: bytes) -> Server:
            (tmp_path / "said").write_bytes(said)
            answers = kept.enter_context((tmp_path / "said").open("rb"))
            requests = kept.enter_context((tmp_path / "asked").open("wb"))
            return Server(tmp_path, Nbd(Pipes(requests, answers, 10.0), ""))

        yield server


def test_an_export_is_read_cleared_and_flushed(serve: Serve) -> None:
    answers = answer(1, content=b"content") + b"".join(map(answer, (2, 3, 4)))
    server = serve(given(ZEROES, 1 << 30) + answers)
    nbd = server.nbd
    assert Export(1 << 30, flushes=True, zeroes=True) == nbd.export
    assert b"content" == nbd.read(5, 7)
    nbd.clear(1 << 20, (32 << 20) + 1)
    nbd.flush()
    nbd.leave()
    asked = [(0, 5, 7), (6, 1 << 20, 32 << 20), (6, 33 << 20, 1), (3, 0, 0), (2, 0, 0)]
    assert asked == server.requests


def test_zeros_are_sent_where_the_server_has_none(serve: Serve) -> None:
    server = serve(given() + answer(1))
    server.nbd.clear(0, 3)
    assert struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 3) + bytes(3) == server.asked


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2p1 Debian",
        GREETING + reply(3, b"", magic=5),
        GREETING + reply(1 << 31 | 6, b"no such export"),
        GREETING + reply(1),
        GREETING + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30),
        GREETING + reply(3, struct.pack(">HQH", 0, 4096, 5)) * 10_000,
        GREETING + reply(3, struct.pack(">HQH", 0, 4096, 5)[:-1]) * 10_000,
    ],
    ids=["another protocol", "no reply", "refused", "none", "long", "endless", "short"],
)
def test_a_server_that_gives_no_export(serve: Serve, said: bytes) -> None:
    with pytest.raises(NoExport) as caught:
        serve(said)
    assert str(caught.value)


def test_a_server_that_ends_in_the_middle(serve: Serve) -> None:
    """Wherever it does."""
    whole = given() + answer(1, content=b"content")
    for length in range(len(whole)):
        with pytest.raises(ConnectionResetError):
            serve(whole[:length]).nbd.read(0, 7)


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        (28, errno.ENOSPC),
        (1, errno.EPERM),
        (108, errno.ESHUTDOWN),
        (2, errno.EIO),
        (17, errno.EIO),
        (2**32 - 1, errno.EIO),
    ],
)
def test_what_a_server_says_went_wrong(serve: Serve, code: int, meant: int) -> None:
    """No answer looks like a copy that is not there, or like one that is there already."""
    with pytest.raises(OSError, match="the server has said") as caught:
        serve(given() + answer(1, code)).nbd.read(0, 7)
    assert meant == caught.value.errno
    assert not isinstance(caught.value, FileNotFoundError | FileExistsError)


@pytest.mark.parametrize("said", [answer(2), struct.pack(">IIQ", 5, 0, 1), answer(1)[:4] + b"\0" * 12])
def test_an_answer_that_fits_no_request(serve: Serve, said: bytes) -> None:
    with pytest.raises(OSError, match="fits no request"):
        serve(given() + said).nbd.flush()


def test_a_write_that_fails_is_known_when_it_is_flushed(serve: Serve) -> None:
    nbd = serve(given() + answer(1) + answer(2, 5)).nbd
    nbd.write(0, b"first")
    nbd.write(5, b"second")
    with pytest.raises(OSError, match="the server has said"):
        nbd.flush()


def test_nothing_is_said_behind_half_a_request(tmp_path: Path) -> None:
    """A server that hangs, and goes on later, would take it for content."""
    (tmp_path / "said").write_bytes(given())
    reader, writer = os.pipe()
    with (tmp_path / "said").open("rb") as answers, open(writer, "wb") as requests, open(reader, "rb") as asked:
        nbd = Nbd(Pipes(requests, answers, 0.05), "")
        with pytest.raises(TimeoutError):
            nbd.write(0, b"w" * (1 << 20))
        os.set_blocking(reader, False)
        heard = asked.read()
        nbd.leave()
        assert heard.endswith(b"w")
        assert not asked.read()

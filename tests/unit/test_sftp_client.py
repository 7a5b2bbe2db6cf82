"""Our client for SFTP, and servers that answer anything."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lukshook.store.sftp_client import MOST, SftpFile
from support.sftp_answers import answered

MIB = 1 << 20


def data(number: int, content: bytes) -> bytes:
    """The answer to a READ."""
    return struct.pack(">IBII", 9 + len(content), 103, number, len(content)) + content


def end(number: int) -> bytes:
    """The file ends before what was asked for."""
    return struct.pack(">IBII", 9, 101, number, 1)


Opened = Callable[[bytes], SftpFile]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A file at a server that gives these answers."""
    with ExitStack() as kept:
        yield lambda answers: SftpFile(kept.enter_context(answered(tmp_path, answers))[0], b"h")


def test_what_a_server_gives_in_part_is_asked_for_again(opened: Opened) -> None:
    whole = bytes(range(256)) * (2 * MOST // 256)
    first = data(1, whole[:100]) + data(2, whole[MOST:])
    second = data(3, whole[100 : 100 + MOST]) + data(4, whole[100 + MOST :])
    assert whole == opened(first + second).read(0, 2 * MOST)


def test_a_file_that_ends_gives_what_it_has(opened: Opened) -> None:
    """Whatever comes behind its end is none of it."""
    assert b"all" == opened(data(1, b"all") + data(2, b"more") + end(3) + end(4)).read(0, 2 * MOST)
    assert b"" == opened(end(1)).read(0, 5)


@pytest.mark.parametrize("length", [MOST + 1, MIB - 9])
def test_a_server_that_gives_more_than_was_asked_for(opened: Opened, length: int) -> None:
    """Each answer of a MiB would cost 32 times what is read."""
    with pytest.raises(OSError, match="gives more than was asked for"):
        opened(data(1, bytes(length)) + data(2, b"") + end(3)).read(0, 2 * MOST)


def test_a_server_that_gives_a_byte_each_time(opened: Opened) -> None:
    """It would be asked a million times for a MiB."""
    with pytest.raises(OSError, match="gives too little at a time"):
        opened(b"".join(data(number, b"b") for number in range(1, 3000))).read(0, MIB)


def test_a_write_that_fails_says_why_and_is_not_the_end(opened: Opened) -> None:
    """The answers behind it are heard too: the file can be closed."""
    statuses = [struct.pack(">IBIII", 13, 101, number, code, 0) for number, code in ((1, 3), (2, 0), (3, 0))]
    file = opened(b"".join(statuses))
    with pytest.raises(PermissionError):
        file.write(0, bytes(2 * MOST))
    file.close()

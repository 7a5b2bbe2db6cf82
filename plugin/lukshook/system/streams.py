"""The standard streams, which the caller may have closed, filled up, or left in an odd encoding."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from lukshook.errors import NotSafe


def prepare() -> None:
    """Make the three streams fit for use: what is closed leads nowhere, so that no file of ours gets its number."""
    fill_up()
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - stays open
    sys.stdout = Output(*_parts(sys.stdout, 1), errors="surrogateescape", line_buffering=True)
    sys.stderr = Messages(*_parts(sys.stderr, 2), errors="backslashreplace", line_buffering=True)


def fill_up() -> None:
    """Open the streams that are closed, so that no file gets their numbers.

    Call it before ctypes is imported: libffi opens its own file and keeps it (seen with Python 3.14 on Debian sid).
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def as_before() -> Iterator[None]:
    """Afterwards the three streams lead to where they did, whatever code of others inside did with them."""
    objects = sys.stdin, sys.stdout, sys.stderr
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) for descriptor in range(3)]
    try:
        yield
    finally:
        for descriptor, copy in enumerate(kept):
            with suppress(OSError):  # the code has closed the copy as well
                os.dup2(copy, descriptor)
                os.close(copy)
        fill_up()
        sys.stdin, sys.stdout, sys.stderr = objects
        _open_again()


def _open_again() -> None:
    """Reopen those of our streams that were closed: writing to them would be an error."""
    if not _usable(sys.stdin):
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - stays open
    if not _usable(sys.stdout):
        sys.stdout = Output(*_parts(None, 1), errors="surrogateescape", line_buffering=True)
    if not _usable(sys.stderr):
        sys.stderr = Messages(*_parts(None, 2), errors="backslashreplace", line_buffering=True)


def _usable(stream: TextIO) -> bool:
    try:
        return not stream.closed
    except ValueError:  # detached
        return False


def _parts(stream: object, descriptor: int) -> tuple[io.BufferedWriter, str | None]:
    """What a stream writes to, and its encoding."""
    if isinstance(stream, io.TextIOWrapper):
        encoding = stream.encoding
        return stream.detach(), encoding
    return open(descriptor, "wb", closefd=False), None


class Output(io.TextIOWrapper):
    """Standard output: what cannot be written is reported as an error of the command."""

    def write(self, text: str) -> int:
        """Write *text*. Raises `NotSafe`, BrokenPipeError."""
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        """Write out. Raises `NotSafe`, BrokenPipeError."""
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _lead_nowhere(self)
            if isinstance(error, BrokenPipeError):
                raise
            raise NotSafe(
                f"standard output cannot be written: {error.strerror}",
                hint="the command completed up to that point; lukshook status shows what is open",
            ) from error


class Messages(io.TextIOWrapper):
    """Standard error: where messages go to cannot change what becomes of a backup."""

    def write(self, text: str) -> int:
        """Write *text*, if it can be written."""
        with suppress(OSError):
            return super().write(text)
        _lead_nowhere(self)
        return len(text)

    def flush(self) -> None:
        """Write out what can be written."""
        try:
            super().flush()
        except OSError:
            _lead_nowhere(self)


def _lead_nowhere(stream: io.TextIOWrapper) -> None:
    """What is still to be written would fail once more at the end, and spoil the exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

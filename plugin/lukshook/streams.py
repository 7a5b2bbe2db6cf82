"""The standard streams, which whoever starts us may have closed, filled up, or left in an odd encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lukshook.errors import NotSafe


def prepare() -> None:
    """Make the three streams fit for use: what is closed leads nowhere, so that no file of ours gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - stays open
    sys.stdout = Output(*_parts(sys.stdout, 1), errors="surrogateescape", line_buffering=True)
    sys.stderr = Messages(*_parts(sys.stderr, 2), errors="backslashreplace", line_buffering=True)


def _parts(stream: object, descriptor: int) -> tuple[io.BufferedWriter, str | None]:
    """What a stream writes to, and its encoding."""
    if isinstance(stream, io.TextIOWrapper):
        encoding = stream.encoding
        return stream.detach(), encoding
    return open(descriptor, "wb", closefd=False), None


class Output(io.TextIOWrapper):
    """Standard output: what cannot be written is told as an error of the command."""

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
                hint="the command itself was carried out as far as that; lukshook status shows what is open",
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

"""An SFTP server that has answered everything before it is asked; requests count from 1."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lukshook.store.pipes import Pipes
from lukshook.store.sftp_client import Sftp

#: Without extensions.
VERSION = struct.pack(">IBI", 5, 2, 3)


@contextmanager
def answered(folder: Path, answers: bytes) -> Iterator[tuple[Sftp, BinaryIO]]:
    """A conversation with it, and the file that its answers are read from."""
    (folder / "answers").write_bytes(VERSION + answers)
    with (folder / "answers").open("rb", buffering=0) as said, (folder / "requests").open("wb") as requests:
        yield Sftp(Pipes(requests, said, 10.0)), said

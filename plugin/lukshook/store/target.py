"""What a replica needs of the place where it lies: a folder, and some files in it, by name.

A new kind of place (another protocol) implements these two classes, and nothing else of lukshook changes.
Every method raises OSError where the place fails.
"""

from __future__ import annotations

from typing import Protocol


class TargetFile(Protocol):
    """An open file at the target."""

    def close(self) -> None:
        """Close it."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """What lies there; shorter only at the end of the file."""

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there."""

    def clear(self, offset: int, length: int) -> None:
        """Make the bytes there zeros, a hole if the place has holes."""

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with zeros."""

    def take(self, source: TargetFile, start: int, offset: int, length: int) -> bool:
        """Let the far side copy from *source*, at *start*, to *offset*; False where it cannot."""

    def data(self, start: int) -> int:
        """Where the next byte that is no hole may lie, from *start* on; the end of the file where there is none."""

    def sync(self) -> None:
        """Wait until all of it outlives a power cut. What is read afterwards is the store's answer, not a cache's."""


class Target(Protocol):
    """A folder that a replica lies in. *name*: of the replica in it; *shown*: the whole, as the user has named it.

    *shows_neighbours*: who looks at the replica with other tools sees what lies beside it.
    """

    name: str
    shown: str
    shows_neighbours: bool

    def open(self, name: str, *, writable: bool) -> TargetFile:
        """Open a regular file. Raises FileNotFoundError; `Refused` for anything else that lies there.

        Raises `Unavailable` for a file that another process has locked, where *writable* is asked for.
        """

    def create(self, name: str) -> TargetFile:
        """Make a new, empty file that only its owner can read. Raises FileExistsError."""

    def claim(self) -> None:
        """Keep out a host that has the replica open as an image, also one whose connection is down.

        Called once the place is known to be ours, and before anything there is changed. Raises `Unavailable`.
        """

    def clone(self, name: str, fresh: str) -> bool:
        """Make *fresh* a copy of *name* that shares its blocks; False where the place cannot."""

    def exists(self, name: str) -> bool:
        """Whether anything lies there."""

    def rename(self, name: str, wanted: str) -> None:
        """Give a file the name *wanted*, at once, also where another file has it."""

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""

    def sync_folder(self) -> None:
        """Wait until the names in the folder outlive a power cut."""

    def plan(self, size: int, spare: str) -> None:
        """The replica is going to have *size* bytes; called before a change begins. The file *spare* may be lost.

        No journal is there then that counts.
        """

    def is_same_file(self, other: int) -> bool:
        """Whether the replica is the very file that is open here as *other*."""

    def taken(self, size: int, fresh: int) -> int:
        """Bytes of `free` that the replica needs itself, to have *size* bytes.

        *fresh*: bytes of its pieces that have no place there yet, where pieces of zeros take none.
        """

    def free(self) -> int | None:
        """Bytes that can still be written; None where the place does not say."""

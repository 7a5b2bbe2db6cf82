"""A place of every kind for the copy of a volume, with the real server of the kind, and what lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from support.far_host import far_host


@frozen
class CopyPlace:
    """*to*: what the user calls the copy; *options*: of the volume. *names*: of all that lies there.

    *file*: a file that the copy begins in, which cryptsetup opens; *length*: of the copy in bytes, None where there is
    none that is complete.
    """

    to: str
    names: Callable[[], list[str]]
    file: Callable[[], Path]
    length: Callable[[], int | None]
    options: dict[str, Any] = field(factory=dict)

    def content(self) -> bytes | None:
        """The copy."""
        length = self.length()
        if length is None:
            return None
        with self.file().open("rb") as file:
            return file.read(length)

    @property
    def is_marked(self) -> bool:
        """Whether a file says that the copy is mixed."""
        return any(name.endswith(".READ-ME-FIRST") for name in self.names())


def _in_folder(folder: Path, to: str, options: dict[str, object]) -> CopyPlace:
    """A copy that is a file."""
    file = folder / "copy.img"
    return CopyPlace(
        to,
        lambda: sorted(entry.name for entry in folder.iterdir()),
        lambda: file,
        lambda: file.stat().st_size if file.exists() else None,
        options,
    )


@contextmanager
def disk(folder: Path) -> Iterator[CopyPlace]:
    """A folder here."""
    folder.mkdir(parents=True)
    yield _in_folder(folder, str(folder / "copy.img"), {})


@contextmanager
def sftp(folder: Path) -> Iterator[CopyPlace]:
    """An sshd."""
    with far_host(folder, "Subsystem sftp internal-sftp\n") as far:
        yield _in_folder(far.store, far.url("copy.img", "sftp"), {"ssh_config": str(far.config)})


@contextmanager
def ssh(folder: Path) -> Iterator[CopyPlace]:
    """An sshd without a server for SFTP of its own."""
    with far_host(folder) as far:
        yield _in_folder(far.store, far.url("copy.img"), {"ssh_config": str(far.config)})


PLACES = {"disk": disk, "sftp": sftp, "ssh": ssh}

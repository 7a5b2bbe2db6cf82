"""A note beside an image that says who has it open: the most that a store without locks can do.

Only lukshook honours it. It is never broken but on request: nobody can tell a host that is away from one that is dead.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from lukshook.store.sftp_client import SftpTarget
from lukshook.system import files
from lukshook.system.ownership import private_folder
from lukshook.system.text import clipped, one_line

#: Bytes of a note; a store can put anything in its place.
_MOST = 4096
#: Characters that a message shows of what a note says.
_MOST_SHOWN = 100
_MACHINE = Path("/etc/machine-id")


class Held(Exception):
    """Somebody else has the image; the text says who, as far as the note tells."""


@frozen
class LockFile:
    """The note *name* beside an image. *holder*: what tells our own notes from those of others."""

    name: str
    holder: str

    def taken(self, target: SftpTarget) -> str:
        """Take the lock, which we may have already; what the note says. Raises `Held`, OSError."""
        return self.checked(target) or self._taken(target)

    def checked(self, target: SftpTarget) -> str:
        """What our note says, "" where there is none. Raises `Held` for a note of others, OSError."""
        found = self._read(target)
        if found is None:
            return ""
        said = _facts(found)
        if said.get("holder") != self.holder:
            raise Held(_who(said))
        return found.decode(errors="replace")

    def let_go(self, target: SftpTarget) -> None:
        """Remove our note, if there is one. Raises OSError."""
        with suppress(Held):
            if self.checked(target):
                target.unlink(self.name)

    def _taken(self, target: SftpTarget) -> str:
        """The note gets its name when it is whole, and that name only if nobody has it.

        The draft has a name of our own, so what a killed lukshook left of it goes.
        """
        draft = f"{self.name}.{self.holder[:12]}"
        target.unlink(draft)
        note = target.create(draft)
        try:
            note.write(0, self._note())
            note.sync()
        finally:
            note.leave()
        try:
            target.rename_fresh(draft, self.name)
        except OSError:  # somebody was faster, and has the name now
            target.unlink(draft)
        else:
            target.sync_folder()  # else a power cut there could take the name away again
        taken = self.checked(target)
        if not taken:
            raise PermissionError(f"{self.name} cannot be made there")
        return taken

    def _note(self) -> bytes:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "holder": self.holder}
        return f"{json.dumps(facts)}\n".encode()

    def _read(self, target: SftpTarget) -> bytes | None:
        try:
            note = target.open(self.name, writable=False)
        except FileNotFoundError:
            return None
        try:
            return note.read(0, _MOST)
        finally:
            note.leave()


def holder_of(place: Path) -> str:
    """What tells this host, and this volume on it, from others: random, in the file *place*, made where there is none.

    The machine counts too: a copy of that file on another one is another holder. Raises `Unavailable`, OSError.
    """
    try:
        own = files.read(place, _MOST)
    except FileNotFoundError:
        private_folder(place.parent)
        own = os.urandom(16).hex().encode()
        files.write_whole(place, own, durable=True)
    machine = b""
    with suppress(OSError):
        machine = files.read(_MACHINE, _MOST)
    return hashlib.sha256(own + b"\n" + machine).hexdigest()[:32]


def _facts(content: bytes) -> dict[str, object]:
    """What a note says; nothing where it is none of ours."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(said: dict[str, object]) -> str:
    if not said.get("host"):
        return "somebody: its lock file is not one of lukshook's, or damaged"
    host, pid, since = (clipped(one_line(str(said.get(name))), _MOST_SHOWN) for name in ("host", "pid", "since"))
    return f"host {host} (process {pid}, since {since})"

"""The private folder of a remote image: what is noted in it, and what belongs to it.

Each process that shows the image inherits a descriptor of that folder. By this descriptor it is found again, also if
the lukshook that started it was killed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import asdict, frozen

from lukshook.store.remote.kind import EARLIER, LATE, STATUS, WRITING, WRITTEN, Seen
from lukshook.system import files, json_files, kernel, loops, ownership, processes

#: How the kernel names the processes: what shows the file, the daemon, the listener, the script of one connection.
SHOWING, DAEMON, LISTENER, SCRIPT = "nbdfuse", "qemu-storage-daemon"[:15], "socat", "sh"
#: What a script starts, and what could outlive it: qemu-nbd misses a signal while it starts (measured, 7.2).
_TOOLS = ("qemu-nbd", "nbdkit", "ssh", "setpriv")
#: The file that says that the image is to be let go, and the one with a loss that nobody has reported yet.
HELD, OWED = "held", "owed"
#: What was true when the image was attached (`Noted`). Where it is missing, what is written counts as lost.
_NOTED = "noted"
#: Bytes of what the last connection wrote to standard error.
_MOST_SAID = 1 << 16
#: What socat puts before each line: time, program, pid, severity.
_OF_SOCAT = re.compile(r"^.* socat\[[0-9]+\] [A-Z] ")


@frozen
class Noted:
    """What was true when the image was attached: its *url*, and what the store said (`kind.Seen`)."""

    url: str
    identity: str
    allocated: int
    free: int | None
    total: int | None


@frozen
class OwnFolder:
    """*path*: where it is, or can be. Others may lie beside it, so its own locks do too."""

    path: Path

    @property
    def image(self) -> Path:
        """Where the image appears."""
        return self.path / "image"

    @property
    def socket(self) -> Path:
        """Where the listener listens for connections."""
        return self.path / "socket"

    @property
    def near(self) -> Path:
        """Where the daemon listens, once it has had a connection."""
        return self.path / "near"

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor for processes to inherit. The folder is made where it is not there."""
        ownership.private_folder(self.path)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # What belongs to it

    def stands(self) -> bool:
        """Whether the image is there now; asks nobody."""
        return all(map(self.running, (SHOWING, DAEMON))) and kernel.mount_at(self.image) is not None

    def in_use(self) -> bool:
        """Whether layers of a volume stand on the image: a loop device, or the daemon that decrypts it."""
        image = str(self.image)
        if loops.named(image):
            return True
        return any(image in kernel.open_names(pid) for pid in kernel.processes_named(DAEMON))

    def running(self, name: str) -> list[tuple[int, int]]:
        """The processes of that name that have this folder: pid and start time of each."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return []
        pids = kernel.processes_with(name, found.st_dev, found.st_ino)
        ours = ((pid, kernel.started(pid)) for pid in pids if kernel.owner(pid) == os.geteuid())
        return [(pid, started) for pid, started in ours if started is not None]

    def connecting(self) -> list[tuple[int, int]]:
        """The listener, the scripts of connections, their tools, and all that they have started."""
        ours = [one for name in (LISTENER, SCRIPT, *_TOOLS) for one in self.running(name)]
        return [one for pid, started in ours for one in ((pid, started), *processes.family(pid))]

    # What is noted in it

    def note(self, url: str, seen: Seen) -> None:
        """The image of *url* is there, and *seen* is what the store said before."""
        noted = Noted(url, seen.identity, seen.allocated, seen.free, seen.total)
        files.write_whole(self.path / _NOTED, json.dumps(asdict(noted)).encode(), durable=False)

    def noted(self) -> Noted | None:
        """What `note` has left."""
        try:
            return json_files.build(Noted, json_files.load(self.path / _NOTED))
        except (OSError, json_files.Damaged):
            return None

    @property
    def was_written(self) -> bool:
        """Whether something was written that nobody has looked after yet."""
        return (self.path / WRITTEN).exists()

    def owe(self, loss: str) -> None:
        """Keep a *loss*, in words, until it is reported."""
        files.write_whole(self.path / OWED, loss.encode(errors="replace"), durable=False)

    def owed(self) -> str:
        """What `owe` has left, or ""."""
        try:
            return files.read(self.path / OWED, _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""

    def forget(self, *, all_of_it: bool = False) -> None:
        """Remove what is noted, once nothing stands; *all_of_it*: also what concerns the next opening.

        That is a loss that nobody has reported, and that a connection has ended with writes under way: they may come
        after those of the next opening. Once such a one counts as lost, this goes. That the image is held stays noted
        in any case.
        """
        if (self.path / WRITING).exists():
            (self.path / WRITING).rename(self.path / EARLIER)
        elif (self.path / LATE).exists():
            (self.path / EARLIER).unlink(missing_ok=True)
        kept = {HELD} if all_of_it else {HELD, OWED, EARLIER}
        for name in sorted(set(os.listdir(self.path)) - kept, key=lambda name: name == _NOTED):  # it goes last
            (self.path / name).unlink(missing_ok=True)

    def said(self) -> str:
        """What the last connection wrote to standard error."""
        try:
            text = files.read(self.path / "said", _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(_OF_SOCAT.sub("", line) for line in text.split("\n"))

    def status(self) -> int | None:
        """How the last connection ended, None where it did not yet."""
        try:
            return int(files.read(self.path / STATUS, _MOST_SAID))
        except (OSError, ValueError):
            return None

"""What a kind of remote store has to say of itself; the rest of lukshook knows no kind."""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from attrs import frozen

from lukshook.errors import Unavailable, Usage
from lukshook.store.target import Target
from lukshook.system.command import TOOL_PATH, Runner

#: Files in the private folder of an image, made by those that serve a connection and cannot fence off an earlier one:
#: writes are under way; those of an earlier connection may still come, after newer ones; an earlier opening has ended
#: with writes under way.
WRITING, LATE, EARLIER = "writing", "late", "earlier"
#: Something was written through the image. It is there until somebody has looked whether that may be lost.
WRITTEN = "written"
#: A server that cannot sync single writes had answered some, and not flushed them, when its connection broke.
UNFLUSHED = "unflushed"
#: The same for a connection that was in use and is lost; since then.
LOST = "lost"
#: How the last connection ended: the exit status of what made it.
STATUS = "status"
#: Stands among the words that start ssh(1) for a file that gets its own words, which the far side cannot write to.
OWN_WORDS = "@OWN@"
#: What is behind a connection: a server that lets one in only once an earlier one is over; one that does not; and a
#: tool in front of such a one, which stays when the server has left, and answers each request with an error.
FENCED, OPEN, BEHIND = "fenced", "open", "behind"
_OURS = "import sys; sys.path[:] = {path!r}; from lukshook.store.remote import {module}; {module}.main()"


@frozen(kw_only=True)
class Abilities:
    """What a kind of store can do.

    lock: it keeps a second host out while the image is open. lock_file: it has a note that only lukshook honours.
    measure: it says how much the image takes and how much is free.
    create: it makes a new image; reserve: with all its blocks; grow: it gives an image another length.
    reboots: a restart of the remote machine, which loses what was written and not flushed, is noticed or harmless.
    synced: what it has answered is stored, so no restart loses it; for work that a later backup would not repair.
    snapshots: it takes snapshots of an image, for `snapshot` in the configuration.
    copies: a copy of an image can be kept there (`Store.replica`).
    """

    lock: bool
    lock_file: bool = False
    measure: bool
    create: bool
    reserve: bool = True
    grow: bool
    reboots: bool
    synced: bool = False
    snapshots: bool = False
    copies: bool = False

    @property
    def weakness(self) -> str:
        """Why a lock on the image may not reach other hosts, or ""."""
        if self.lock:
            return ""
        return (
            "which has only a lock file, and nobody but lukshook looks at that"
            if self.lock_file
            else "which has no locks"
        )

    def in_words(self) -> str:
        """All of them on one line, for `check`."""
        words = {
            "locks out other hosts": self.lock,
            **({"has a lock file for other hosts with lukshook": True} if self.lock_file else {}),
            "measures free space": self.measure,
            "creates images": self.create,
            "changes their size": self.grow,
            "survives or notices a remote restart": self.reboots,
            **({"takes snapshots": True} if self.snapshots else {}),
        }
        able, unable = (", ".join(word for word, can in words.items() if can is wanted) for wanted in (True, False))
        return "; ".join(filter(None, (able, unable and f"not: {unable}")))


@frozen
class Seen:
    """What a store says of an image: *length* and *allocated* bytes, None where there is no image.

    *free* and *total* bytes of its file system, None where it does not say. *identity* is another one after the remote
    machine has restarted, and where another file lies in the image's place, or our lock is gone; "" where the store
    does not say.
    """

    length: int | None
    allocated: int = 0
    free: int | None = None
    total: int | None = None
    identity: str = ""


@frozen
class Link:
    """How one connection to the image is made.

    *address*: of socat(1). *script*: a shell script in the file "connect" of the private folder, "" for none. In both,
    "@FOLDER@" stands for that folder.
    """

    address: str
    script: str = ""


def ours(module: str) -> tuple[str, ...]:
    """The words that start a process of ours, with the Python and the modules that we run with, nothing else."""
    return (
        sys.executable,
        "-I",
        "-c",
        _OURS.format(path=[place for place in sys.path if place.startswith("/")], module=module),
    )


def watched(argv: Sequence[str], silence: float, how: str) -> tuple[str, ...]:
    """*argv*, which speaks NBD, and a process of ours that gives it up after *silence* seconds without an answer.

    *silence* 0: it is not watched. *how*: one of `FENCED`, `OPEN`, `BEHIND`.
    """
    if not silence:
        return tuple(argv)
    return (*ours("watch"), "@FOLDER@", str(silence), how, *argv)


def connecting(argv: Sequence[str], before: str = "") -> str:
    """The script of a `Link` that starts *argv*; what that says is in the file "said", its exit status in `STATUS`.

    *before*: lines of the shell. The far side can say any amount. So each file that the script and its tools write ends
    at 64 KiB (128 KiB where sh is bash(1), whose ulimit counts 1024 bytes). A tool that writes more gets an error for
    that, and no signal.
    """
    begin = f"trap '' XFSZ; ulimit -f 128\nexec 2>@FOLDER@/said\nPATH={TOOL_PATH}; LC_ALL=C; export PATH LC_ALL\n"
    return f"{begin}{before}{shlex.join(argv)}\necho $? >@FOLDER@/{STATUS}\n"


def reason(said: str) -> str:
    """The line of what a connection *said* that tells most: an error of its own, else the first."""
    lines = [line for line in said.split("\n") if line]
    return next((line for line in lines if "error: " in line), lines[0] if lines else "")


class Locked(Unavailable):
    """Another process or host has the image open, or an earlier connection of ours still has."""


@frozen
class Store(ABC):
    """One image at a remote place. *url*: as it is configured."""

    abilities: ClassVar[Abilities]
    #: The programs that it needs on this machine, besides those of every remote store.
    tools: ClassVar[tuple[str, ...]] = ()
    #: Whether it needs something to verify the server by (`with_tls`).
    verifies: ClassVar[bool] = False
    #: What has happened where the identity of the image has changed (`Seen`).
    changed: ClassVar[str] = "has restarted, or has put another file in the image's place"

    url: str

    @property
    def export(self) -> str:
        """The name of the NBD export that a connection leads to."""
        return ""

    @abstractmethod
    def link(self, *, read_only: bool, silence: float) -> Link:
        """How a connection is made that speaks NBD.

        *silence*: seconds without an answer until it counts as broken, 0 for a client that looks after that itself.
        Raises `Unavailable` where it cannot be told whether the image is still ours.
        """

    @abstractmethod
    def look(self, runner: Runner) -> Seen:
        """What is there. Raises `Unavailable`, `Denied`, `Refused` (it is not the host that we know)."""

    @abstractmethod
    def refusal(self, said: str, status: int | None) -> Unavailable:
        """Why a connection brought no export; *said* is what the last one wrote to standard error, for people alone.

        *status*: the exit status of what made it, where that refused; None where it is not known.
        """

    @abstractmethod
    def fetch(self, file: str) -> str:
        """How a person without lukshook copies the image to a local *file*, which is quoted already."""

    def with_config(self, config: Path | None) -> Store:
        """The same, with a configuration file for ssh(1) in place of the user's own."""
        return self

    def with_agent(self, agent: str) -> Store:
        """The same, with the socket of the caller's ssh-agent(1), "" for none."""
        return self

    def with_tls(self, certificates: Path | None, psk: Path | None) -> Store:
        """The same, with a folder of certificates for TLS, or a file of pre-shared keys."""
        return self

    def with_ceph(self, user: str, config: Path | None) -> Store:
        """The same, as a user of Ceph, and with a ceph.conf in place of the system's."""
        return self

    def with_token(self, token: Path) -> Store:
        """The same, with a file by which a store knows our locks; it is made where it is needed."""
        return self

    def breaking(self) -> Store:
        """The same; a lock file that somebody else has left is broken. Raises `Usage` where there are none."""
        scheme = self.url.partition(":")[0]
        raise Usage(f"there is no lock file beside {self.url}", hint=f"{scheme}:// has none; only sftp:// has")

    def hold(self, runner: Runner, *, read_only: bool) -> Seen:
        """Keep others out from now on, where the connection does not do that; what is there. Raises as `look`."""
        return self.look(runner)

    def check_alone(self, runner: Runner) -> None:  # noqa: B027 - most need no second look
        """Check, once our own connection stands, that nobody came at the same time. Raises `Locked`, and as `look`."""

    def let_go(self, runner: Runner) -> None:  # noqa: B027 - most have nothing to undo
        """Undo `hold`. Raises as `look`."""

    def unfinished(self) -> Store:
        """The same image under the name that it has until it is whole."""
        raise self._cannot("make a new image")

    def create(self, length: int, fill: str, runner: Runner) -> None:
        """Make the image, of *length* bytes; one that is there stays. Raises `Unavailable`, `Exists`."""
        raise self._cannot("make a new image")

    def publish(self, runner: Runner) -> None:
        """Give the unfinished image its name, and never replace another one. Raises `Exists`, `Unavailable`."""
        raise self._cannot("name an image")

    def remove(self, runner: Runner) -> None:
        """Remove the image, if it is there. Raises `Unavailable`."""
        raise self._cannot("remove an image")

    def resize(self, length: int, fill: str, runner: Runner) -> None:
        """Give the image *length* bytes. Raises `Unavailable`."""
        raise self._cannot("change the size of an image")

    def replica(self, runner: Runner, *, writable: bool) -> AbstractContextManager[Target]:
        """The place of a copy, which lies where the image of this URL would. *writable*: it will be changed.

        Then another host that has it open as an image is kept out, at the latest from its `claim` on. Raises as
        `look`, and `Locked`.
        """
        raise self._cannot("keep a copy")

    def beside(self, suffix: str) -> Store | None:
        """Another image, whose name ends with *suffix*; None where the store has the images that it is given alone.

        Who is fenced off from this image cannot connect to that one either.
        """
        return None

    def _cannot(self, what: str) -> Unavailable:
        return Unavailable(
            f"lukshook cannot {what} at {self.url}", hint="do it at the remote side: docs/stores.md says how"
        )

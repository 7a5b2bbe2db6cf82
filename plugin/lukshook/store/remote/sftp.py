"""A machine with nothing but SFTP: `sftp://user@host[:port]/path`; `/~/` at the begin of the path is the home folder.

Each connection is a process of ours on this side (`sftp_bridge`), which speaks NBD, and SFTP through ssh(1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from attrs import evolve, frozen

from lukshook.errors import Exists, Unavailable
from lukshook.store.remote.kind import OWN_WORDS, Abilities, Link, Locked, Seen, Store, connecting, ours, reason
from lukshook.store.remote.lock_file import Held, LockFile, holder_of
from lukshook.store.remote.login import Login, path_of
from lukshook.store.remote.parts import Parts
from lukshook.store.remote.sftp_session import session
from lukshook.store.sftp_client import FSYNC, SftpTarget
from lukshook.system.command import Runner
from lukshook.system.text import clipped

#: Seconds for one conversation.
_SECONDS = 90.0
#: Characters that a message shows of what the far side says.
_MOST_SHOWN = 300


@frozen
class SftpStore(Store):
    """*path*: of the image there; *lock*: of the file that says who has it. *token*: a file that makes us known to us.

    *breaks*: a lock of somebody else is broken.
    """

    login: Login
    path: str
    lock: str
    token: Path | None = None
    breaks: bool = False

    abilities: ClassVar[Abilities] = Abilities(
        lock=False,
        lock_file=True,
        measure=False,
        create=True,
        grow=True,
        reboots=True,
        synced=True,
        reserve=False,
        copies=True,
    )
    tools: ClassVar[tuple[str, ...]] = ("ssh",)
    changed: ClassVar[str] = "no longer has our lock beside the image"

    def fetch(self, file: str) -> str:
        """With scp(1), which needs no shell there either."""
        return f"{self.login.fetch_by_hand(self.path)} {file}"

    def with_config(self, config: Path | None) -> SftpStore:
        """The same, with that file."""
        return evolve(self, login=evolve(self.login, config=str(config) if config else ""))

    def with_agent(self, agent: str) -> SftpStore:
        """The same, with that agent."""
        return evolve(self, login=evolve(self.login, agent=agent))

    def with_token(self, token: Path) -> SftpStore:
        """The same, with that file."""
        return evolve(self, token=token)

    def breaking(self) -> SftpStore:
        """The same; a lock of somebody else is broken."""
        return evolve(self, breaks=True)

    def link(self, *, read_only: bool, silence: float) -> Link:
        """A process of ours."""
        own = (self.path, Path(self.lock).name, self._holder(), str(silence), "r" if read_only else "w")
        words = (*ours("sftp_bridge"), "@FOLDER@", *own, self.login.agent, *self.login.sftp(OWN_WORDS))
        return Link("EXEC:sh @FOLDER@/connect", connecting(words))

    def refusal(self, said: str, status: int | None) -> Unavailable:
        """What ssh, or our process, said."""
        why = clipped(reason(said), _MOST_SHOWN) or "the connection was closed"
        return Unavailable(f"{self.url} is not served: {why}", hint=f"does this work? {self.login.sftp_by_hand()}")

    def hold(self, runner: Runner, *, read_only: bool) -> Seen:
        """Note beside the image that it is ours, unless it is only read."""
        lock = self._lock()
        with self._talk(runner, "lock") as target:
            if not read_only and FSYNC not in target.extensions:
                raise Unavailable(
                    f"the SFTP server {self.login.host} cannot flush (it has no {FSYNC.decode()}): nobody could say "
                    "when a backup is stored",
                    hint="OpenSSH 6.5 and newer can; use another server, or mount it and use a path as the image",
                )
            try:
                if self.breaks:
                    target.unlink(lock.name)
                said = lock.checked(target) if read_only else lock.taken(target)
            except FileNotFoundError:
                self._check_folder(target)
                raise
            return self._seen(target, said)

    def let_go(self, runner: Runner) -> None:
        """Remove our note."""
        lock = self._lock()
        with self._talk(runner, "unlock") as target:
            lock.let_go(target)

    def look(self, runner: Runner) -> Seen:
        """How long the image is, and whether it is still ours."""
        lock = self._lock()
        with self._talk(runner, "look at") as target:
            try:
                said = lock.checked(target)
            except Held:
                said = ""
            return self._seen(target, said)

    def unfinished(self) -> SftpStore:
        """As on a local store: the name begins with a dot."""
        folder, _, name = self.path.rpartition("/")
        return evolve(self, path=f"{folder}/.{name}.lukshook-new")

    def create(self, length: int, fill: str, runner: Runner) -> None:
        """Make the image, of holes; one that is there stays."""
        with self._talk(runner, "make") as target:
            image = target.create(target.name)
            try:
                image.resize(length)
                image.sync()
            finally:
                image.close()

    def publish(self, runner: Runner) -> None:
        """By a rename that replaces nothing: that is what SFTP's own does."""
        with self._talk(runner, "name") as target:
            new = Path(self.unfinished().path).name
            if target.exists(target.name):
                raise Exists(f"the image {self.url} already exists", hint="move it away, or name another one")
            target.rename_fresh(new, target.name)
            target.sync_folder()

    def remove(self, runner: Runner) -> None:
        """Remove the image."""
        with self._talk(runner, "remove") as target:
            target.unlink(target.name)

    def resize(self, length: int, fill: str, runner: Runner) -> None:
        """Cut it, or give it more, while our lock lies beside it; when that fails it has its old length."""
        with self._talk(runner, "change the size of") as target:
            if not self._lock().checked(target):
                raise Unavailable(f"our lock beside {self.url} is gone", hint="open the volume again")
            image = target.open(target.name, writable=True)
            old = image.size
            try:
                image.resize(length)
                image.sync()
            except OSError:
                image.resize(old)
                raise
            finally:
                image.close()

    @contextmanager
    def replica(self, runner: Runner, *, writable: bool) -> Iterator[SftpTarget]:
        """Files beside each other."""
        with session(self.login, runner) as sftp:
            target = SftpTarget(sftp, self.path, self.url)
            if writable:
                self._check_unlocked(target)
            yield target

    def _check_unlocked(self, target: SftpTarget) -> None:
        """Whoever has an image there has a lock file beside it, also on this host."""
        try:
            LockFile(Path(self.lock).name, "").checked(target)
        except Held as error:
            raise self._locked(error) from error

    def _locked(self, who: Held) -> Locked:
        return Locked(
            f"{self.url} is open elsewhere: {who} has it",
            hint="wait until it is closed there; if that host will never come back: lukshook trust --break-lock NAME",
        )

    def _holder(self) -> str:
        return holder_of(self.token) if self.token else ""

    def _lock(self) -> LockFile:
        return LockFile(Path(self.lock).name, self._holder())

    def _check_folder(self, target: SftpTarget) -> None:
        if not target.exists(""):
            raise Unavailable(f"the folder of {self.url} is not there", hint="is its disk mounted there?")

    def _seen(self, target: SftpTarget, said: str) -> Seen:
        """SFTP does not say which blocks a file has: it counts as if it had all."""
        length = target.length(target.name)
        if length is None:
            self._check_folder(target)
        free, total = target.room() or (None, None)
        return Seen(length, length or 0, free, total, said)

    @contextmanager
    def _talk(self, runner: Runner, what: str) -> Iterator[SftpTarget]:
        """A conversation with the server. Raises `Unavailable`, `Denied`, `Refused`, and `Locked` for `Held`."""
        with session(self.login, runner, within=_SECONDS) as sftp:
            try:
                yield SftpTarget(sftp, self.path, self.url)
            except FileExistsError as error:
                raise Exists(f"{self.url} already exists", hint="move it away, or name another one") from error
            except Held as error:
                raise self._locked(error) from error
            except (OSError, struct.error) as error:
                raise Unavailable(
                    f"{self.login.host} could not {what} {self.url}: {getattr(error, 'strerror', None) or error}",
                    hint=f"can this user write there? {self.login.sftp_by_hand()}",
                ) from error


def parse(parts: Parts) -> SftpStore:
    """The image that a URL names. Raises ValueError."""
    path = path_of(parts)
    folder, _, name = path.rpartition("/")
    return SftpStore(parts.url, Login.of(parts), path, f"{folder}/.{name}.lukshook-lock")

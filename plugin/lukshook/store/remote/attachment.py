"""A remote image as a local file: when it appears and goes, and who uses it.

How it is shown: `showing`. How that ends: `ending`. Where it lies, and what is noted of it: `own_folder`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lukshook.errors import LukshookError, NoImage, NotSafe, Unavailable
from lukshook.store.image_file import ImageFile
from lukshook.store.remote import changes, ending, outage
from lukshook.store.remote.kind import Locked, Seen, Store
from lukshook.store.remote.own_folder import HELD, LISTENER, OWED, OwnFolder
from lukshook.store.remote.showing import Showing
from lukshook.store.room import Room
from lukshook.system import files, kernel, ownership, signals
from lukshook.system.command import Runner

#: The programs that every remote store needs on this machine.
TOOLS = ("socat", "qemu-storage-daemon", "nbdfuse", "fusermount3", "setpriv")
#: Seconds for another lukshook that attaches or detaches.
_LOCK_SECONDS = 150.0


class Attachment:
    """A remote image that appears, or can appear, in *folder*.

    *patience*: seconds that writing waits for a new connection. *warn*: what a person reads.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        patience: float,
        *,
        read_only: bool,
        runner: Runner,
        warn: Callable[[str], None],
    ) -> None:
        self.store = store
        self.folder = folder
        self._own = OwnFolder(folder)
        self._patience = patience
        self._read_only = read_only
        self._runner = runner
        self._warn = warn
        self._checked = self._lost = self._earlier = False
        self.published = False
        self._made = False
        self._is_ours, self._is_stuck = True, False
        self._final = store

    def stands(self) -> bool:
        """Whether the image is there now; asks nobody."""
        return self._own.stands()

    # Users

    @contextmanager
    def used(self, *, attach: bool = True, writes: bool = True) -> Iterator[None]:
        """The image is there inside, where *attach*; at the end it goes, unless somebody else still uses it.

        *writes*: then it is made sure that what was flushed is still there.
        Raises `Unavailable`, `Denied`, `Refused`; `NotSafe` where what was written may be lost.
        """
        ownership.private_folder(self.folder.parent)
        use = _open_lock(self.folder.with_name(f"{self.folder.name}-use.lock"))
        try:
            with self._locked():
                fcntl.flock(use, fcntl.LOCK_SH)
                if attach:
                    self.attach()
                else:
                    self._keep_reachable()
            with outage.said(self.folder, self.store.url, self._patience, self._warn):
                yield
        except BaseException:
            self._leave(use, check=False)
            raise
        else:
            self._leave(use, check=writes)
        finally:
            os.close(use)

    def _leave(self, use: int, *, check: bool) -> None:
        """Let the image go with its last user. *use*: the lock that says that we use it."""
        with self._locked():
            try:
                if check and not self._own.in_use():
                    self.check_same()
            finally:
                if self._is_last(use):
                    self._clear()

    def _is_last(self, use: int) -> bool:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return not self._own.in_use()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = _open_lock(self.folder.with_name(f"{self.folder.name}.lock"))
        try:
            if not kernel.wait_until(lambda: _try(descriptor), _LOCK_SECONDS):
                raise Unavailable(f"another lukshook is connecting to {self.store.url}", hint="try again")
            yield
        finally:
            os.close(descriptor)

    # Coming and going

    def attach(self, make: Callable[[], None] | None = None) -> None:
        """Let the image appear, if it has not. What an earlier one left, and open layers stand on, stays as it is.

        *make*: makes the image before, once it is ours.
        """
        self._earlier = self._own.was_written
        if self._is_sound() and not self._lost:
            return
        if self._own.in_use():
            return
        self._clear()
        self._earlier = self._checked = self._lost = False
        try:
            seen = self._hold()
            if make is not None:
                make()
                seen = self.store.look(self._runner)
            if seen.length is None and self.store.abilities.create:
                raise NoImage(f"the image {self.store.url} is not there", hint="is its disk mounted there?")
            signals.check()
            self._start(seen)
        except BaseException:
            self._clear()
            raise

    def _hold(self) -> Seen:
        """Noted before it is done, so that it is undone whatever comes between."""
        ownership.private_folder(self.folder)
        self._is_ours = (self.folder / HELD).exists()
        files.write_whole(self.folder / HELD, b"", durable=False)
        try:
            seen = self.store.hold(self._runner, read_only=self._read_only)
        except Locked:
            (self.folder / HELD).unlink()
            raise
        self._is_ours, self._is_stuck = True, False
        return seen

    def _start(self, seen: Seen) -> None:
        self._showing().start()
        if not self._read_only:
            self.store.check_alone(self._runner)
        self._own.note(self.store.url, seen)

    def _showing(self) -> Showing:
        return Showing(self.store, self._own, self._patience, self._read_only, self._runner)

    def _is_sound(self) -> bool:
        """Whether the image is there, and can be reached again when the connection breaks."""
        noted = self._own.noted()
        if not self.stands() or not noted:
            return False
        if noted.url != self.store.url:
            if self._own.in_use():
                raise Unavailable(
                    f"the volume is still open on {noted.url}", hint="close it first: lukshook close NAME"
                )
            return False
        if not self._own.running(LISTENER):
            self._showing().listen_again()
        return True

    def _keep_reachable(self) -> None:
        """Let the connection of an image that stands be made again, where its listener was killed; else leave it."""
        self._earlier = self._own.was_written
        with suppress(LukshookError, OSError):
            self._is_sound()

    def _clear(self, *, holds: bool = False, discards: bool = False) -> None:
        """End what stands and drop what is left, unless layers of the volume stand on it. Cannot be interrupted.

        *holds*: the image stays ours, where the store has locks apart from connections. *discards*: nobody wants to
        know what became of the image.
        """
        if not os.path.lexists(self.folder) or self._own.in_use():
            return
        ending.end_all(self._own, self._runner)
        if not discards:
            self._keep_loss()
        self._own.forget(all_of_it=discards)
        if not holds:
            self._let_go()

    def _keep_loss(self) -> None:
        """What a killed lukshook has written may be lost, and its notes, which would say so, go: keep that.

        The store is asked once, because the command that clears away may only want to read.
        """
        noted = self._own.noted()
        if self._checked or not self._own.was_written:
            return
        if noted is None or noted.url == self.store.url:
            identity = None if noted is None else noted.identity
            why = changes.since(self.store, self.folder, identity, 0.0, self._runner)
        else:
            why = f"was {noted.url}, and cannot be asked any more whether it has restarted"
        if why:
            self._own.owe(why)

    def _let_go(self) -> None:
        """Let others have the image. Where that fails, it stays noted, and the next command of this host does it."""
        held, url = self.folder / HELD, self.store.url
        if held.exists() and not self._is_stuck:
            try:
                self.store.let_go(self._runner)
            except LukshookError as error:
                self._is_stuck = self._is_ours
                if self._is_ours:
                    self._warn(f"other hosts stay locked out of {url} until lukshook works here: {error.message}")
            if not self._is_stuck:
                held.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    # A new image, another length

    def resize(self, image: ImageFile, length: int, fill: str) -> None:
        """Give *image*, which is open and on which nothing stands, *length* bytes: it disappears, and appears again.

        Raises `Unavailable`, `NotSafe`.
        """
        with self._locked():
            self.check_same()
            image.let_go()
            self._clear(holds=True)
            try:
                self.store.resize(length, fill, self._runner)
            finally:
                self._checked = False
                self.attach()
                image.reopen()

    @contextmanager
    def new(self, length: int, fill: str) -> Iterator[None]:
        """A new image of *length* bytes is there inside, under another name until `publish`. It goes when that fails.

        Raises `Unavailable`, and what the block raises.
        """
        self.store = self._final.unfinished()
        try:
            with self._locked():
                self._clear(discards=True)
                self.attach(lambda: self._make(length, fill))
            yield
        except BaseException:
            if not self.published:
                self._discard()
            raise
        finally:
            self.store = self._final

    def _make(self, length: int, fill: str) -> None:
        """Make the new image; what an earlier, killed lukshook left of one goes."""
        self.store.remove(self._runner)
        self._made = True
        self.store.create(length, fill, self._runner)

    def _discard(self) -> None:
        """What raises in here is said by what made us discard it. What we did not make may be another host's."""
        with suppress(LukshookError), self._locked():
            self._clear(holds=True, discards=True)
            if self._made:
                self.store.remove(self._runner)
            self._clear(discards=True)

    def publish(self) -> None:
        """Give the new image its name. Raises `Exists`, `Unavailable`."""
        self._final.publish(self._runner)
        self.published = True
        self.store = self._final

    # What the store says

    def look(self) -> Seen:
        """What the store says of the image now. Raises as `Store.look`."""
        return self.store.look(self._runner)

    def check_same(self) -> None:
        """Check, once all was flushed, that the remote machine has not restarted since. Raises `NotSafe`.

        A restart loses what was written and not yet flushed; each client that connects again hides that.
        """
        noted, owed = self._own.noted(), self._own.owed()
        if self._checked or self._read_only or not (noted or owed or self._own.was_written):
            return
        self._checked = True
        identity = None if noted is None else noted.identity
        why = owed or changes.since(self.store, self.folder, identity, self._patience, self._runner)
        if why:
            self._lost = True
            if self._earlier:  # what wrote that has not reported it
                self._own.owe(why)
            raise NotSafe(
                f"the machine of {self.store.url} {why}",
                hint="what was written since the last flush may be lost; run the backup again",
            )

    def reported(self) -> None:
        """What was lost of what this lukshook or an earlier one has written is reported and written down."""
        self._checked = self._lost = True
        (self.folder / OWED).unlink(missing_ok=True)

    def room(self, length: int) -> Room:
        """What the store said of its room when the image was attached; *length* of the image now, in bytes."""
        noted = self._own.noted()
        if not noted or noted.free is None:
            return Room(length, length, None, None)
        return Room(length, noted.allocated, noted.free, noted.total)


def _open_lock(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

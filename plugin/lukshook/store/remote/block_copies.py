"""Copies at a kind of store that has images and no files: as what `block_target` needs of it, devices.

Each device is spoken to through one connection of its own (`Store.link`), which is made when it is needed. A copy that
loses it fails, and the next run continues.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from lukshook.errors import LukshookError
from lukshook.store.block_target import BlockTarget
from lukshook.store.pipes import Pipes
from lukshook.store.remote import showing
from lukshook.store.remote.kind import STATUS, Store
from lukshook.store.remote.nbd_client import Nbd, NoExport
from lukshook.system import files
from lukshook.system.command import Runner, conversation, read

#: Seconds until a connection has ended that we leave.
_LEAVE_SECONDS = 15.0
#: Bytes of what a connection says for people.
_MOST_SAID = 1 << 16
#: The name of what lies beside a copy, where the store can make another image.
_ANNEX = ".lukshook-journal"
#: What the directory calls a copy: the same for all names by which a server offers one device.
_NAME = "copy"


@contextmanager
def block_target(store: Store, runner: Runner, *, writable: bool) -> Iterator[BlockTarget]:
    """The copy that *store* names. Raises as `Store.replica`."""
    with ExitStack() as kept:
        folder = _private_folder(kept)
        image = kept.enter_context(_Image(store, runner, folder, writable=writable, alone=writable))
        beside = store.beside(_ANNEX)
        annex = image
        if beside is not None:
            annex = kept.enter_context(_Image(beside, runner, _private_folder(kept), writable=writable, alone=False))
        yield BlockTarget(image, annex, _NAME, store.url)


def _private_folder(kept: ExitStack) -> Path:
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - only for copies there

    return Path(kept.enter_context(TemporaryDirectory(prefix="lukshook-")))


class _Image:
    """An image of a store as a device, within a `with` block. *folder*: a private one.

    *alone*: others that may have it open are kept out.
    """

    def __init__(self, store: Store, runner: Runner, folder: Path, *, writable: bool, alone: bool) -> None:
        self._store, self._runner, self._folder = store, runner, folder
        self._writable, self._alone = writable, alone
        #: Until it is claimed, nobody else is kept out, so nothing can be written.
        self._read_only = not writable or store.abilities.lock
        self._free: int | None = None
        self._nbd: Nbd | None = None
        self._open = ExitStack()
        self.length: int | None = None

    def __enter__(self) -> Self:
        """Look what is there. Raises as `Store.look`."""
        try:
            seen = self._store.look(self._runner)
            self._free = seen.free
            self.length = seen.length if self.can_grow else self._connected().export.length
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def claim(self) -> None:
        """Keep out others that may have it open; what was connected for reading is connected again.

        A connection to the image itself comes first: it is what sees that somebody came at the same time.
        """
        if not self._writable or not self._read_only:
            return
        self._leave()
        seen = self._store.hold(self._runner, read_only=False) if self._alone else self._store.look(self._runner)
        self._free, self.length, self._read_only = seen.free, seen.length, False
        if self._alone and self.length is not None:
            self._connected()

    @property
    def can_grow(self) -> bool:
        """Whether its length can be changed, and it can be made."""
        return self._store.abilities.create and self._store.abilities.grow

    def read(self, offset: int, length: int) -> bytes:
        """What lies there."""
        return self._connected().read(offset, length)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write *content* there."""
        self._connected().write(offset, content)

    def clear(self, offset: int, length: int) -> None:
        """Make the bytes there zeros."""
        self._connected().clear(offset, length)

    def sync(self) -> None:
        """Have the server store it; what was only read needs nothing."""
        if not self._read_only and self._nbd is not None:
            self._nbd.flush()

    def resize(self, length: int) -> None:
        """Make it, or give it another length; the connection does not learn that, so it is made again."""
        self.sync()
        self._leave()
        if self.length is None:
            self._store.create(length, "sparse", self._runner)
            if self._alone:
                self._store.hold(self._runner, read_only=False)
        else:
            self._store.resize(length, "sparse", self._runner)
        self.length = length

    def remove(self) -> None:
        """Remove it, if it is there."""
        if self.length is not None:
            self._leave()
            self._store.remove(self._runner)
            self.length = None

    def free(self) -> int | None:
        """What the store has said."""
        return self._free

    def _let_go(self) -> None:
        """Others may have it now; what fails here is nobody's concern any more."""
        with suppress(LukshookError, OSError):
            self._leave()
        if self._alone:
            with suppress(LukshookError):
                self._store.let_go(self._runner)

    def _connected(self) -> Nbd:
        if self._nbd is None:
            nbd = self._connect()
            showing.check(self._store, nbd.export, read_only=self._read_only)
            if self._alone and not self._read_only:
                self._store.check_alone(self._runner)
            self._nbd = nbd
        return self._nbd

    def _connect(self) -> Nbd:
        """A connection of its own. Raises as `Store.refusal` says."""
        (self._folder / STATUS).unlink(missing_ok=True)
        script = self._store.link(read_only=self._read_only, silence=0).script
        place = shlex.quote(os.fspath(self._folder))
        clear = f"kill -0 {os.getpid()} 2>/dev/null || rm -rf -- {place}\n"  # where we were killed
        command = read("sh", "-c", script.replace("@FOLDER@", place) + clear)
        self._runner.note(str(command))
        requests, answers, ended = self._open.enter_context(conversation(command))
        self._open.callback(ended, _LEAVE_SECONDS)
        self._open.callback(requests.close)
        try:
            return Nbd(Pipes(requests, answers, stops=True), self._store.export)
        except (NoExport, OSError) as error:
            self._open.close()
            said = "\n".join(filter(None, (self._said(), str(error))))
            raise self._store.refusal(said, self._status()) from error

    def _leave(self) -> None:
        """End the connection, once the server has taken all."""
        nbd, self._nbd = self._nbd, None
        with self._open:
            if nbd is not None:
                nbd.leave()

    def _said(self) -> str:
        try:
            return files.read(self._folder / "said", _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""

    def _status(self) -> int | None:
        try:
            return int(files.read(self._folder / STATUS, _MOST_SAID))
        except (OSError, ValueError):
            return None

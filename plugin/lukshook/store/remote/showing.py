"""The processes that show a remote image as a local file, and how they are started.

    file "image" (FUSE)  <-  nbdfuse  <-  "near"  <-  qemu-storage-daemon  <-  "socket"  <-  socat  <-  connections

Each connection is a process of ours, which watches it (`watch`, `sftp_bridge`), and the tool that makes it.

The daemon never ends by itself: while the connection is down, writing waits until there is a new one, at most for the
patience that is configured; then it fails with EIO. It could show the file too, but spoils what is written to it while
it waits: another request then overwrites the buffer (fuse_write in qemu 7.2, seen; "fuse: Copy write buffer content
before polling" on qemu-devel, 2025).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from attrs import frozen

from lukshook.errors import Refused, Unavailable
from lukshook.store.remote import export
from lukshook.store.remote.export import Export
from lukshook.store.remote.kind import STATUS, Locked, Store
from lukshook.store.remote.own_folder import OwnFolder
from lukshook.system import files, kernel, signals
from lukshook.system.command import Command, CommandFailed, Runner, descriptor_path

#: Seconds for a connection; until an earlier one has let its lock go; until one that gave no export has said how it
#: ended; until the image is shown, once its server has answered.
_CONNECT_SECONDS, _UNLOCK_SECONDS, _LAST_WORDS_SECONDS, _SHOW_SECONDS = 60.0, 15.0, 3.0, 30.0
#: Seconds without an answer until a connection counts as broken: at least and at most; between, a part of the patience.
_LEAST_SILENT, _MOST_SILENT, _SILENT_PART = 10.0, 90.0, 0.5
_ASK_AGAIN_SECONDS = 1.0
#: What the daemon says where the listener's socket is there, and nobody listens yet (ECONNREFUSED).
_TOO_EARLY = "Connection refused"
#: Wait until the program just started, or the process $pid, has ended; then end the former.
_TOGETHER = 'n=$!; while kill -0 "$n" && kill -0 "$pid"; do sleep 1; done 2>/dev/null; kill -9 "$n" 2>/dev/null'


@frozen
class Showing:
    """Starts what shows the image of *store* in *folder*. *patience*: seconds that writing waits for a connection."""

    store: Store
    folder: OwnFolder
    patience: float
    read_only: bool
    runner: Runner

    def start(self) -> None:
        """Let the image appear. Raises `Unavailable`, `Refused`; what was started until then stays."""
        with self.folder.opened() as descriptor:
            self._listen(descriptor)
            self._connect(descriptor)
            self._show(descriptor, self._checked().length)

    def listen_again(self) -> None:
        """Start the listener that was killed; the daemon connects to it by the name of the socket."""
        self.folder.socket.unlink(missing_ok=True)
        with self.folder.opened() as descriptor:
            self._listen(descriptor)

    def _listen(self, descriptor: int) -> None:
        """Start the listener; it inherits *descriptor*, so that no name of ours is in its address."""
        place = descriptor_path(descriptor)
        silence = max(_LEAST_SILENT, min(_MOST_SILENT, self.patience * _SILENT_PART))
        link = self.store.link(read_only=self.read_only, silence=silence)
        if link.script:
            text = link.script.replace("@FOLDER@", place).encode(errors="surrogateescape")
            files.write_whole(self.folder.path / "connect", text, durable=False, mode=0o700)
        self.runner.run(_listener(place, link.address.replace("@FOLDER@", place), descriptor))
        if not kernel.wait_until(self.folder.socket.exists, _CONNECT_SECONDS):
            raise Unavailable(
                f"the listener for {self.store.url} did not start: {self.folder.said()}",
                hint="lukshook -v shows how it is started; is the folder for what is open on a local disk?",
            )

    def _connect(self, descriptor: int) -> None:
        """Start the daemon, which is there once the server has given it the export.

        A lock that an earlier connection of ours has is waited for, and so is a listener that does not listen yet.
        Raises `Unavailable`, `Refused`.
        """
        end = time.monotonic() + _UNLOCK_SECONDS
        while True:
            with suppress(FileNotFoundError):
                os.truncate(self.folder.path / "said", 0)
            (self.folder.path / STATUS).unlink(missing_ok=True)
            try:
                with signals.allowed():
                    self.runner.run(self._daemon(descriptor_path(descriptor), descriptor))
            except CommandFailed as error:
                refusal = None if _TOO_EARLY in error.result.err else self._refusal(error)
                if not isinstance(refusal, Locked | None) or time.monotonic() > end:
                    raise (refusal or self._refusal(error)) from error
            else:
                return
            kernel.wait_until(lambda: False, _ASK_AGAIN_SECONDS)

    def _refusal(self, error: CommandFailed) -> Unavailable:
        """Why the daemon has no export that it can use. Raises what `_checked` does, where there is one."""
        if export.noted(self.folder.path).length:
            self._checked()
        kernel.wait_until((self.folder.path / STATUS).exists, _LAST_WORDS_SECONDS)
        said = "\n".join(filter(None, (self.folder.said(), error.result.reason)))
        return self.store.refusal(said, self.folder.status())

    def _checked(self) -> Export:
        """What the server has said of the export. Raises as `check`."""
        found = export.noted(self.folder.path)
        check(self.store, found, read_only=self.read_only)
        return found

    def _show(self, descriptor: int, length: int) -> None:
        """Let it appear as a file of *length* bytes. Raises `Unavailable`."""
        place, image = descriptor_path(descriptor), self.folder.image
        files.write_whole(image, b"", durable=False)
        self.runner.run(_show(str(image), place, descriptor, read_only=self.read_only))
        if not kernel.wait_until(lambda: self.folder.stands() and os.stat(image).st_size == length, _SHOW_SECONDS):
            raise Unavailable(
                f"{self.store.url} cannot be shown as a file: {self.folder.said()}",
                hint="that needs /dev/fuse, readable and writable for this user",
            )

    def _daemon(self, place: str, descriptor: int) -> Command:
        """What keeps the connection, and connects again."""
        name = self.store.export.replace(",", ",,")
        server = f"server.type=unix,server.path={place}/socket,export={name}"
        wait = f"reconnect-delay={max(1, round(self.patience))}"
        far = f"driver=nbd,node-name=far,{server},{wait},discard=unmap" + (",read-only=on" if self.read_only else "")
        near = "nbd,id=near,node-name=far,name=" + ("" if self.read_only else ",writable=on")
        socket = f"addr.type=unix,addr.path={place}/near,max-connections=1"
        return Command(
            (
                *("qemu-storage-daemon", "--daemonize", f"--pidfile={place}/pid"),
                *(f"--blockdev={far}", f"--nbd-server={socket}", f"--export={near}"),
            ),
            timeout=2 * _CONNECT_SECONDS,
            fds=(descriptor,),
            stays=True,
        )


def check(store: Store, found: Export, *, read_only: bool) -> None:
    """Check that an export is of use, and is safe to write unless *read_only*. Raises `Unavailable`, `Refused`."""
    if not found.length:
        raise Refused(f"the image {store.url} is empty", hint="restore it, or make a new one")
    if not found.flushes and not read_only:
        raise Unavailable(
            f"the server of {store.url} cannot flush: nobody could say when a backup is stored",
            hint="use another server, or other options for this one (nbdkit: a plugin with can_flush)",
        )
    if found.read_only and not read_only:
        raise Unavailable(
            f"the server of {store.url} offers the image read-only",
            hint="let this user write there; or read_only = true",
        )


def _listener(place: str, address: str, descriptor: int) -> Command:
    """The listener, in the background."""
    listen = f"UNIX-LISTEN:{place}/socket,fork,mode=600,unlink-early"
    start = f'socat "$1" "$2" </dev/null >/dev/null 2>>{place}/said &'
    return Command(("sh", "-c", start, "sh", listen, address), fds=(descriptor,), stays=True)


def _show(image: str, place: str, descriptor: int, *, read_only: bool) -> Command:
    """What shows the image as a file, in the background; it goes with the daemon.

    nbdfuse 1.14 hangs when its server is killed, and with it all that uses the image.
    """
    words = (*(("-r",) if read_only else ()), "-C", "1", image, "--unix", f"{place}/near")
    start = f'{{ pid=$(cat {place}/pid); nbdfuse "$@" & {_TOGETHER}; }} </dev/null >/dev/null 2>>{place}/said &'
    return Command(("sh", "-c", start, "sh", *words), fds=(descriptor,), stays=True)

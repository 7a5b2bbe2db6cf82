"""A remote image as a local file: the processes that show it, and how they are started, found and ended.

    file "image" (FUSE)  <-  nbdfuse  <-  "near"  <-  qemu-storage-daemon  <-  "socket"  <-  socat  <-  connections

Each connection is a process of ours, which watches it (`watch`, `sftp_bridge`), and the tool that makes it.

The daemon never ends by itself: while the connection is down, writing waits until there is a new one, at most for the
patience that is configured; then it fails with EIO. It could show the file too, but spoils what is written to it while
it waits: another request then overwrites the buffer (fuse_write in qemu 7.2, seen; "fuse: Copy write buffer content
before polling" on qemu-devel, 2025). All of it lies in one private folder. Each process inherits a
descriptor of that folder, by which it is found again, whoever started it and however that one ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import asdict, frozen

from lukshook.errors import LukshookError, NoImage, NotSafe, Refused, Unavailable
from lukshook.store.image_file import ImageFile
from lukshook.store.remote import handshake
from lukshook.store.remote.handshake import Export, NoExport
from lukshook.store.remote.kind import LATE, LOST, STATUS, UNFLUSHED, Locked, Seen, Store
from lukshook.store.room import Room
from lukshook.system import files, forked_call, json_files, kernel, ownership, processes, signals
from lukshook.system.command import Command, CommandFailed, Runner, change, descriptor_path

#: The programs that every remote store needs on this machine.
TOOLS = ("socat", "qemu-storage-daemon", "nbdfuse", "fusermount3")
_DAEMON = "qemu-storage-daemon"
#: How the kernel names our processes: what shows the file, the daemon, the listener, the script of one connection.
_SHOWING, _DAEMONS, _LISTENERS, _SCRIPTS = "nbdfuse", _DAEMON[:15], "socat", "sh"
#: Seconds: for another lukshook that attaches or detaches; for a connection; until an earlier one has let its lock go.
_LOCK_SECONDS, _CONNECT_SECONDS, _UNLOCK_SECONDS = 150.0, 60.0, 15.0
#: Seconds until a process that was asked to end is killed. By then nothing is unwritten that could still be written.
_END_SECONDS = 30.0
#: Seconds without an answer until a connection counts as broken: at least and at most; between, a part of the patience.
_LEAST_SILENT, _MOST_SILENT, _SILENT_PART = 10.0, 90.0, 0.5
#: Seconds in which whoever looks at the image is done with it.
_UNMOUNT_SECONDS = 5.0
#: Seconds until the image is shown, once its server has answered.
_SHOW_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 1.0
#: Seconds until a command that waits says that the connection is down.
_LOOK_SECONDS = 1.0
#: Seconds until a connection that gave no export has said how it ended.
_LAST_WORDS_SECONDS = 3.0
#: The file that says that the image is to be let go.
_HELD = "held"
#: Wait until the program just started, or the process $pid, has ended; then end the former.
_TOGETHER = 'n=$!; while kill -0 "$n" && kill -0 "$pid"; do sleep 1; done 2>/dev/null; kill -9 "$n" 2>/dev/null'
#: Bytes of what the last connection wrote to standard error.
_MOST_SAID = 1 << 16
#: What socat puts before each line: time, program, pid, severity.
_OF_SOCAT = re.compile(r"^.* socat\[[0-9]+\] [A-Z] ")


@frozen
class _Noted:
    """What was true when the image was attached: its *url*, and what the store said (`kind.Seen`)."""

    url: str
    identity: str
    allocated: int
    free: int | None
    total: int | None


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
        self._patience = patience
        self._read_only = read_only
        self._runner = runner
        self._warn = warn
        self._checked = False
        self.published = False
        self._made = False
        self._final = store

    @property
    def image(self) -> Path:
        """Where the image appears."""
        return self.folder / "image"

    def stands(self) -> bool:
        """Whether the image is there now; asks nobody."""
        return all(map(self._ours, (_SHOWING, _DAEMONS))) and kernel.mount_at(self.image) is not None

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
            with self._waiting():
                yield
        except BaseException:
            self._leave(use, check=False)
            raise
        else:
            self._leave(use, check=writes)
        finally:
            os.close(use)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Say when the connection is down, so that whoever waits knows for what; and when it is back."""
        with forked_call.beside(self._changes(), _LOOK_SECONDS):
            yield

    def _changes(self) -> Callable[[], None]:
        """What says in what way the connection has changed since the last call."""
        was_lost = False

        def tell() -> None:
            nonlocal was_lost
            is_lost = (self.folder / LOST).exists()
            if is_lost and not was_lost:
                self._warn(f"the connection to {self.store.url} is down; writing waits up to {self._patience:.0f} s")
            elif was_lost and not is_lost:
                self._warn(f"the connection to {self.store.url} is back")
            was_lost = is_lost

        return tell

    def _leave(self, use: int, *, check: bool) -> None:
        """Let the image go with its last user. *use*: the lock that says that we use it."""
        with self._locked():
            if not self._is_last(use):
                return
            try:
                if check:
                    self.check_same()
            finally:
                self._clear()

    def attach(self, make: Callable[[], None] | None = None) -> None:
        """Let the image appear, if it has not. What an earlier one left, and open layers stand on, stays as it is.

        *make*: makes the image before, once it is ours.
        """
        if self._is_sound():
            return
        if self._in_use():
            return
        self._clear()
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
        files.write_whole(self.folder / _HELD, b"", durable=False)
        try:
            return self.store.hold(self._runner, read_only=self._read_only)
        except Locked:
            (self.folder / _HELD).unlink()
            raise

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
                self._clear()
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
            self._clear(holds=True)
            if self._made:
                self.store.remove(self._runner)
            self._clear()

    def publish(self) -> None:
        """Give the new image its name. Raises `Exists`, `Unavailable`."""
        self._final.publish(self._runner)
        self.published = True
        self.store = self._final

    def look(self) -> Seen:
        """What the store says of the image now. Raises as `Store.look`."""
        return self.store.look(self._runner)

    def check_same(self) -> None:
        """Check, once all was flushed, that the remote machine has not restarted since. Raises `NotSafe`.

        A restart loses what was written and not yet flushed; each client that connects again hides that.
        """
        noted = self._noted()
        if self._checked or not noted or self._read_only:
            return
        self._checked = True
        why = self._what_changed(noted)
        if why:
            raise NotSafe(
                f"the machine of {self.store.url} {why}",
                hint="what was written since the last flush may be lost; run the backup again",
            )

    def _what_changed(self, noted: _Noted) -> str:
        """What has happened to the remote machine since the image was attached, or ""."""
        if (self.folder / LATE).exists():
            return "may have got what a broken connection carried after what was written later"
        if (self.folder / UNFLUSHED).exists():
            return "had not flushed what it had got when a connection broke"
        if not noted.identity:
            return ""
        try:
            now = self._identity_now()
        except LukshookError as error:
            return f"cannot be asked whether it has restarted: {error.message}"
        return "" if now == noted.identity else self.store.changed

    def _identity_now(self) -> str:
        """A connection that is down now is waited for, as when writing. Raises as `Store.look`."""
        end = time.monotonic() + self._patience
        while True:
            try:
                return self.store.look(self._runner).identity
            except Unavailable:
                if time.monotonic() > end:
                    raise
            kernel.wait_until(lambda: False, _ASK_AGAIN_SECONDS)

    def room(self, length: int) -> Room:
        """What the store said of its room when the image was attached; *length* of the image now, in bytes."""
        noted = self._noted()
        if not noted or noted.free is None:
            return Room(length, length, None, None)
        return Room(length, noted.allocated, noted.free, noted.total)

    # Starting

    def _start(self, seen: Seen) -> None:
        ownership.private_folder(self.folder)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listen(descriptor)
            export = self._asked(descriptor)
            self._check(export, seen)
            self._show(descriptor, export)
            if not self._read_only:
                self.store.check_alone(self._runner)
        finally:
            os.close(descriptor)
        noted = _Noted(self.store.url, seen.identity, seen.allocated, seen.free, seen.total)
        files.write_whole(self.folder / "noted", json.dumps(asdict(noted)).encode(), durable=False)

    def _listen(self, descriptor: int) -> None:
        """Start the listener; it inherits *descriptor*, so that no name of ours is in its address."""
        place = descriptor_path(descriptor)
        silence = max(_LEAST_SILENT, min(_MOST_SILENT, self._patience * _SILENT_PART))
        link = self.store.link(read_only=self._read_only, silence=silence)
        if link.script:
            text = link.script.replace("@FOLDER@", place).encode(errors="surrogateescape")
            files.write_whole(self.folder / "connect", text, durable=False, mode=0o700)
        self._runner.run(listener(place, link.address.replace("@FOLDER@", place), descriptor))
        if not kernel.wait_until((self.folder / "socket").exists, _CONNECT_SECONDS):
            raise Unavailable(
                f"the listener for {self.store.url} did not start: {self._said()}",
                hint="lukshook -v shows how it is started; is the folder for what is open on a local disk?",
            )

    def _asked(self, descriptor: int) -> Export:
        """What the server says of the export. A lock that an earlier connection of ours has is waited for."""
        end = time.monotonic() + _UNLOCK_SECONDS
        while True:
            with suppress(FileNotFoundError):
                os.truncate(self.folder / "said", 0)
            (self.folder / STATUS).unlink(missing_ok=True)
            try:
                with signals.allowed():
                    return handshake.ask(f"{descriptor_path(descriptor)}/socket", self.store.export, _CONNECT_SECONDS)
            except NoExport as error:
                kernel.wait_until((self.folder / STATUS).exists, _LAST_WORDS_SECONDS)
                refusal = self.store.refusal("\n".join(filter(None, (self._said(), str(error)))), self._status())
                if not isinstance(refusal, Locked) or time.monotonic() > end:
                    raise refusal from error
            kernel.wait_until(lambda: False, 1.0)

    def _check(self, export: Export, seen: Seen) -> None:
        if not export.flushes and not self._read_only:
            raise Unavailable(
                f"the server of {self.store.url} cannot flush: nobody could say when a backup is stored",
                hint="use another server, or other options for this one (nbdkit: a plugin with can_flush)",
            )
        if export.read_only and not self._read_only:
            raise Unavailable(
                f"the server of {self.store.url} offers the image read-only",
                hint="let this user write there; or read_only = true",
            )
        if not export.length:
            raise Refused(f"the image {self.store.url} is empty", hint="restore it, or make a new one")

    def _show(self, descriptor: int, export: Export) -> None:
        """Start the daemon; the earlier connection lets go of its lock a moment after it has ended."""
        place = descriptor_path(descriptor)
        files.write_whole(self.image, b"", durable=False)
        try:
            self._runner.run(daemon(self, place, descriptor))
        except CommandFailed as error:
            raise self.store.refusal(f"{self._said()}\n{error.result.reason}", None) from error
        self._runner.run(show(self, place, descriptor))
        if not kernel.wait_until(lambda: self.stands() and os.stat(self.image).st_size == export.length, _SHOW_SECONDS):
            raise Unavailable(
                f"{self.store.url} cannot be shown as a file: {self._said()}",
                hint="that needs /dev/fuse, readable and writable for this user",
            )

    def _is_sound(self) -> bool:
        """Whether the image is there, and can be reached again when the connection breaks."""
        noted = self._noted()
        if not self.stands() or not noted:
            return False
        if noted.url != self.store.url:
            if self._in_use():
                raise Unavailable(
                    f"the volume is still open on {noted.url}", hint="close it first: lukshook close NAME"
                )
            return False
        if not self._ours(_LISTENERS):
            self._listen_again()
        return True

    def _keep_reachable(self) -> None:
        """Let the connection of an image that stands be made again, where its listener was killed; else leave it."""
        with suppress(LukshookError, OSError):
            self._is_sound()

    def _listen_again(self) -> None:
        """Start the listener that was killed; the daemon connects to it by the name of the socket."""
        (self.folder / "socket").unlink(missing_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listen(descriptor)
        finally:
            os.close(descriptor)

    def command_patience(self) -> int:
        """Whole seconds that writing waits, for the daemon."""
        return max(1, round(self._patience))

    def is_read_only(self) -> bool:
        """Whether nothing is written."""
        return self._read_only

    # Ending

    def _clear(self, *, holds: bool = False) -> None:
        """End what stands and drop what is left, unless layers of the volume stand on it. Cannot be interrupted.

        *holds*: the image stays ours, where the store has locks apart from connections.
        """
        if not os.path.lexists(self.folder) or self._in_use():
            return
        others = set(self._connecting())
        showing = self._ours(_SHOWING)
        if not kernel.wait_until(self._is_unmounted, _UNMOUNT_SECONDS):
            self._unmount("-z" if os.geteuid() else "--lazy")  # whoever looks at it does not read the volume
        self._finish(showing)
        self._end(self._ours(_DAEMONS))
        others |= set(self._connecting())  # it may have connected again meanwhile; from now on, nobody does
        for pid, started in others:
            processes.tell(pid, started, signal.SIGTERM)
        self._finish(list(others))
        for name in set(os.listdir(self.folder)) - {_HELD}:
            (self.folder / name).unlink(missing_ok=True)
        if not holds:
            self._let_go()

    def _let_go(self) -> None:
        """Let others have the image. Where the store cannot be reached, the next one of ours finds its own lock."""
        held = self.folder / _HELD
        if held.exists():
            with suppress(LukshookError):
                self.store.let_go(self._runner)
        held.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _is_unmounted(self) -> bool:
        """Try to unmount the image; whether it is."""
        if kernel.mount_at(self.image) is not None:
            self._unmount()
        return kernel.mount_at(self.image) is None

    def _unmount(self, *options: str) -> None:
        tool = ("fusermount3", "-u") if os.geteuid() else ("umount",)
        with suppress(CommandFailed):
            self._runner.run(change(*tool, *options, "--", str(self.image)))

    def _connecting(self) -> list[tuple[int, int]]:
        """The listener, the scripts of connections, and all that they have started."""
        ours = [one for name in (_LISTENERS, _SCRIPTS) for one in self._ours(name)]
        return [one for pid, started in ours for one in ((pid, started), *processes.family(pid))]

    def _end(self, ours: list[tuple[int, int]]) -> None:
        """Ask each to end until it has, as often as qemu needs (`layers/qemu.py`: _end), then kill it."""
        for pid, started in ours:
            end = time.monotonic() + _END_SECONDS
            while kernel.started(pid) == started and time.monotonic() < end:
                processes.tell(pid, started, signal.SIGTERM)
                kernel.wait_until(lambda: kernel.started(pid) != started, _ASK_AGAIN_SECONDS)  # noqa: B023
        self._kill(ours)

    def _finish(self, ours: list[tuple[int, int]]) -> None:
        """Connections end by themselves, now that nobody talks to them; one whose line is silent is killed."""
        kernel.wait_until(lambda: not _living(ours), 3.0)
        self._kill(ours)

    @staticmethod
    def _kill(ours: list[tuple[int, int]]) -> None:
        for pid, started in _living(ours):
            processes.tell(pid, started, signal.SIGKILL)
        kernel.wait_until(lambda: not _living(ours), 5.0)

    # Looking

    def _ours(self, name: str) -> list[tuple[int, int]]:
        """The processes of that name that have our folder: pid and start time of each."""
        try:
            found = os.stat(self.folder, follow_symlinks=False)
        except OSError:
            return []
        pids = kernel.processes_with(name, found.st_dev, found.st_ino)
        ours = ((pid, kernel.started(pid)) for pid in pids if kernel.owner(pid) == os.geteuid())
        return [(pid, started) for pid, started in ours if started is not None]

    def _in_use(self) -> bool:
        """Whether layers of a volume stand on the image: a loop device, or the daemon that decrypts it."""
        image = str(self.image)
        if kernel.loops_named(image):
            return True
        return any(image in kernel.open_names(pid) for pid in kernel.processes_named(_DAEMONS))

    def _is_last(self, use: int) -> bool:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return not self._in_use()

    def _noted(self) -> _Noted | None:
        try:
            return json_files.build(_Noted, json_files.load(self.folder / "noted"))
        except (OSError, json_files.Damaged):
            return None

    def _said(self) -> str:
        """What the last connection wrote to standard error."""
        try:
            text = files.read(self.folder / "said", _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(_OF_SOCAT.sub("", line) for line in text.split("\n"))

    def _status(self) -> int | None:
        """How the last connection ended, None where it did not yet."""
        try:
            return int(files.read(self.folder / STATUS, _MOST_SAID))
        except (OSError, ValueError):
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = _open_lock(self.folder.with_name(f"{self.folder.name}.lock"))
        try:
            if not kernel.wait_until(lambda: _try(descriptor), _LOCK_SECONDS):
                raise Unavailable(f"another lukshook is connecting to {self.store.url}", hint="try again")
            yield
        finally:
            os.close(descriptor)


def listener(place: str, address: str, descriptor: int) -> Command:
    """The listener, in the background."""
    listen = f"UNIX-LISTEN:{place}/socket,fork,mode=600,unlink-early"
    start = f'socat "$1" "$2" </dev/null >/dev/null 2>>{place}/said &'
    return Command(("sh", "-c", start, "sh", listen, address), fds=(descriptor,), stays=True)


def daemon(attachment: Attachment, place: str, descriptor: int) -> Command:
    """What keeps the connection, and connects again."""
    patience = attachment.command_patience()
    export = attachment.store.export.replace(",", ",,")
    server = f"server.type=unix,server.path={place}/socket,export={export}"
    far = f"driver=nbd,node-name=far,{server},reconnect-delay={patience},open-timeout=20,discard=unmap"
    near = "nbd,id=near,node-name=far,name="
    if attachment.is_read_only():
        far += ",read-only=on"
    else:
        near += ",writable=on"
    socket = f"addr.type=unix,addr.path={place}/near,max-connections=1"
    return Command(
        (
            *(_DAEMON, "--daemonize", f"--pidfile={place}/pid"),
            *(f"--blockdev={far}", f"--nbd-server={socket}", f"--export={near}"),
        ),
        fds=(descriptor,),
        stays=True,
    )


def show(attachment: Attachment, place: str, descriptor: int) -> Command:
    """What shows the image as a file, in the background; it goes with the daemon.

    nbdfuse 1.14 hangs when its server is killed, and with it all that uses the image.
    """
    only = ("-r",) if attachment.is_read_only() else ()
    words = (*only, "-C", "1", str(attachment.image), "--unix", f"{place}/near")
    start = f'{{ pid=$(cat {place}/pid); nbdfuse "$@" & {_TOGETHER}; }} </dev/null >/dev/null 2>>{place}/said &'
    return Command(("sh", "-c", start, "sh", *words), fds=(descriptor,), stays=True)


def _open_lock(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _living(ours: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(pid, started) for pid, started in ours if kernel.started(pid) == started]

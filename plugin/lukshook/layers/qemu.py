"""The volume decrypted in user space: qemu-storage-daemon shows the image's plaintext as a file, without device-mapper.

The daemon lives from "before" to "after", in a session of its own. It holds a lock on the image, which other hosts
see where the store passes flock(2) on.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lukshook.errors import Busy, Denied, LukshookError, Refused, Unavailable
from lukshook.layers import qemu_process, qemu_start
from lukshook.layers.base import Extent, LayerHandle, LayerSpec, Opening, Records, write_out
from lukshook.luks.header import Copy, Header
from lukshook.store import room
from lukshook.store.image_file import LOCKED, locked_by_others, open_image
from lukshook.system import kernel, processes
from lukshook.system.command import Command, Runner, change, find_tool

if TYPE_CHECKING:
    from lukshook.layers.dirty_bitmap import Recorder

TOOLS: tuple[str, ...] = (qemu_process.PROGRAM, "fusermount3")
_LOCK_SECONDS = 5.0
#: Seconds until a daemon whose lukshook was killed has either written its pid down, the last thing before it can be
#: asked anything, or given up.
_START_SECONDS = 10.0
#: Bytes; a store with less free is full: a write that failed for want of room may have wanted this much.
_LITTLE = 1 << 20


@frozen(repr=False)
class Spec(LayerSpec):
    """*discard*: pass on which blocks are unused, which shows the store how full the volume is."""

    discard: bool = False

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """An empty file for the plaintext, and one daemon. No `Opening.header` and no record: they are for us."""
        plain = os.fspath(qemu_process.plain_file(opening))
        start = qemu_start.by_hand(below, opening, qemu_start.manner(below, discard=self.discard))
        return (change("install", "--mode=600", "--", "/dev/null", plain), start)

    def expect(self, below: str, opening: Opening) -> Handle:
        """The plaintext file."""
        return Handle(os.fspath(qemu_process.plain_file(opening)), 0, 0, 0, 0)

    def open(self, below: str, opening: Opening) -> Handle:
        """Judge the header, start the daemon with it, and see that it shows the volume of this very image.

        Raises `Refused`, `Denied`, `Unavailable`.
        """
        image = opening.descriptor_of(below)
        try:
            _lock(image, below)
            size = os.lseek(image, 0, os.SEEK_END)
            if not opening.read_only:
                room.check_limit(Path(below), size)
            header = opening.header_in(image)
            judged = _judge(header, size, opening)
            wanted = qemu_start.manner(below, discard=self.discard)
            manner = _run(wanted, opening, header, judged, image)
            handle = _handle(opening, below, os.fstat(image))
            try:
                _prove(handle, judged, size, image)
                handle = evolve(handle, recording=_recording(handle, opening, manner))
            except BaseException:
                handle.close(opening.runner)
                raise
        finally:
            os.close(image)
        return handle

    def can_record(self, runner: Runner) -> bool:
        """Whether the program is there that reads the record. Raises `Unavailable`."""
        from lukshook.layers.dirty_bitmap import READER  # noqa: PLC0415 - only for a volume with a ledger

        find_tool(READER)
        return True

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A daemon without a record, or the export of one that was killed (with pid 0)."""
        plain = qemu_process.plain_file(opening)
        try:
            image = os.stat(below, follow_symlinks=False)
        except OSError:
            return None
        starting = (image.st_dev, image.st_ino, plain)
        kernel.wait_until(lambda: not qemu_process.is_starting(*starting), _START_SECONDS)
        daemons = qemu_process.running(image.st_dev, image.st_ino, plain)
        pid = next(iter(daemons), 0)
        started = kernel.started(pid) if pid else None
        if started is None:
            left = os.fspath(plain)
            return Handle(left, 0, 0, image.st_dev, image.st_ino) if qemu_process.is_shown(left) else None
        return Handle(daemons[pid], pid, started, image.st_dev, image.st_ino, below)


@frozen(repr=False)
class Handle(LayerHandle):
    """A running daemon: the plaintext file it shows, its pid and start time, and the image it has open.

    *recording*: it has recorded where the image is written since it was opened. *connection*: the number of the file
    system that the plaintext file is.
    """

    path: str
    pid: int
    started: int
    device: int
    inode: int
    image: str = ""
    recording: bool = False
    connection: str = ""

    @property
    def records(self) -> Records:
        """What the daemon has in memory: nothing of an opening whose daemon was killed."""
        return Records.THIS_OPENING if self.recording else Records.NOTHING

    def written(self, runner: Runner) -> tuple[Extent, ...]:
        """What the daemon has recorded, the writes that it has begun included."""
        if not self.recording:
            return ()
        return _recorder(self).extents(runner)

    def close_commands(self) -> tuple[Command, ...]:
        """End the daemon, which writes out what it has; wait until it is gone; drop its files."""
        return qemu_process.end_commands(self.path)

    def settle(self, runner: Runner) -> str:
        """Have the daemon write out everything; what went wrong, or ""."""
        if not self.inspect():
            return "the daemon that decrypts the volume was killed" if qemu_process.is_shown(self.path) else ""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_out(descriptor, self.path)
            finally:
                os.close(descriptor)
        except OSError as error:
            return error.strerror or "I/O error"
        return _full(self)

    def unblock(self, above: str, runner: Runner) -> None:
        """End the waiting of a killed daemon for itself, and of all who wait for it. Raises `Unavailable`."""
        if self.connection and qemu_process.waits_for_itself(self.pid, self.started, above):
            qemu_process.abort(self.pid, self.connection, runner)

    def close(self, runner: Runner) -> None:
        """End the daemon, wait until it is gone, and drop what it leaves. Raises `Busy`."""
        if kernel.started(self.pid) == self.started:
            qemu_process.check_unused(self.path)
            runner.note(f"kill {self.pid}")
        with processes.watched(self.pid) as process:
            if not qemu_process.end(self.pid, self.started, process):
                raise Busy(f"the daemon of {self.path} (pid {self.pid}) did not exit", hint="is the store dead?")
            _let_go(self, process)
        qemu_process.drop(self.path, runner)

    def inspect(self) -> bool:
        """Whether that very daemon runs, has that very image open, and shows the file."""
        return (
            kernel.started(self.pid) == self.started
            and qemu_process.is_shown(self.path)
            and kernel.has_open(self.pid, self.device, self.inode)
        )


def _lock(image: int, below: str) -> None:
    """The daemon inherits this descriptor, and so holds the lock for as long as it lives (flock(2)).

    The kernel lets go of the files of a process that did asynchronous I/O a moment after the process has ended.
    """
    if not kernel.wait_until(lambda: _locked(image), _LOCK_SECONDS):
        raise locked_by_others(below)


def _locked(image: int) -> bool:
    try:
        fcntl.flock(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except LOCKED:
        return False
    except OSError:  # a store without locks
        return True
    return True


def _judge(header: Copy, size: int, opening: Opening) -> Header:
    judged = opening.trust.judge(header, size)
    if judged.type != "luks1":
        raise Refused(
            f"volume {opening.volume} has a LUKS2 header, which the userspace engine cannot read",
            hint='use engine = "kernel"; create with engine = "userspace" makes an image for both engines',
        )
    return judged


def _run(wanted: qemu_start.Manner, opening: Opening, header: Copy, judged: Header, image: int) -> qemu_start.Manner:
    """Start the daemon on the very file that was judged: it opens what its inherited descriptor leads to."""
    key = opening.key()
    text = key.text()
    try:
        opening.trust.vouch(judged, key)
        qemu_process.prepare(qemu_process.plain_file(opening))
        return qemu_start.start(opening, header, image, text, wanted)
    except (Denied, Unavailable):
        qemu_process.take_away(qemu_process.plain_file(opening))
        raise
    finally:
        key.wipe()
        text.wipe()


def _handle(opening: Opening, below: str, image: os.stat_result) -> Handle:
    plain = qemu_process.plain_file(opening)
    pid = qemu_process.pid(plain)
    started = kernel.started(pid) if pid else None
    if started is None:
        raise Unavailable(
            f"the daemon of volume {opening.volume} exited immediately", hint="lukshook -v shows how it was started"
        )
    shown = kernel.mount_at(plain)
    handle = Handle(os.fspath(plain), pid, started, image.st_dev, image.st_ino, below)
    return evolve(handle, connection=shown.number if shown else "")


def _prove(handle: Handle, header: Header, size: int, image: int) -> None:
    shown, expected = os.stat(handle.path).st_size, _whole_sectors(size) - header.offset
    if not handle.inspect() or shown != expected or os.lseek(image, 0, os.SEEK_END) != size:
        raise Refused(
            f"{handle.path} shows {shown} bytes, the header says {expected}",
            hint="the image was changed while the volume was being opened; nothing was mounted",
        )


def _whole_sectors(size: int) -> int:
    """Bytes that qemu shows of an image of *size* bytes: it fills the last sector of 512 bytes up (block.c of 7.2)."""
    return size + -size % 512


def _recording(handle: Handle, opening: Opening, manner: qemu_start.Manner) -> bool:
    """Whether the daemon records from now on where it writes, if that is wanted. Nobody has written until now."""
    if opening.recording is None or opening.read_only:
        return False
    try:
        if manner.folder is None:
            raise Unavailable("qemu does not start with a monitor", hint="lukshook -v shows why")
        _recorder(handle).begin(opening.recording.piece)
    except Unavailable as error:
        why = f"{error.message} ({error.hint})"
        opening.warn(f"volume {opening.volume}: what is written to the image is not recorded this time: {why}")
        return False
    return True


def _recorder(handle: Handle) -> Recorder:
    """The sockets are reached through the descriptor that the daemon has of their folder. Raises `Unavailable`."""
    from lukshook.layers.dirty_bitmap import Recorder  # noqa: PLC0415 - only for a volume with a ledger

    plain = Path(handle.path)
    found = os.stat(plain.parent)
    folder = kernel.open_file(handle.pid, found.st_dev, found.st_ino)
    if folder is None:
        raise Unavailable(f"the daemon of {plain} (pid {handle.pid}) has no monitor", hint="was it killed?")
    place = os.fspath(folder / plain.name)
    monitor, server = (qemu_process.beside(place, kind) for kind in (qemu_process.MONITOR, qemu_process.SERVER))
    return Recorder(monitor, server, qemu_start.IMAGE)


def _let_go(handle: Handle, process: int | None) -> None:
    """Wait until the kernel has closed the image: asynchronous I/O keeps it open a moment longer than the daemon lives,
    and a later unmounting of the store would find it busy. Waits in vain if another process has locked it by now.
    """
    if not handle.image:
        return
    try:
        image = open_image(Path(handle.image), writable=False)
    except LukshookError:
        return
    with image:
        found = os.fstat(image.descriptor)
        if (found.st_dev, found.st_ino) == (handle.device, handle.inode):
            kernel.wait_until(lambda: _locked(image.descriptor), _LOCK_SECONDS, process)


def _full(handle: Handle) -> str:
    """Whether the store was too small, for a user who is not root: fuse2fs 1.47.0 loses the error (seen); else "".

    Only a sparse image that was written to can meet that, and the store is still full then.
    """
    link = kernel.open_file(handle.pid, handle.device, handle.inode)
    if not os.geteuid() or link is None or not os.stat(handle.path).st_mode & 0o200:
        return ""
    image = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        found = room.through(image)
    finally:
        os.close(image)
    return "the store is full" if found.holes and (found.free or 0) < _LITTLE else ""

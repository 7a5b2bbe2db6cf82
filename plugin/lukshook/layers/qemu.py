"""The volume decrypted in user space: qemu-storage-daemon shows the image's plaintext as a file, without device-mapper.

The daemon lives from "before" to "after", in a session of its own. It holds a lock on the image, which other hosts
see where the store passes flock(2) on.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lukshook.errors import Busy, Denied, LukshookError, Refused, Unavailable
from lukshook.layers.base import Extent, LayerHandle, LayerSpec, Opening, Records, write_out
from lukshook.luks.header import Copy, Header
from lukshook.store import room
from lukshook.store.image_file import LOCKED, locked_by_others, open_image
from lukshook.system import kernel, processes
from lukshook.system.command import Command, CommandFailed, Runner, change, descriptor_path, find_tool
from lukshook.system.secret import Secret

if TYPE_CHECKING:
    from lukshook.layers.dirty_bitmap import Recorder

TOOLS: tuple[str, ...] = ("qemu-storage-daemon", "fusermount3")
_PROGRAM = "qemu-storage-daemon"
#: The image's node in the daemon.
_IMAGE = "image"
#: How the kernel names its process.
PROCESS = _PROGRAM[:15]
_OPEN_SECONDS = 60.0
_LOCK_SECONDS = 5.0
#: Seconds until a daemon whose lukshook was killed has either written its pid down, the last thing before it serves,
#: or given up.
_START_SECONDS = 10.0
#: Seconds for writing out what the daemon still has, at the speed of the store; and until it is asked again to end.
_QUIT_SECONDS = 600.0
_ASK_AGAIN_SECONDS = 1.0
#: Bytes; a store with less free is full: a write that failed for want of room may have wanted this much.
_LITTLE = 1 << 20
#: The daemon keeps the memory of one request for the next. glibc gives large blocks back at once, so that the pages of
#: qemu's buffers, up to 1 MiB each, are faulted in again: a quarter of its time when it reads (qemu 7.2, Linux 6.18).
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=67108864"}
#: Seconds in which a loop device goes that is in use no more.
_UNUSED_SECONDS = 5.0
#: What qemu says of a secret that opens no key slot (crypto/block-luks.c).
_WRONG_KEY = "Invalid password"


#: The daemon's files beside the plaintext: its process number; its monitor, and where it tells what was written.
_PID, _MONITOR, _SERVER = ".pid", ".monitor", ".written"

#: How a person ends a daemon and waits for it. It is asked more than once for the reason that `_end` has.
_END = 'pid=$(cat -- "$1"); while kill "$pid" 2>/dev/null; do sleep 1; done'


@frozen(repr=False)
class Spec(LayerSpec):
    """*discard*: pass on which blocks are unused, which shows the store how full the volume is."""

    discard: bool = False

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """An empty file for the plaintext, and one daemon.

        It reads the base64 text of the key without a line end, because qemu takes no bytes that are not UTF-8.
        """
        plain = os.fspath(plain_file(opening))
        return (change("install", "--mode=600", "--", "/dev/null", plain), _start(self, below, opening, _BY_HAND))

    def expect(self, below: str, opening: Opening) -> Handle:
        """The plaintext file."""
        return Handle(os.fspath(plain_file(opening)), 0, 0, 0, 0)

    def open(self, below: str, opening: Opening) -> Handle:
        """Judge the header, start the daemon, and see that it shows the volume of this very image.

        qemu reads the header itself, so it is judged again once the daemon has read it; qemu has no null cipher, and
        without the key, no one can make a key slot that it opens. Raises `Refused`, `Denied`, `Unavailable`.
        """
        image = opening.descriptor_of(below)
        try:
            _lock(image, below)
            size = os.lseek(image, 0, os.SEEK_END)
            if not opening.read_only:
                room.check_limit(Path(below), size)
            judged = _judge(image, size, opening)
            manner = _run(self, opening, judged, image)
            found = os.fstat(image)
            handle = _handle(opening, below, found.st_dev, found.st_ino)
            try:
                _prove(handle, judged, size, _judge(image, size, opening))
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
        plain = os.fspath(plain_file(opening))
        try:
            image = os.stat(below, follow_symlinks=False)
        except OSError:
            return None
        kernel.wait_until(lambda: not _is_starting(image.st_dev, image.st_ino, opening), _START_SECONDS)
        daemons = _daemons(image.st_dev, image.st_ino, opening)
        pid = next(iter(daemons), 0)
        started = kernel.started(pid) if pid else None
        if started is None:
            return Handle(plain, 0, 0, image.st_dev, image.st_ino) if _is_shown(plain) else None
        return Handle(daemons[pid], pid, started, image.st_dev, image.st_ino, below)


@frozen(repr=False)
class Handle(LayerHandle):
    """A running daemon: the plaintext file it shows, its pid and start time, and the image it has open.

    *recording*: it has recorded where the image is written since it was opened.
    """

    path: str
    pid: int
    started: int
    device: int
    inode: int
    image: str = ""
    recording: bool = False

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
        plain, pid_file = self.path, os.fspath(_beside(self.path, _PID))
        return (
            change("sh", "-c", _END, "sh", pid_file, timeout=_QUIT_SECONDS),
            change("rm", "--force", "--", plain, pid_file),
        )

    def settle(self, runner: Runner) -> str:
        """Have the daemon write out everything; what went wrong, or ""."""
        if not self.inspect():
            return "the daemon that decrypts the volume was killed" if _is_shown(self.path) else ""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_out(descriptor, self.path)
            finally:
                os.close(descriptor)
        except OSError as error:
            return error.strerror or "I/O error"
        return _full(self)

    def close(self, runner: Runner) -> None:
        """End the daemon, wait until it is gone, and drop what it leaves. Raises `Busy`."""
        if kernel.started(self.pid) == self.started:
            _check_unused(self.path)
            runner.note(f"kill {self.pid}")
        with processes.watched(self.pid) as process:
            if not _end(self, process):
                raise Busy(f"the daemon of {self.path} (pid {self.pid}) did not exit", hint="is the store dead?")
            _let_go(self, process)
        _drop(self.path, runner)

    def inspect(self) -> bool:
        """Whether that very daemon runs, has that very image open, and shows the file."""
        return (
            kernel.started(self.pid) == self.started
            and _is_shown(self.path)
            and kernel.has_open(self.pid, self.device, self.inode)
        )


def plain_file(opening: Opening) -> Path:
    """The file that becomes the plaintext; the same for a volume every time, in our private folder."""
    return opening.run_folder / f"{opening.label}.plain"


def _beside(plain: str, kind: str) -> Path:
    """Another file of the daemon that shows the file *plain*."""
    return Path(plain).with_suffix(kind)


def _pid_file(opening: Opening) -> Path:
    return _beside(os.fspath(plain_file(opening)), _PID)


@frozen(repr=False)
class _Manner:
    """How a daemon is started. *direct*: past the page cache. *joined*: not on the image, but on a `_plan` of it.

    *folder*: a descriptor of our private folder, for a daemon that gets a monitor there so that it can record what is
    written. It keeps the descriptor: the address of a socket is short (unix(7)), the name of a folder need not be.
    """

    direct: bool
    folder: int | None = None
    joined: bool = False

    @property
    def fds(self) -> tuple[int, ...]:
        return () if self.folder is None else (self.folder,)


#: Recording is for `written`, which nobody asks of what a person opened.
_BY_HAND = _Manner(direct=True)


@contextmanager
def _manners(opening: Opening) -> Iterator[tuple[_Manner, ...]]:
    """In the order in which they are tried: a store such as tmpfs may have no direct I/O, and no recorder is worth an
    opening."""
    plain = (_Manner(direct=True), _Manner(direct=False))
    if opening.recording is None or opening.read_only:
        yield plain
        return
    folder = os.open(opening.run_folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield (*(evolve(manner, folder=folder) for manner in plain), *plain)
    finally:
        os.close(folder)


def _plan(header: int, image: int, offset: int) -> int:
    """A descriptor of a file that has qemu read *header* in place of the first *offset* bytes of *image*.

    A text of VMDK with two parts, in sectors of 512 bytes (docs/interop and block/vmdk.c of qemu 7.2), which takes no
    LUKS header from another file.
    """
    begin, rest = offset // 512, (_whole_sectors(os.fstat(image).st_size) - offset) // 512
    parts = f'RW {begin} FLAT "{descriptor_path(header)}" 0\nRW {rest} FLAT "{descriptor_path(image)}" {begin}\n'
    text = '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\n'
    plan = os.memfd_create("lukshook-plan", os.MFD_CLOEXEC)
    os.write(plan, (text + parts).encode())
    return plan


def _start(spec: Spec, below: str, opening: Opening, manner: _Manner) -> Command:
    plain = os.fspath(plain_file(opening))
    file = "driver=vmdk,file.driver=file,file.filename" if manner.joined else "driver=file,filename"
    image = f"{file}={_escaped(below)},node-name={_IMAGE}"
    luks = f"driver=luks,node-name=volume,file={_IMAGE},key-secret=key"
    export = f"fuse,id=plain,node-name=volume,mountpoint={_escaped(plain)},allow-other=off"
    if manner.direct:
        image += ",cache.direct=on,aio=threads"
    if spec.discard:
        image, luks = f"{image},discard=unmap", f"{luks},discard=unmap"
    if opening.read_only:
        image, luks = f"{image},read-only=on", f"{luks},read-only=on"
    else:
        export += ",writable=on"
    return Command(
        (
            _PROGRAM,
            "--daemonize",
            f"--pidfile={_pid_file(opening)}",
            "--object=secret,id=key,file=/dev/stdin",
            f"--blockdev={image}",
            f"--blockdev={luks}",
            # Before the export: a daemon that ends after that leaves a mount.
            *(() if manner.folder is None else _monitor(plain, manner.folder)),
            f"--export={export}",
        ),
        stdin_from=f"{opening.key_from} | base64 --wrap=0",
        timeout=_OPEN_SECONDS,
        environment=_ENVIRONMENT,
        stays=True,
    )


def _monitor(plain: str, folder: int) -> tuple[str, ...]:
    """A monitor in our private folder: who reaches it has power over the daemon."""
    place = _escaped(f"{descriptor_path(folder)}/{_beside(plain, _MONITOR).name}")
    return (f"--chardev=socket,id=monitor,path={place},server=on,wait=off", "--monitor=chardev=monitor")


def _escaped(path: str) -> str:
    """A path inside a list of options, where a comma is written twice (qemu(1))."""
    return path.replace(",", ",,")


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


def _judge(image: int, size: int, opening: Opening) -> Header:
    judged = opening.trust.judge(opening.header_in(image), size)
    if judged.type != "luks1":
        raise Refused(
            f"volume {opening.volume} has a LUKS2 header, which the userspace engine cannot read",
            hint='use engine = "kernel"; create with engine = "userspace" makes an image for both engines',
        )
    return judged


def _run(spec: Spec, opening: Opening, judged: Header, image: int) -> _Manner:
    """Start the daemon on the very file that was judged: it opens what its inherited descriptor leads to.

    Returns how it was started.
    """
    key = opening.key()
    text, place = key.text(), descriptor_path(image)
    try:
        opening.trust.vouch(judged, key)
        _prepare(plain_file(opening))
        if opening.header is not None:
            return _run_with_header(spec, opening, opening.header, image, text)
        with _manners(opening) as manners:
            commands = {
                manner: evolve(_start(spec, place, opening, manner), stdin=text, fds=(image, *manner.fds))
                for manner in manners
            }
            return _first_that_starts(commands, opening)
    finally:
        key.wipe()
        text.wipe()


def _run_with_header(spec: Spec, opening: Opening, header: Copy, image: int, text: Secret) -> _Manner:
    """Start the daemon on the image behind another header, which lies in memory only."""
    memory = header.memfd()
    try:
        plan = _plan(memory, image, header.size)
        try:
            manner = _Manner(direct=False, joined=True)
            start = _start(spec, descriptor_path(plan), opening, manner)
            return _first_that_starts({manner: evolve(start, stdin=text, fds=(image, memory, plan))}, opening)
        finally:
            os.close(plan)
    finally:
        os.close(memory)


def _first_that_starts(commands: Mapping[_Manner, Command], opening: Opening) -> _Manner:
    for manner, command in commands.items():
        try:
            opening.runner.run(command)
        except CommandFailed as error:
            if _WRONG_KEY in error.result.err:
                raise _wrong_key(opening) from error
            failure = error
        else:
            return manner
    raise Unavailable(
        f"volume {opening.volume} cannot be decrypted: {failure.result.reason}",
        hint="the userspace engine needs /dev/fuse, readable and writable for this user",
    ) from failure


def _wrong_key(opening: Opening) -> Denied:
    return Denied(
        f"the key does not open volume {opening.volume}",
        hint=f"check which key is expected with: lukshook key test {opening.volume}; "
        f"to add a key slot for the userspace engine: lukshook trust {opening.volume}",
    )


def _prepare(plain: Path) -> None:
    """An empty file of ours for the daemon to put the plaintext over."""
    plain.unlink(missing_ok=True)
    os.close(os.open(plain, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _handle(opening: Opening, below: str, device: int, inode: int) -> Handle:
    pid = _pid(opening)
    started = kernel.started(pid) if pid else None
    if started is None:
        raise Unavailable(
            f"the daemon of volume {opening.volume} exited immediately", hint="lukshook -v shows how it was started"
        )
    return Handle(os.fspath(plain_file(opening)), pid, started, device, inode, below)


def _pid(opening: Opening) -> int:
    try:
        return int(_pid_file(opening).read_text())
    except (OSError, ValueError):
        return 0


def _prove(handle: Handle, before: Header, size: int, after: Header) -> None:
    if before != after:
        raise Refused("the header was replaced while the volume was being opened", hint="nothing was mounted")
    shown, expected = os.stat(handle.path).st_size, _whole_sectors(size) - before.offset
    if not handle.inspect() or shown != expected:
        raise Refused(
            f"{handle.path} shows {shown} bytes, the header says {expected}",
            hint="the header was replaced while the volume was being opened; nothing was mounted",
        )


def _whole_sectors(size: int) -> int:
    """Bytes that qemu shows of an image of *size* bytes: it fills the last sector of 512 bytes up (block.c of 7.2)."""
    return size + -size % 512


def _recording(handle: Handle, opening: Opening, manner: _Manner) -> bool:
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
    return Recorder(_beside(place, _MONITOR), _beside(place, _SERVER), _IMAGE)


def _check_unused(plain: str) -> None:
    """Check that nothing uses the plaintext file: the kernel does not keep a daemon from ending. Raises `Busy`.

    What lukshook put on it is closed by now; a loop device goes a moment after its last user.
    """
    if kernel.wait_until(lambda: not _users(plain), _UNUSED_SECONDS):
        return
    raise Busy(
        f"{', '.join(_users(plain))} uses {plain}, and lukshook did not open it",
        hint="unmount it, then detach the loop device: losetup --detach",
    )


def _users(plain: str) -> list[str]:
    """Loop devices and FUSE mounts of this user on the plaintext file."""
    mounts = (mount for mount in kernel.mounts() if mount.source == plain)
    return [*kernel.loops_named(plain), *(m.target for m in mounts if kernel.is_fuse_of(m, os.geteuid()))]


def _end(handle: Handle, process: int | None) -> bool:
    """Ask the daemon to end until it has; whether it has. *process*: its `processes.watched`.

    More than once: the signal only sets a flag (qemu_system_killed, qemu 7.2). One that comes between the daemon's look
    at the flag and its next wait does not wake it, and it waits on for ever (seen).
    """
    end = time.monotonic() + _QUIT_SECONDS
    while kernel.started(handle.pid) == handle.started and time.monotonic() < end:
        processes.tell(handle.pid, handle.started, signal.SIGTERM)
        kernel.wait_until(lambda: kernel.started(handle.pid) != handle.started, _ASK_AGAIN_SECONDS, process)
    return kernel.started(handle.pid) != handle.started


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


def _drop(path: str, runner: Runner) -> None:
    """Remove the export of a daemon that was killed, and our files."""
    if _is_shown(path):
        tool = ("fusermount3", "-u", "--", path) if os.geteuid() else ("umount", "--", path)
        try:
            runner.run(change(*tool))
        except CommandFailed as error:
            raise Busy(f"{path} is still in use: {error.result.reason}") from error
    for left in (Path(path), *(_beside(path, kind) for kind in (_PID, _MONITOR, _SERVER))):
        left.unlink(missing_ok=True)


def _is_shown(path: str) -> bool:
    return kernel.mount_at(path) is not None


def _is_starting(device: int, inode: int, opening: Opening) -> bool:
    """Whether a daemon has the image open that has not written its pid down."""
    daemons = _daemons(device, inode, opening)
    return os.fspath(plain_file(opening)) in daemons.values() and _pid(opening) not in daemons


def _daemons(device: int, inode: int, opening: Opening) -> dict[int, str]:
    """Our daemons that have the image open, each with the plaintext file it shows.

    Ours are those of this user that show the file in our folder, or showed it in one that is gone by now (a session's
    runtime folder). Another lukshook, with folders of its own, closes its own.
    """
    ours = plain_file(opening)
    pids = kernel.processes_with(PROCESS, device, inode)
    shown = {pid: Path(_exported(pid)) for pid in pids if kernel.owner(pid) == os.geteuid()}
    return {
        pid: os.fspath(plain)
        for pid, plain in shown.items()
        if plain == ours or (plain.name == ours.name and not plain.parent.exists())
    }


def _exported(pid: int) -> str:
    """The file that a daemon was started to show (`_start`), or ""."""
    found = (re.search(r",mountpoint=((?:[^,]|,,)+)", word) for word in kernel.words(pid) if "--export=fuse" in word)
    return next((match[1].replace(",,", ",") for match in found if match), "")

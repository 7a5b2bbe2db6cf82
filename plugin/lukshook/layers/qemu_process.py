"""The process of a qemu-storage-daemon of ours: its files, how it is found again, and how it is ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lukshook.errors import Busy, Unavailable
from lukshook.layers.base import Opening
from lukshook.system import fuse, kernel, loops, processes
from lukshook.system.command import Command, CommandFailed, Runner, change

PROGRAM = "qemu-storage-daemon"
#: How the kernel names its process.
NAME = PROGRAM[:15]
#: The daemon's files beside the plaintext: its process number; its monitor, and where it tells what was written.
PID, MONITOR, SERVER = ".pid", ".monitor", ".written"
_PLAIN = ".plain"
_PID_OPTION = "--pidfile="
#: Seconds for writing out what the daemon still has, at the speed of the store; and until it is asked again to end.
_QUIT_SECONDS = 600.0
_ASK_AGAIN_SECONDS = 1.0
#: Seconds in which a loop device goes that is in use no more.
_UNUSED_SECONDS = 5.0
#: Seconds in which a daemon that was killed is gone, unless it waits for something.
_DEATH_SECONDS = 2.0
#: How a person ends a daemon and waits for it. It is asked more than once for the reason that `end` has.
_END = 'pid=$(cat -- "$1"); while kill "$pid" 2>/dev/null; do sleep 1; done'


def plain_file(opening: Opening) -> Path:
    """The file that becomes the plaintext; the same for a volume every time, in our private folder."""
    return opening.run_folder / f"{opening.label}{_PLAIN}"


def beside(plain: Path | str, kind: str) -> Path:
    """Another file of the daemon that shows the file *plain*."""
    return Path(plain).with_suffix(kind)


def pid_option(plain: Path) -> str:
    """The word that tells a daemon where to write its number, and by which it is known later."""
    return f"{_PID_OPTION}{beside(plain, PID)}"


def prepare(plain: Path) -> None:
    """An empty file of ours for the daemon to put the plaintext over."""
    plain.unlink(missing_ok=True)
    os.close(os.open(plain, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def take_away(plain: Path) -> None:
    """Remove what `prepare` made, where no daemon has put anything over it."""
    with suppress(OSError):
        plain.unlink()


def pid(plain: Path) -> int:
    """The number that the daemon has written down, or 0."""
    try:
        return int(beside(plain, PID).read_text())
    except (OSError, ValueError):
        return 0


def is_shown(plain: str) -> bool:
    """Whether a daemon, which may be killed by now, has put the plaintext over the file *plain*."""
    return kernel.mount_at(plain) is not None


def is_starting(device: int, inode: int, plain: Path) -> bool:
    """Whether a daemon has the image open that has not written its pid down."""
    daemons = running(device, inode, plain)
    return os.fspath(plain) in daemons.values() and pid(plain) not in daemons


def running(device: int, inode: int, ours: Path) -> dict[int, str]:
    """Our daemons that have the image open, each with the plaintext file it shows or will show.

    Ours are those of this user for the file *ours* in our folder, or for one in a folder that is gone by now (a
    session's runtime folder). Another lukshook, with folders of its own, closes its own.
    """
    pids = kernel.processes_with(NAME, device, inode)
    shown = {pid: plain for pid in pids if kernel.owner(pid) == os.geteuid() for plain in _plain_files(pid)}
    return {
        pid: os.fspath(plain)
        for pid, plain in shown.items()
        if plain == ours or (plain.name == ours.name and not plain.parent.exists())
    }


def is_of(pid: int, label: str) -> bool:
    """Whether a daemon of any user was started for the volume, or the copy of one, with that label."""
    return any(plain.name == f"{label}{_PLAIN}" for plain in _plain_files(pid))


def _plain_files(pid: int) -> Iterator[Path]:
    """The file that a daemon was started to show."""
    words = (word for word in kernel.words(pid) if word.startswith(_PID_OPTION))
    return (beside(word.removeprefix(_PID_OPTION), _PLAIN) for word in words)


def check_unused(plain: str) -> None:
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
    return [*loops.named(plain), *(m.target for m in mounts if kernel.is_fuse_of(m, os.geteuid()))]


def waits_for_itself(pid: int, started: int, node: str) -> bool:
    """Whether a daemon was killed and cannot die, because loop device *node* stands on its plaintext file.

    The last process of a mount namespace unmounts what is mounted there while it dies. If that is the daemon, the
    kernel writes the file system on *node* out, and waits for the daemon to take that. Each process that asks *node*
    about its file waits too (seen with Linux 6.18).
    """
    return not kernel.wait_until(
        lambda: not kernel.is_dying(pid, started) or node not in loops.attached(), _DEATH_SECONDS
    )


def abort(pid: int, connection: str, runner: Runner) -> None:
    """Let all fail that waits for a killed daemon, the daemon too. Raises `Unavailable`.

    The loop device keeps the *connection*, so that no other can have its number.
    """
    switch = f"/sys/fs/fuse/connections/{connection.partition(':')[2]}/abort"
    runner.note(f"echo 1 >{switch}")
    if runner.dry:
        return
    try:
        fuse.abort(connection)
    except OSError as error:
        raise Unavailable(
            f"the process {pid} of {PROGRAM} was killed, and waits for itself: {error.strerror}",
            hint=f"as root, outside of any container: echo 1 >{switch}",
        ) from error


def end(pid: int, started: int, process: int | None) -> bool:
    """Ask the daemon to end until it has; whether it has. *process*: its `processes.watched`.

    More than once: the signal only sets a flag (qemu_system_killed, qemu 7.2). One that comes between the daemon's look
    at the flag and its next wait does not wake it, and it waits on for ever (seen).
    """
    last = time.monotonic() + _QUIT_SECONDS
    while kernel.started(pid) == started and time.monotonic() < last:
        processes.tell(pid, started, signal.SIGTERM)
        kernel.wait_until(lambda: kernel.started(pid) != started, _ASK_AGAIN_SECONDS, process)
    return kernel.started(pid) != started


def end_commands(plain: str) -> tuple[Command, ...]:
    """What a person would type: end the daemon, which writes out what it has; wait until it is gone; drop its files."""
    pid_file = os.fspath(beside(plain, PID))
    return (
        change("sh", "-c", _END, "sh", pid_file, timeout=_QUIT_SECONDS),
        change("rm", "--force", "--", plain, pid_file),
    )


def drop(plain: str, runner: Runner) -> None:
    """Remove the export of a daemon that was killed, and our files."""
    if is_shown(plain):
        tool = ("fusermount3", "-u", "--", plain) if os.geteuid() else ("umount", "--", plain)
        try:
            runner.run(change(*tool))
        except CommandFailed as error:
            raise Busy(f"{plain} is still in use: {error.result.reason}") from error
    for left in (Path(plain), *(beside(plain, kind) for kind in (PID, MONITOR, SERVER))):
        left.unlink(missing_ok=True)

"""How the processes that show a remote image are ended."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from lukshook.store.remote.kind import WRITING
from lukshook.store.remote.own_folder import DAEMON, SHOWING, OwnFolder
from lukshook.system import kernel, processes
from lukshook.system.command import CommandFailed, Runner, change

#: Seconds in which a process that looks at the image is done with it; in which connections end by themselves; until a
#: process that was killed is gone.
_UNMOUNT_SECONDS, _FINISH_SECONDS, _KILL_SECONDS = 5.0, 3.0, 5.0
#: Seconds until a process that was asked to end is killed. By then nothing is unwritten that could still be written.
_END_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 1.0


def end_all(folder: OwnFolder, runner: Runner) -> None:
    """End all that shows the image. What is noted of it stays.

    A daemon that waits for its first connection hears no signal; it gives up when there is none.
    """
    others = set(folder.connecting())
    showing = folder.running(SHOWING)
    if not kernel.wait_until(lambda: _is_unmounted(folder, runner), _UNMOUNT_SECONDS):
        _unmount(folder, runner, "-z" if os.geteuid() else "--lazy")  # who looks at it does not read the volume
    _finish(showing)
    if not folder.near.exists():
        _cut(others)
    _end(folder.running(DAEMON))
    kernel.wait_until(lambda: not (folder.path / WRITING).exists(), _FINISH_SECONDS)  # each says how it has ended
    _cut(others | set(folder.connecting()))  # it may have connected again meanwhile; from now on, nobody does


def _cut(connecting: set[tuple[int, int]]) -> None:
    for pid, started in connecting:
        processes.tell(pid, started, signal.SIGTERM)
    _finish(list(connecting))


def _is_unmounted(folder: OwnFolder, runner: Runner) -> bool:
    """Try to unmount the image; whether it is."""
    if kernel.mount_at(folder.image) is not None:
        _unmount(folder, runner)
    return kernel.mount_at(folder.image) is None


def _unmount(folder: OwnFolder, runner: Runner, *options: str) -> None:
    tool = ("fusermount3", "-u") if os.geteuid() else ("umount",)
    with suppress(CommandFailed):
        runner.run(change(*tool, *options, "--", str(folder.image)))


def _end(ours: list[tuple[int, int]]) -> None:
    """Ask each to end until it has, as often as qemu needs (`layers/qemu.py`: _end), then kill it."""
    for pid, started in ours:
        end = time.monotonic() + _END_SECONDS
        while kernel.started(pid) == started and time.monotonic() < end:
            processes.tell(pid, started, signal.SIGTERM)
            kernel.wait_until(lambda: kernel.started(pid) != started, _ASK_AGAIN_SECONDS)  # noqa: B023
    _kill(ours)


def _finish(ours: list[tuple[int, int]]) -> None:
    """Connections end by themselves, now that nobody talks to them; one whose line is silent is killed."""
    kernel.wait_until(lambda: not _living(ours), _FINISH_SECONDS)
    _kill(ours)


def _kill(ours: list[tuple[int, int]]) -> None:
    for pid, started in _living(ours):
        processes.tell(pid, started, signal.SIGKILL)
    kernel.wait_until(lambda: not _living(ours), _KILL_SECONDS)


def _living(ours: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(pid, started) for pid, started in ours if kernel.started(pid) == started]

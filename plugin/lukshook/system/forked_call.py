"""Work in child processes, which can be abandoned: a system call that hangs in the kernel, messages to others."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NoReturn

from attrs import frozen

from lukshook.system import command, kernel
from lukshook.system.command import DEFAULT_TIMEOUT, Command, TimedOut


def apart(call: Callable[[], None], device: int, typed: Command, kept: Collection[int] = ()) -> None:
    """Make a system call in a child, which has no open files but *kept*: when the store dies meanwhile, it hangs.

    *typed* is what a person would type. Raises OSError as the call does, and `TimedOut`
    after its time without a block of *device* (st_dev) read or written.
    """
    pid = os.fork()
    if pid == 0:
        _call_alone(call, kept)
    ended = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        done, seen = False, ""
        while not done and seen != (seen := kernel.blocks_moved(device)):
            done = bool(waiting.poll((typed.timeout or DEFAULT_TIMEOUT) * 1000))
    finally:
        os.close(ended)
    if not done:
        os.kill(pid, signal.SIGKILL)
        raise TimedOut(typed)
    failed = abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    if failed:
        raise OSError(failed, os.strerror(failed))


def _call_alone(call: Callable[[], None], kept: Collection[int]) -> NoReturn:
    """What the child of `apart` does: a reader of a pipe of ours must not have to wait for it."""
    code = errno.EIO
    try:
        os.setsid()
        _close_all_but({*kept, *command.lent_now()})
        call()
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


def _close_all_but(kept: Collection[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


@contextlib.contextmanager
def beside(look: Callable[[], None], pause: float) -> Iterator[None]:
    """Meanwhile, call *look* in a child: now, every *pause* seconds, and at the end. It may print.

    It is no thread, because we fork inside. It ends with us, however we end: it sees the end of a pipe. It has none of
    our other open files, so it keeps no volume busy and no lock. Raises OSError.
    """
    over, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _look_alone(look, pause, over)
    os.close(over)
    try:
        yield
    finally:
        os.close(end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _look_alone(look: Callable[[], None], pause: float, over: int) -> NoReturn:
    """What the child of `beside` does."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but({0, 1, 2, over})
        waiting = select.poll()
        waiting.register(over, select.POLLIN | select.POLLHUP)
        is_over = False
        while not is_over:
            look()
            is_over = bool(waiting.poll(pause * 1000))
        look()
    finally:
        os._exit(0)


#: Bytes of what a child of `in_children` tells; a pipe takes as many in one write (pipe(7)).
_MOST_TOLD = 4096


@frozen(repr=False)
class _Child:
    """A process that works: its number, and the pipe on which it tells how that ended."""

    pid: int
    told: int


def in_children(works: Sequence[Callable[[], str]], seconds: float) -> list[str | None]:
    """What each of *works* returns, each in a child of its own, all at the same time.

    None for one that raises, is killed, or does not end within *seconds*; it is ended then, with all that it has
    started in its session. A child has none of our open files, so it keeps no volume busy and no lock. Raises OSError.
    """
    ends = time.monotonic() + seconds
    children: list[_Child] = []
    try:
        for work in works:
            children.append(_start(work, seconds))
        return [_told(child, ends) for child in children]
    finally:
        for child in children:
            _end(child)


def _start(work: Callable[[], str], seconds: float) -> _Child:
    told, tells = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _work_alone(work, tells, seconds)
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(tells)
    return _Child(pid, told)


def _work_alone(work: Callable[[], str], tells: int, seconds: float) -> NoReturn:
    """What a child of `in_children` does. It ends in time also where we were killed meanwhile (alarm(2))."""
    try:
        os.setsid()
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(math.ceil(seconds) + 1)
        _close_all_but({tells})
        _only_null(tells)
        os.write(tells, b"=" + work().encode(errors="replace")[: _MOST_TOLD - 1])
    finally:
        os._exit(0)


def _only_null(tells: int) -> None:
    """Let nothing that is said reach the host, whatever a library prints. *tells* is no standard stream."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        if stream != tells:
            os.dup2(null, stream)


def _told(child: _Child, ends: float) -> str | None:
    waiting = select.poll()
    waiting.register(child.told, select.POLLIN)
    if not waiting.poll(max(ends - time.monotonic(), 0) * 1000):
        return None
    said = os.read(child.told, _MOST_TOLD)
    return said[1:].decode(errors="replace") if said else None


def _end(child: _Child) -> None:
    """End a child and what it has started, and wait a moment; one that hangs in the kernel cannot be waited for."""
    os.close(child.told)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # a session of its own, but not yet, or no more
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(child.pid, signal.SIGKILL)
    ended = os.pidfd_open(child.pid)
    try:
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        if waiting.poll(1000):
            os.waitpid(child.pid, 0)
    finally:
        os.close(ended)

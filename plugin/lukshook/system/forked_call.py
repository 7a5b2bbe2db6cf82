"""Run a system call in a child process, which can be abandoned if the call hangs in the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from lukshook.system import command, kernel
from lukshook.system.command import DEFAULT_TIMEOUT, Command, TimedOut


def apart(call: Callable[[int], None], descriptor: int, typed: Command) -> None:
    """Make a system call on *descriptor* in a child: when the store dies meanwhile, it hangs.

    *typed* is what a person would type. Raises OSError as the call does, and `TimedOut`
    after its time without a block read or written.
    """
    device = os.fstat(descriptor).st_dev
    pid = os.fork()
    if pid == 0:
        _call_alone(call, descriptor)
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


def _call_alone(call: Callable[[int], None], descriptor: int) -> NoReturn:
    """What the child of `apart` does: a reader of a pipe of ours must not have to wait for it."""
    code = errno.EIO
    try:
        os.setsid()
        kept = {descriptor, *command.lent_now()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        call(descriptor)
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)

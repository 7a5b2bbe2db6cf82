"""A system call made by a child: where it hangs in the kernel no signal ends it, but a child can be left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from lukshook import command, kernel
from lukshook.command import DEFAULT_TIMEOUT, Command, TimedOut


def apart(call: Callable[[int], int], descriptor: int, typed: Command) -> int:
    """The errno of a system call on *descriptor*, 0 for none, made by a child: when the store dies meanwhile, it hangs.

    *typed* is what a person would type. Raises `TimedOut` after its time without a block read or written.
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
    return abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _call_alone(call: Callable[[int], int], descriptor: int) -> NoReturn:
    """What the child of `apart` does: nobody who waits for the end of a pipe of ours may have to wait for it."""
    code = errno.EIO
    try:
        os.setsid()
        kept = {descriptor, *command.lent_now()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        code = call(descriptor)
    finally:
        os._exit(code)

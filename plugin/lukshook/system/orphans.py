"""What a user's command leaves behind when it ends."""

from __future__ import annotations

import os
from contextlib import suppress

from lukshook.system import kernel, libc


def adopt() -> None:
    """From now on what is orphaned below us becomes a child of ours (prctl(2)): a command that ends at once when it is
    stopped, as rsnapshot does, leaves tools behind that continue to write."""
    libc.adopt_orphans()


def bury(command: int) -> None:
    """Reap adopted orphans that have exited, as init would: a lock of borg or rsnapshot takes a zombie for alive."""
    for pid in kernel.children(os.getpid()):
        if pid != command:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def stop(number: int) -> None:
    """Send *number* to what a stopped command has left behind; a daemon, with a session of its own, is spared.

    They are children of ours, so no other process gets their numbers before we have waited for them.
    """
    for pid in kernel.children(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == os.getsid(0):
                os.kill(pid, number)

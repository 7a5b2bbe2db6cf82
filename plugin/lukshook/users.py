"""Who uses a volume: the host tool behind a hook, told apart from the shells and wrappers between it and us."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lukshook import kernel
from lukshook.journal import User

#: Programs that only start another one: they end before the host does.
_WRAPPERS = frozenset(
    {
        "sudo",
        "doas",
        "su",
        "runuser",
        "env",
        "timeout",
        "nice",
        "ionice",
        "chronic",
        "setpriv",
        "setsid",
        "stdbuf",
        "time",
        "flock",
        "systemd-inhibit",
        "unshare",
        "chpst",
    }
)
#: Higher than any process has (PID_MAX_LIMIT, Linux).
_NO_PID = 2**22 + 1
_SHELLS = frozenset({"sh", "dash", "bash", "ash", "busybox", "zsh", "ksh", "mksh"})


def host() -> User:
    """The tool whose hook we are: the nearest ancestor that is no wrapper and no `sh -c`.

    A process that a service manager starts directly (ExecStartPre=) has no such ancestor; its cgroup names the unit.
    A tool that has ended already is a user that is not alive.
    """
    chain = [os.getpid(), os.getppid()]
    while chain[-1] > 1 and _passes_on(chain[-1]):
        chain.append(_parent(chain[-1]))
    if _orphaned(chain):
        return User("the backup tool", _NO_PID)
    pid = chain[-1]
    started = kernel.started(pid)
    if pid <= 1 or started is None:
        cgroup = kernel.cgroup_of()
        return User(cgroup.rpartition("/")[2] or "init", cgroup=cgroup)
    return User(f"{_name(pid)} (pid {pid})", pid, started)


def ourselves(who: str) -> User:
    """This very process, for as long as it runs."""
    return User(f"{who} (pid {os.getpid()})", os.getpid(), kernel.started(os.getpid()) or 0)


def by_hand() -> User:
    """Somebody who said `open` and will say `close`."""
    return User("lukshook open, by hand")


def _orphaned(chain: list[int]) -> bool:
    """Whether the last of our ancestors is one that adopted us: a child has its parent's session, unless it, or one
    between, began its own (setsid(2))."""
    ours = os.getsid(0)
    try:
        return os.getsid(chain[-1]) != ours and ours not in chain[:-1]
    except ProcessLookupError:  # it has just ended
        return True


def end(who: Iterable[User], patience: float = 60.0) -> None:
    """End the users that are processes, but not those that we run for, and wait until none is left.

    TERM first, and time: `lukshook run` passes it on, waits for its command and closes by itself.
    """
    spared = tuple(_ancestors())
    ending = [user for user in who if user.pid and user.pid not in spared]
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for user in filter(User.alive, ending):
            with suppress(ProcessLookupError, PermissionError):  # who stays is named by the close that follows
                os.kill(user.pid, number)
        if kernel.wait_until(lambda: not any(map(User.alive, ending)), seconds):
            return


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 1:
        yield pid
        pid = _parent(pid)


def _passes_on(pid: int) -> bool:
    words = _words(pid)
    if not words:
        return False
    program = Path(words[0]).name.lstrip("-")
    if program in _WRAPPERS:
        return True
    if program in _SHELLS and any(word.startswith("-") and "c" in word for word in words[1:2]):
        return True
    # A shell that forked itself to run us in a subshell has its parent's words.
    return words == _words(_parent(pid)) and program in _SHELLS


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 1

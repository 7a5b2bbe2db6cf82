"""Who uses a volume: the job behind a hook, distinguished from the shells, scripts and wrappers between it and us."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator

from attrs import evolve

from lukshook.errors import Usage
from lukshook.system import kernel, processes
from lukshook.volume import hook_scripts
from lukshook.volume.records import User

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
_LONGEST_NAME = 100
#: Higher than any process has (PID_MAX_LIMIT, Linux).
_NO_PID = 2**22 + 1


def host(known: Iterable[User] = ()) -> User:
    """The job whose hook we are: the nearest ancestor that does not pass on (`_passes_on`), or that is in *known*.

    *known*: who has the volume. A shell that is a job can become a wrapper, or us, by exec: as the last command of its
    text. A process that a service manager starts directly (ExecStartPre=) has no such ancestor; its cgroup names the
    unit. A tool that has ended already is a user that is not alive.
    """
    registered = {user.pid: user for user in known if user.pid and not user.job}
    chain = [os.getpid()]
    while chain[-1] > 1 and (len(chain) == 1 or _passes_on(chain[-1])):
        user = registered.get(chain[-1])
        if user is not None and user.alive():
            return user
        chain.append(kernel.parent(chain[-1]))
    if _orphaned(chain):
        return User("the backup tool", _NO_PID)
    pid = chain[-1]
    started = kernel.started(pid)
    if pid <= 1 or started is None:
        cgroup = kernel.cgroup_of()
        return User(cgroup.rpartition("/")[2] or "init", cgroup=cgroup)
    return User(f"{kernel.command(pid)} (pid {pid})", pid, started)


def ourselves(who: str) -> User:
    """This very process, for as long as it runs."""
    return User(f"{who} (pid {os.getpid()})", os.getpid(), kernel.started(os.getpid()) or 0, ours=True)


def process(pid: int) -> User:
    """The process that was named; one that has ended is a user that is not alive."""
    return User(f"{kernel.command(pid)} (pid {pid})", pid, kernel.started(pid) or 0)


def named(job: str, user: User) -> User:
    """The job of that name, which lives as long as *user*. Raises `Usage` for a name that no message could show."""
    if not job.isprintable() or len(job) > _LONGEST_NAME:
        raise Usage("LUKSHOOK_JOB must be a printable name", hint=f"up to {_LONGEST_NAME} letters, on one line")
    return evolve(user, who=f"job {job} of {user.who}", job=job)


def by_hand() -> User:
    """A person who ran `lukshook open` and will run `lukshook close`."""
    return User("lukshook open, by hand")


def _orphaned(chain: list[int]) -> bool:
    """Whether the last of our ancestors is one that adopted us: a child has its parent's session, unless it, or one
    between, began its own (setsid(2))."""
    ours = os.getsid(0)
    try:
        return os.getsid(chain[-1]) != ours and ours not in chain[:-1]
    except ProcessLookupError:  # it has just ended
        return True


def end(who: Iterable[User], warn: Callable[[str], None], patience: float = 60.0) -> None:
    """End the users that are processes, but not those that we run for, and wait until none is left.

    TERM first, and time: `lukshook run` passes it on, waits for its command and closes by itself. Who cannot be ended
    is named by the close that follows.
    """
    spared = ancestors()
    ending = [user for user in who if user.alive() and user.pid and user.pid not in spared]
    if ending:
        warn("ending " + ", ".join(user.who for user in ending))
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for user in ending:
            processes.tell(user.pid, user.started, number)
        if kernel.wait_until(lambda: not any(map(User.alive, ending)), seconds):
            return


def ancestors() -> frozenset[int]:
    """The processes that we run for, ourselves included; process 1 is not among them."""
    return frozenset(_line())


def _line() -> Iterator[int]:
    pid = os.getpid()
    while pid > 1:
        yield pid
        pid = kernel.parent(pid)


def _passes_on(pid: int) -> bool:
    """Whether a process only calls the hook for its parent: it ends when the hook has ended.

    A wrapper does, a subshell, and a script or `sh -c` with one of the two hooks in it. With both in it, it is the job.
    With neither, `sh -c` passes on, and a script is a tool: it has started something else that calls the hooks.
    """
    words = kernel.words(pid)
    if hook_scripts.name_of(words) in _WRAPPERS:
        return True
    # A shell that forked itself to run us in a subshell has its parent's words.
    if hook_scripts.is_shell(words) and words == kernel.words(kernel.parent(pid)):
        return True
    only_one, both = hook_scripts.calls(pid, words) or (False, False)
    return only_one or (not both and hook_scripts.is_shell(words) and hook_scripts.has_text(words))

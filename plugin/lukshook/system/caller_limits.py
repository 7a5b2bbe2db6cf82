"""What the caller's process hands down to ours and would change what we do: umask, limits on resources, signals.

We and our tools have our own; a user's own command gets back what the caller had.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: What we make is for us alone; where others have to read it, it gets its mode by chmod(2).
_UMASK = 0o077
#: The least that work on an image needs (getrlimit(2)): a tool that meets one of them is killed in the middle of it.
#: More descriptors than some programs can use (select(2)) are not asked for.
_LEAST = {
    resource.RLIMIT_FSIZE: resource.RLIM_INFINITY,
    resource.RLIMIT_CPU: resource.RLIM_INFINITY,
    resource.RLIMIT_AS: resource.RLIM_INFINITY,
    resource.RLIMIT_DATA: resource.RLIM_INFINITY,
    resource.RLIMIT_NOFILE: 1024,
}


class _Callers:
    umask = -1  # none: for subprocess, the one that we have
    limits: dict[int, tuple[int, int]] = {}  # noqa: RUF012 - replaced, never changed


def take() -> None:
    """From now on we have our own umask, limits as high as we may have them, and learn how our children end.

    Where SIGCHLD is ignored, the exit status of a child is lost: every tool would seem to have done its work.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if _Callers.umask == -1:
        _Callers.umask = os.umask(_UMASK)
        _Callers.limits = {limit: resource.getrlimit(limit) for limit in _LEAST}
    _raise_limits()


def umask() -> int:
    """The caller's umask; -1 where `take` was not called: ours is the caller's then."""
    return _Callers.umask


@contextmanager
def sharing() -> Iterator[None]:
    """Folders that are made inside, with mode 0755, are for those to read whom the caller's umask lets in.

    No other user may write there, and we may do everything, whatever that umask says.
    """
    if _Callers.umask == -1:
        yield
        return
    ours = os.umask(_Callers.umask & 0o077 | 0o022)
    try:
        yield
    finally:
        os.umask(ours)


@contextmanager
def as_the_caller_had() -> Iterator[None]:
    """What is started inside has the caller's limits."""
    for limit, both in _Callers.limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, both)
    try:
        yield
    finally:
        if _Callers.limits:
            _raise_limits()


def _raise_limits() -> None:
    for limit, least in _LEAST.items():
        soft, hard = resource.getrlimit(limit)
        if not _reaches(soft, least):
            _raise(limit, hard, least)


def _raise(limit: int, hard: int, least: int) -> None:
    """Raise a limit; only root may go beyond the hard one."""
    for both in [(least, hard)] if _reaches(hard, least) else [(least, least), (hard, hard)]:
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, both)
            return


def _reaches(value: int, least: int) -> bool:
    return value == resource.RLIM_INFINITY or (least != resource.RLIM_INFINITY and value >= least)


def file_size() -> int | None:
    """How long a file of a process of ours may get, in bytes (setrlimit(2): RLIMIT_FSIZE); None for any length."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if most == resource.RLIM_INFINITY else most

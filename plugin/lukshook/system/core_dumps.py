"""Core dumps would have a key in them: there are none of us and our tools; a user's own command may have them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

_callers: tuple[int, int] | None = None
#: Less than any core dump has, so none is written to a file; and the value at which the kernel gives none to a handler
#: behind a pipe either, for which it ignores every other limit, 0 as well (fs/coredump.c, Linux 6.1; core(5)).
_NO_CORE_DUMP = 1


def forbid() -> None:
    """From now on neither we nor a tool leaves a core dump, which would have a key in it (core(5)).

    A user's own command gets back what the caller had (`as_the_caller_had`).
    """
    global _callers  # noqa: PLW0603 - a limit belongs to the process as well
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if _callers is None:
        _callers = (soft, hard)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE_DUMP, hard or _NO_CORE_DUMP))
    except ValueError:  # the caller's hard limit is 0, and only root may raise it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def as_the_caller_had() -> Iterator[None]:
    """What is started inside has the caller's limits. We ourselves are not dumpable meanwhile (prctl(2))."""
    if _callers is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_CORE, _callers)
    try:
        yield
    finally:
        forbid()

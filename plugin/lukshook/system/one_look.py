"""What is asked for each of thousands of volumes, and is the same for all: found out once while `one_look` lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")
#: The answers of the look that lasts, the innermost last.
_looks: list[dict[Any, Any]] = []


@contextmanager
def one_look() -> Iterator[None]:
    """Inside, what is marked with `same_for_all` is that of the first asking: only for what changes nothing itself."""
    _looks.append({})
    try:
        yield
    finally:
        _looks.pop()


def same_for_all(ask: Callable[[], _Answer]) -> Callable[[], _Answer]:
    """Mark a function: it is called once while `one_look` lasts, and each time else."""

    @wraps(ask)
    def asked() -> _Answer:
        if not _looks:
            return ask()
        answers = _looks[-1]
        if ask not in answers:
            answers[ask] = ask()
        found: _Answer = answers[ask]
        return found

    return asked

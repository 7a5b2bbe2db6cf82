"""What is asked for each of thousands of volumes, and is the same for all: found out once while `one_look` lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_Asked = ParamSpec("_Asked")
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


def same_for_all(ask: Callable[_Asked, _Answer]) -> Callable[_Asked, _Answer]:
    """Mark a function: it is called once with the same arguments while `one_look` lasts, and each time else."""

    @wraps(ask)
    def asked(*about: _Asked.args, **named: _Asked.kwargs) -> _Answer:
        if not _looks:
            return ask(*about, **named)
        answers, question = _looks[-1], (ask, about, *named.items())
        if question not in answers:
            answers[question] = ask(*about, **named)
        found: _Answer = answers[question]
        return found

    return asked

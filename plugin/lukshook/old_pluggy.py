"""Wrappers as pluggy 1.7 calls them, for older versions: Debian 12 has 1.0, Debian 13 has 1.5.

Before 1.2 there is no `wrapper=True`. 1.0 and 1.5 (not 1.7) stop at the first `hookwrapper=True` that raises after its
yield: those around it never learn that the hook is over, and ours would not close the volume. Tests found both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pluggy

#: Whether this pluggy is older than 1.2.
IS_OLD = "wrapper" not in pluggy.HookimplMarker.__call__.__code__.co_varnames


def marker(project: str) -> Any:
    """What marks implementations of hooks: a `pluggy.HookimplMarker` that knows `wrapper`."""
    return partial(_mark, project) if IS_OLD else pluggy.HookimplMarker(project)


def _mark(project: str, function: Any = None, *, wrapper: bool = False, **options: Any) -> Any:
    """Mark *function*, or return what marks one. *options*: those of `pluggy.HookimplMarker`."""
    if function is None:
        return partial(_mark, project, wrapper=wrapper, **options)
    options["hookwrapper"] = wrapper or options.get("hookwrapper", False)
    pluggy.HookimplMarker(project)(function, **options)
    getattr(function, f"{project}_impl")["wrapper"] = wrapper  # pluggy 1.0 makes attributes of all that is in there
    return function


def is_new_style(implementation: Any) -> bool:
    """Whether a hook's implementation is a wrapper by `wrapper=True`."""
    return bool(getattr(implementation, "wrapper", False))


def adapt(manager: pluggy.PluginManager) -> None:
    """Have every registered wrapper called as pluggy 1.7 calls it. Call it once, after the last registration."""
    for caller in vars(manager.hook).values():
        for one in caller.get_hookimpls():
            if one.hookwrapper:  # from pluggy 1.2 on, not for wrappers of the new style
                one.function = partial(_new_style if is_new_style(one) else _old_style, one.function)


def _new_style(function: Callable[..., Any], *arguments: Any) -> Generator[None, Any, None]:
    """Step through a wrapper that is sent the result itself, and returns it."""
    inner = function(*arguments)
    _begin(inner)
    outcome = yield
    failure = outcome._excinfo and outcome._excinfo[1]
    step = partial(inner.throw, failure) if failure else partial(inner.send, outcome._result)
    ended, value = _finish(inner, step, outcome)
    if ended:
        outcome.force_result(value)


def _old_style(function: Callable[..., Any], *arguments: Any) -> Generator[None, Any, None]:
    """Step through a wrapper that is sent an outcome, and may change it."""
    inner = function(*arguments)
    _begin(inner)
    outcome = yield
    _finish(inner, partial(inner.send, outcome), outcome)


def _begin(inner: Generator[None, Any, Any]) -> None:
    try:
        next(inner)
    except StopIteration as error:
        raise RuntimeError("a wrapper did not yield") from error


def _finish(inner: Generator[None, Any, Any], step: Callable[[], object], outcome: Any) -> tuple[bool, object]:
    """Take the last *step*: whether it was the end, and what was returned. What it raises goes into *outcome*."""
    try:
        step()
        inner.close()
        raise RuntimeError("a wrapper has a second yield")
    except StopIteration as end:
        return True, end.value
    except BaseException as error:  # the wrapper around this one is sent it
        if hasattr(outcome, "force_exception"):  # since 1.1
            outcome.force_exception(error)
        else:
            outcome._excinfo = (type(error), error, error.__traceback__)
        return False, None

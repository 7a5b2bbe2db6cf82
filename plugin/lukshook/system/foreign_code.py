"""Code of others that runs in our process: plugins, and the libraries behind a key source.

It may raise anything, and it may change the process itself. Afterwards the process is as it was, and what was raised is
an error like any other: `SystemExit` ends nothing.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from lukshook.errors import BadConfiguration, LukshookError
from lukshook.system import signals, streams
from lukshook.system.text import clipped

#: Characters of what an error says that are shown.
_MOST = 500
_DESCRIPTORS = Path("/proc/self/fd")
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
#: What descriptors led to that code of others has left open, and whose code that was.
_openers: dict[int, tuple[str, str]] = {}


@frozen(eq=False, repr=False)
class Ended:
    """How a call ended: with *value*, or with *error*."""

    value: Any = None
    error: BaseException | None = None


def attempt(who: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Ended:
    """Call *function*, which is code of *who*. Raises `Interrupted` when a signal came, and nothing else."""
    raised = signals.raised()
    with _process_as_before(who):
        try:
            ended = Ended(function(*arguments, **named))
        except BaseException as error:
            ended = Ended(error=error)
    if signals.raised() and not raised:  # also where the code has caught it
        signals.raise_again()
    return ended


def failed(what: str, error: BaseException) -> LukshookError:
    """The error to raise for *error*, which code of others raised: *what* says who failed, and where.

    A `LukshookError` stays what it is, with *what* before its message. Everything else is a `BadConfiguration`:
    something that is installed on this machine is wrong.
    """
    known = _known(what, error)
    if known is None:
        known = BadConfiguration(f"{what}: {reason(error)}", hint=f"{_place(error)}see docs/plugins.md")
    let_go(error)
    return known


def _known(what: str, error: BaseException) -> LukshookError | None:
    """*error* with *what* before its message, if it is one of ours and whole: others can derive from it."""
    if not isinstance(error, LukshookError):
        return None
    message, hint = error.__dict__.get("message"), error.__dict__.get("hint")
    if not (isinstance(message, str) and isinstance(hint, str) and type(error).exit_code in range(1, 256)):
        return None
    error.message, error.hint = clipped(f"{what}: {message}", _MOST), clipped(hint, _MOST)
    return error


def reason(error: BaseException) -> str:
    """What *error* is and says, on one line; its own code, which makes the text, may fail as well."""
    kind = clipped(type(error).__name__, _MOST)
    try:
        text = clipped(str(error), _MOST)
    except BaseException:
        text = "its text cannot be shown"
    return f"{kind}: {text}" if text else kind


def opener(descriptor: int, target: str) -> str:
    """Whose code has opened *descriptor*, which leads to *target*, and left it open, or ""."""
    found, who = _openers.get(descriptor, ("", ""))
    return who if found == target else ""


def _place(error: BaseException) -> str:
    """Where it was raised, as the beginning of a hint."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename == __file__:
        return ""
    return f"raised in {clipped(trace.tb_frame.f_code.co_filename, _MOST)}, line {trace.tb_lineno}; "


def let_go(error: BaseException) -> None:
    """Drop the frames that failed: their variables may be open files of the volume."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


@contextmanager
def _process_as_before(who: str) -> Iterator[None]:
    """After the call the working folder, the mask of files, signals, timers and standard streams are as before.

    A child that was forked inside and comes back here ends: it would do our work a second time.
    """
    pid, known = os.getpid(), _open_now()
    folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        with _signals_as_before(), streams.as_before():
            yield
    finally:
        if os.getpid() != pid:
            os._exit(1)
        os.umask(mask)
        _go_back(folder)
        _note_opened(who, known)


def _go_back(folder: int) -> None:
    try:
        os.fchdir(folder)
        os.close(folder)
    except OSError:  # the code has closed it
        os.chdir("/")


@contextmanager
def _signals_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    timers = [signal.getitimer(timer) for timer in _TIMERS]
    try:
        yield
    finally:
        for timer, before in zip(_TIMERS, timers, strict=True):
            if before != signal.getitimer(timer):
                signal.setitimer(timer, *before)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _open_now() -> dict[int, str]:
    """The open descriptors and what they lead to, without the one that reads the list."""
    found = {}
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):
            found[int(name)] = os.readlink(_DESCRIPTORS / name)
    return found


def _note_opened(who: str, known: dict[int, str]) -> None:
    """Note what was left open; a file that only a cycle of objects keeps open is closed."""
    if set(_open_now().items()) - set(known.items()):
        gc.collect()
    for descriptor, target in _open_now().items():
        if known.get(descriptor) != target:
            _openers[descriptor] = target, who

"""Signals: the first one counts, and none breaks a step in two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lukshook.system import signals
from lukshook.system.signals import Interrupted


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals.install()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_raised_and_names_itself() -> None:
    """It unwinds the program like any exception."""
    with pytest.raises(Interrupted) as caught, signals.allowed():
        os.kill(os.getpid(), signal.SIGTERM)

    assert signal.SIGTERM == caught.value.signum


def test_later_signals_are_ignored() -> None:
    """Ctrl-C behind a backup tool arrives as INT and TERM a millisecond apart; the second must not break unwinding."""
    with pytest.raises(Interrupted), signals.allowed():
        os.kill(os.getpid(), signal.SIGINT)

    with signals.allowed():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
    signals.check()


def test_a_signal_waits_until_stopping_is_allowed() -> None:
    """A step and its record belong together."""
    os.kill(os.getpid(), signal.SIGINT)

    assert signal.SIGINT == signals.pending()
    with pytest.raises(Interrupted):
        signals.check()
    assert signals.pending() is None


def test_closing_is_never_interrupted() -> None:
    """Neither by a signal that came before, nor by one that comes while it closes."""
    os.kill(os.getpid(), signal.SIGINT)
    signals.ignore()
    os.kill(os.getpid(), signal.SIGTERM)

    signals.check()


def test_what_the_parent_ignores_stays_ignored() -> None:
    """Under nohup, HUP does not end us."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    signals.install()

    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)

"""What we say to a server and hear of it has bounds, whatever the server does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from lukshook.store import pipes
from lukshook.store.pipes import Pipes
from lukshook.system.signals import Interrupted
from support.noted_signals import noted_signals


class Line:
    """The pipes to a server, of which the test has the ends: *asked*, and *say*."""

    def __init__(self) -> None:
        reader, self.say = os.pipe()
        self.asked, writer = os.pipe()
        self.answers, self.requests = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")

    def pipes(self, silence: float, *, stops: bool = False) -> Pipes:
        return Pipes(self.requests, self.answers, silence, stops=stops)

    def close(self) -> None:
        self.answers.close()
        self.requests.close()
        os.close(self.asked)
        os.close(self.say)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def test_a_server_that_says_nothing_is_lost(line: Line) -> None:
    said = line.pipes(0.1)
    with pytest.raises(TimeoutError, match="has not answered"):
        said.hear(5)
    assert said.lost


def test_a_server_that_hears_nothing_is_lost(line: Line) -> None:
    with pytest.raises(TimeoutError, match="has not answered"):
        line.pipes(0.1).say(bytes(1 << 20))


def test_who_says_a_byte_now_and_then_is_lost(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold us for ever: it is never silent for long."""
    monkeypatch.setattr(pipes, "_LEAST", 1 << 20)
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.05):
            os.write(line.say, b"b")

    server = threading.Thread(target=drip)
    server.start()
    try:
        with pytest.raises(TimeoutError, match="too slowly"):
            line.pipes(0.5).hear(60)
    finally:
        ended.set()
        server.join()


def test_what_may_take_long_has_more_time(line: Line) -> None:
    said = line.pipes(0.05)
    later = threading.Timer(0.4, os.write, (line.say, b"done"))
    later.start()
    assert b"done" == said.hear(4, 30.0)
    later.join()
    assert not said.lost


def test_behind_what_was_broken_off_nothing_is_said(line: Line) -> None:
    """The server would take it for the rest of that."""
    said = line.pipes(0.05)
    os.write(line.say, b"half")
    with pytest.raises(TimeoutError):
        said.hear(5)
    os.write(line.say, b" of it")
    for again in (lambda: said.hear(1), lambda: said.say(b"more")):
        with pytest.raises(ConnectionResetError):
            again()


@pytest.mark.parametrize("hears", [True, False])
def test_a_signal_ends_the_wait(line: Line, *, hears: bool) -> None:
    said = line.pipes(60.0, stops=True)
    killer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    begun = time.monotonic()
    with noted_signals():
        killer.start()
        with pytest.raises(Interrupted):
            said.hear(5) if hears else said.say(bytes(1 << 20))
        killer.join()
    assert time.monotonic() - begun < 30
    assert said.lost

"""What can go wrong with a place for a remote image, at a random moment. At the end of it the place answers again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import Random

from support.far_places import Place, signal_all
from support.lukshook_process import kill_all


def killed(place: Place, chance: Random) -> None:
    """What serves, alone."""
    place.kill(place.hit(chance))
    time.sleep(chance.uniform(0.0, 3.0))
    place.up()


def stopped(place: Place, chance: Random) -> None:
    """It hangs, for a moment or longer than anybody waits."""
    pids = place.hit(chance)
    signal_all(pids, signal.SIGSTOP)
    time.sleep(chance.choice((1.0, 3.0, 14.0)))
    signal_all(pids, signal.SIGCONT)


def silent(place: Place, chance: Random) -> None:
    """The line passes nothing on, and no end says so; new ones work. What it holds may still come, or never."""
    lines = place.relay.lines()
    signal_all(lines, signal.SIGSTOP)
    time.sleep(chance.choice((2.0, 13.0)))
    if chance.choice((True, False)):
        signal_all(lines, signal.SIGCONT)
    else:
        kill_all(lines)


def dropped(place: Place, chance: Random) -> None:
    """Each packet is lost, of new lines too, for a moment or longer than anybody waits. Then both ends go on."""
    assert place.network is not None
    place.network.lose()
    time.sleep(chance.choice((2.0, 8.0, 14.0, 26.0)))
    place.network.find()


def restarted(place: Place, chance: Random) -> None:
    """The server, with all that it has started."""
    place.down()
    time.sleep(chance.uniform(0.0, 4.0))
    place.up()


def rebooted(place: Place, chance: Random) -> None:
    """The machine: what it had not synced is gone."""
    place.down()
    place.reboot()
    time.sleep(chance.uniform(0.0, 3.0))
    place.up()


def faults_of(place: Place) -> list[Callable[[Place, Random], None]]:
    """What can go wrong with it."""
    return [killed, stopped, dropped, restarted, *((silent, rebooted) if place.is_relayed else ())]


class Fault:
    """One of `faults_of`, at a random moment of the next *span* seconds, meanwhile."""

    def __init__(self, place: Place, chance: Random, span: float) -> None:
        self.what, self.after = chance.choice(faults_of(place)), chance.uniform(0.0, span)
        self._struck = place.worker.submit(self._strike, place, chance)

    def __str__(self) -> str:
        return f"{self.what.__name__} after {self.after:.1f} s"

    def _strike(self, place: Place, chance: Random) -> None:
        time.sleep(self.after)
        self.what(place, chance)

    def over(self) -> None:
        """Wait until the place answers again. Raises what went wrong with it."""
        self._struck.result()

"""Times that are kept: the wall clock can be set, so nothing that is decided may trust it blindly."""

from __future__ import annotations

import time

#: Seconds that a kept time may lie ahead of the clock: two clocks of one machine (a hardware clock in local time).
_TOLERANCE = 3600.0


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def uptime() -> float:
    """Seconds since the machine started, suspended or not. Nobody can set this clock (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def elapsed(began: float | None) -> float | None:
    """Seconds since the `uptime` *began* of this boot; None where it is not known."""
    passed = None if began is None else uptime() - began
    return None if passed is None or passed < 0 else passed


def age(moment: float) -> float | None:
    """Seconds since *moment*, or None where it lies in the future: then the clock was wrong, or is wrong now."""
    passed = now() - moment
    return None if passed < -_TOLERANCE else max(passed, 0.0)


def span(seconds: float) -> str:
    """A time that has passed, roughly and short: "40 s", "5 min", "3 h", "12 d"."""
    for unit, length, until in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < until * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def show(moment: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """*moment* in local time, also where no calendar has it."""
    try:
        return time.strftime(form, time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return f"{moment:.0f} s since 1970"

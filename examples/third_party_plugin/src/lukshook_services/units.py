"""systemctl(1), with a limit on its time: a hook has none of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from lukshook.errors import Unavailable

#: Seconds that a service may take to stop; systemd itself gives up after 90 by default.
_SECONDS = 120.0


def running(units: Iterable[str]) -> tuple[str, ...]:
    """Those of *units* that run now: only they are started again."""
    return tuple(unit for unit in units if _call("is-active", "--quiet", unit).returncode == 0)


def systemctl(verb: str, *units: str) -> None:
    """Stop or start *units*. Raises `Unavailable`, which lukshook shows in one line, with the hint."""
    done = _call(verb, *units)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"systemctl cannot {verb} {' '.join(units)}: {said[-1]}", hint="systemctl status says more")


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(
            f"systemctl {words[0]} did not work: {problem}", hint="does this system run systemd?"
        ) from None

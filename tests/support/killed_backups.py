"""An honest life of a volume: backups that end, and backups that are killed anywhere."""

from __future__ import annotations

import random
import signal
import time

from lukshook.system import kernel
from lukshook.volume import known_state
from support.lukshook_process import Child
from support.volume import NAME, CliVolume


def honest_cycles(volume: CliVolume, count: int, chance: random.Random) -> int:
    """That many backups of a volume, killed anywhere or not at all: none is refused. Returns how many were killed."""
    length = min(seconds_of(volume) for _ in range(3))
    before = written(volume)
    statuses = [killed_after(volume, chance.uniform(0.0, 1.2 * length)) for _ in range(count)]
    assert 0 == backup(volume).wait().returncode
    assert written(volume) > before
    return statuses.count(-signal.SIGKILL)


def seconds_of(volume: CliVolume) -> float:
    """How long a backup takes that nobody kills."""
    start = time.monotonic()
    assert 0 == backup(volume).wait().returncode
    return time.monotonic() - start


def backup(volume: CliVolume) -> Child:
    """A backup of one file, under way."""
    return volume.start("run", NAME, "--", "sh", "-c", f"head -c 65536 /dev/urandom >'{volume.data}/file'")


def killed_after(volume: CliVolume, seconds: float) -> int:
    """Let a backup run for a while, and recover what it leaves."""
    job = backup(volume)
    kernel.wait_until(job.poll, seconds)
    job.signal(signal.SIGKILL)
    done = job.wait()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    volume.do("after-backup", NAME)
    return done.returncode


def written(volume: CliVolume) -> int:
    """What this host knows of how much was ever written to the volume."""
    known = known_state.KnownState(volume.state_folder, NAME).known.written
    assert known is not None
    return known

"""An honest life of a volume: backups that end, and backups that are killed anywhere."""

from __future__ import annotations

import random
import signal
import time

from lukshook.system import kernel
from lukshook.volume import memory
from support.volume import NAME, Bench, Child


def honest_cycles(bench: Bench, count: int, chance: random.Random) -> int:
    """That many backups of a volume, killed anywhere or not at all: none is refused. Returns how many were killed."""
    length = min(seconds_of(bench) for _ in range(3))
    before = written(bench)
    statuses = [killed_after(bench, chance.uniform(0.0, 1.2 * length)) for _ in range(count)]
    assert 0 == backup(bench).wait().returncode
    assert written(bench) > before
    return statuses.count(-signal.SIGKILL)


def seconds_of(bench: Bench) -> float:
    """How long a backup takes that nobody kills."""
    start = time.monotonic()
    assert 0 == backup(bench).wait().returncode
    return time.monotonic() - start


def backup(bench: Bench) -> Child:
    """A backup of one file, under way."""
    return bench.start("run", NAME, "--", "sh", "-c", f"head -c 65536 /dev/urandom >'{bench.data}/file'")


def killed_after(bench: Bench, seconds: float) -> int:
    """Let a backup run for a while, and put right what it leaves."""
    job = backup(bench)
    kernel.wait_until(job.poll, seconds)
    job.signal(signal.SIGKILL)
    done = job.wait()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    bench.do("after-backup", NAME)
    return done.returncode


def written(bench: Bench) -> int:
    """What this host knows of how much was ever written to the volume."""
    known = memory.Memory(bench.state_folder, NAME).known.written
    assert known is not None
    return known

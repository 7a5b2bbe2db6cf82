"""Power cuts in the life of a volume with a ledger: no false alarm after any of them, and the ledger recovers."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guest import Guest, Job

JOB = Path(__file__).parents[1] / "support/honest_life_job.py"


def wait_for_an_act(acts: Path, job: Job) -> None:
    """Until the volume is there and something was done with it, however slow the machine is."""
    before, deadline = acts.stat().st_size, time.monotonic() + 600
    while acts.stat().st_size == before and job.returncode is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.outside
@pytest.mark.needs("linux.uml", "mkfs.btrfs")
@pytest.mark.parametrize("store", ["plain", "command", "btrfs"])
def test_a_power_cut_raises_no_alarm(
    tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random, store: str
) -> None:
    """At random moments of backups, kills, resizes, key changes, compact, copies and snapshots."""
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    for name in ("acts", "versions"):
        (share / name).touch()
    cuts = rounds(3, 100)
    for number in range(cuts):
        with Guest(disk=disk, share=share) as guest:
            if number:
                guest.run([sys.executable, str(JOB), store, "check"], check=True, timeout=900)
            job = guest.start([sys.executable, str(JOB), store, "work", str(chance.random())])
            wait_for_an_act(share / "acts", job)
            time.sleep(chance.uniform(0.0, 20.0))
            assert job.returncode is None, job.stderr
            guest.power_cut()
    with Guest(disk=disk, share=share) as guest:
        guest.run([sys.executable, str(JOB), store, "check"], check=True, timeout=900)
    opened = len((share / "versions").read_text().splitlines())
    print(f"{cuts} cuts, {opened} versions opened", sorted(Counter((share / "acts").read_text().split()).items()))
    assert opened or store == "plain"

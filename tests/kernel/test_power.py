"""Power cuts: the kernel is gone in the middle of whatever lukshook does, with all that was not flushed."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guest import Guest, Job

JOB = Path(__file__).parents[1] / "support/power_cut_job.py"


def wait_for_safe(notes: Path, job: Job) -> None:
    """Until a backup has ended: however slow the machine is, something has been reported as safe before a cut."""
    deadline = time.monotonic() + 300
    while '"safe"' not in notes.read_text() and job.returncode is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check_whole(guest: Guest, number: int, *volumes: str) -> None:
    """What was reported as safe in those volumes is; in all of them where none is named."""
    checked = guest.run([sys.executable, str(JOB), "check", *volumes], timeout=600)
    assert 0 == checked.returncode, f"before cut {number}: {checked.stdout}{checked.stderr}"


@pytest.mark.outside
@pytest.mark.needs("linux.uml")
def test_nothing_reported_as_safe_is_lost(
    tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """At random moments of create, backups, growing and key rotation; a fresh kernel finds every file whole."""
    cuts = rounds(3, 100)
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    (share / "notes").write_text("")
    for number in range(cuts):
        guest = Guest(disk=disk, share=share)
        guest.boot()
        try:
            if number:
                check_whole(guest, number, f"volume-{number - 1}")
            job = guest.start([sys.executable, str(JOB), "work", f"volume-{number}", str(chance.random())])
            if number == cuts - 1:
                wait_for_safe(share / "notes", job)
            time.sleep(chance.uniform(1.0, 15.0))
            assert job.returncode is None, job.stderr
        finally:
            guest.power_cut()
    with Guest(disk=disk, share=share) as guest:
        check_whole(guest, cuts)
    told = [json.loads(line)["kind"] for line in (share / "notes").read_text().splitlines()]
    print(f"{cuts} cuts, {told.count('safe')} files reported as safe, {told.count('done')} commands ended before a cut")
    assert "safe" in told

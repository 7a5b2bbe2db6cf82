"""Power cuts: the kernel is gone in the middle of whatever lukshook does, with all that was not flushed."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from guest import Guest, Job

JOB = Path(__file__).with_name("power_job.py")


def wait_for_safe(notes: Path, job: Job) -> None:
    """Until a backup has ended: however slow the machine is, something has been reported as safe before a cut."""
    deadline = time.monotonic() + 300
    while '"safe"' not in notes.read_text() and job.returncode is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.outside
@pytest.mark.needs("linux.uml")
def test_nothing_reported_as_safe_is_lost(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """At random moments of create, backups, growing and key rotation; a fresh kernel finds every file whole."""
    cuts = 100 if pytestconfig.getoption("--long") else 4
    chance = random.Random(os.environ.get("LUKSHOOK_TEST_SEED", "power"))
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    (share / "notes").write_text("")
    for number in range(cuts):
        guest = Guest(disk=disk, share=share)
        guest.boot()
        try:
            checked = guest.run([sys.executable, str(JOB), "check"], timeout=600)
            assert 0 == checked.returncode, f"after cut {number}: {checked.stdout}{checked.stderr}"
            job = guest.start([sys.executable, str(JOB), str(number)])
            if number == cuts - 1:
                wait_for_safe(share / "notes", job)
            time.sleep(chance.uniform(1.0, 15.0))
            assert job.returncode is None, job.stderr
        finally:
            guest.power_cut()
    with Guest(disk=disk, share=share) as guest:
        checked = guest.run([sys.executable, str(JOB), "check"], timeout=600)
        assert 0 == checked.returncode, checked.stdout + checked.stderr
    kinds = [json.loads(line)["kind"] for line in (share / "notes").read_text().splitlines()]
    assert "safe" in kinds

"""The power goes while a volume key is replaced."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guest import Guest
from support.lukshook_process import PATIENCE

JOB = Path(__file__).parents[1] / "support/power_cut_job.py"
#: Seconds for several lukshooks, one after the other.
SECONDS = 3 * PATIENCE

pytestmark = [pytest.mark.outside, pytest.mark.needs("linux.uml")]


def test_power_cuts_while_the_volume_key_is_replaced(
    tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """At random moments; a fresh kernel completes it and finds every file whole."""
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    (share / "notes").write_text("")
    words = [sys.executable, str(JOB)]
    with Guest(disk=disk, share=share) as guest:
        assert 0 == guest.run([*words, "prepare-rekey", "volume"], timeout=SECONDS).returncode
        guest.run(["sync"])
        for _ in range(rounds(1, 40)):
            told = (share / "notes").read_text().count("begun to rekey")
            job = guest.start([*words, "rekey", "volume"])
            end = time.monotonic() + SECONDS
            while (share / "notes").read_text().count("begun to rekey") == told and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            assert job.returncode is None, job.stderr
            guest.power_cut()
            guest.boot()
            done = guest.run([*words, "complete-rekey", "volume"], timeout=SECONDS)
            assert 0 == done.returncode, f"{done.stdout}{done.stderr}"
    notes = (share / "notes").read_text()
    print(f"{notes.count('middle')} cuts while data was on its way, {notes.count('between')} at other moments")
    assert "middle" in notes or "between" in notes

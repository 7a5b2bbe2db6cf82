"""Power cuts while writes are recorded: what was written before one is in the list after it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.guest import Guest

JOB = Path(__file__).parents[1] / "support/era_power_job.py"


@pytest.mark.outside
@pytest.mark.needs("linux.uml")
def test_what_was_written_before_a_power_cut_is_listed(
    tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """The list of a killed kernel lacks its last era until a target was loaded over it again.

    Where the tool cannot list (era_invalidate 1.1.0 of Debian 13, if the last era is empty), closing reads all.
    """
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    for _ in range(rounds(2, 30)):
        (share / "writes").write_text("0")
        with Guest(disk=disk, share=share) as guest:
            job = guest.start([sys.executable, str(JOB), "work", str(chance.random())])
            wanted = chance.randrange(5, 60)
            while int((share / "writes").read_text() or 0) < wanted:
                assert job.returncode is None, job.stderr
                time.sleep(0.1)
            guest.power_cut()
        with Guest(disk=disk, share=share) as guest:
            guest.run([sys.executable, str(JOB), "check"], check=True, timeout=600)
        facts = json.loads((share / "facts").read_text())
        print(facts)
        assert facts["covers"]
        assert facts["changed"]
        assert 0 == facts["missed"]
        assert not facts["read_whole"] or facts["tool_may_not_list"]

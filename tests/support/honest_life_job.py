"""Runs inside the test kernel while its power is cut: the honest life of a volume with a ledger, for ever.

honest_life_job.py work SEED      goes on until the power is cut
honest_life_job.py check          after a cut: no alarm, the next backup works, and then every piece is known
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

from support.honest_life import ACTS, KERNEL_ACTS, Life, backup, header_restored
from support.volume import NAME, CliVolume

OUT = Path(os.environ["LUKSHOOK_TEST_OUT"])
HOME = Path(os.environ["LUKSHOOK_TEST_DISK"]) / "life"


def life_of(seed: str) -> Life:
    """The life of the volume on the disk; its run folder is gone after a cut, as it should be."""
    HOME.mkdir(exist_ok=True)
    return Life(CliVolume(HOME, extra={"LUKSHOOK_RUN_DIR": "/run/lukshook-life"}), random.Random(seed))


def work(seed: str) -> None:
    life = life_of(seed)
    if not life.volume.image.exists():
        life.volume.prepare()
        life.configure()
        life.volume.do("create", NAME)
        os.sync()
    life.acts = tuple(act for act in (*ACTS, *KERNEL_ACTS) if act is not header_restored)  # it damages the header first
    life.prepare()
    while True:
        with (OUT / "acts").open("a") as acts:
            acts.write(f"{life.cycle()}\n")


def check() -> None:
    life = life_of("")
    life.configure()
    life.check("power cut")
    life.complete()
    life.check("completed")
    backup(life.volume, life.chance)
    life.check("backup")
    backup(life.volume, life.chance)
    found = json.loads(life.volume.do("status", NAME, "--json"))[0]
    assert (0, "up to date") == (found["unknown_pieces"], found["ledger"]), found
    life.check_found()


if __name__ == "__main__":
    check() if sys.argv[1] == "check" else work(sys.argv[2])

"""Runs inside the test kernel while its power is cut: writes into a volume whose writes are recorded, for ever.

era_power_job.py work SEED      notes what the image is like, opens, and writes until the power is cut
era_power_job.py check          continues the record, closes, and compares
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

from lukshook.layers import era_metadata
from lukshook.layers.base import Records
from lukshook.system.command import SystemRunner
from support import kernel_volume, recorded
from support.kernel_volume import KernelVolume
from support.recorded import Recorder

OUT = Path(os.environ["LUKSHOOK_TEST_OUT"])
HOME = Path(os.environ["LUKSHOOK_TEST_DISK"]) / "era"


def house_in(folder: Path) -> tuple[KernelVolume, Recorder]:
    """The volume in *folder*, which is made where it is not there, and what records its openings."""
    folder.mkdir(exist_ok=True)
    house = kernel_volume.empty(folder, size="96MiB")
    if not house.image.exists():
        house = kernel_volume.build(folder, size="96MiB")
    return house, recorded.armed(folder, pytest.MonkeyPatch())


def work(seed: str) -> None:
    """Random writes, each synced."""
    chance = random.Random(seed)
    house, _ = house_in(HOME)
    os.sync()
    before = [digest.hex() for digest in recorded.digests(house.image)]
    (OUT / "before").write_text(json.dumps(before))
    house.open()
    with (house.volume.data / "file").open("w+b") as file:
        file.truncate(40 << 20)
        for number in range(10**9):
            file.seek(chance.randrange(0, 39 << 20))
            file.write(chance.randbytes(chance.randrange(1, 70_000)))
            file.flush()
            os.fsync(file.fileno())
            (OUT / "writes").write_text(str(number))


def check() -> None:
    """Nothing that has changed since before the cut is missing in the list."""
    house, recorder = house_in(HOME)
    recorder.fresh.append(False)
    house.open()
    (house.volume.data / "later").write_bytes(os.urandom(3 << 20))
    house.close()
    before = [bytes.fromhex(digest) for digest in json.loads((OUT / "before").read_text())]
    different = recorded.changed(before, recorded.digests(house.image))
    covers, extents = recorder.lists[-1]
    listed = set() if extents is None else recorder.listed
    facts = {
        "covers": covers is Records.SINCE_CLEAN_CLOSE,
        "changed": len(different),
        "read_whole": extents is None,
        "tool_may_not_list": era_metadata._tool(SystemRunner()).skips_array,
        "missed": 0 if extents is None else len(different - listed),
    }
    (OUT / "facts").write_text(json.dumps(facts))


if __name__ == "__main__":
    check() if sys.argv[1] == "check" else work(sys.argv[2])

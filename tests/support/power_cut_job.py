"""Runs inside the test kernel while its power is cut: makes a volume, backs up, grows it, rotates its key, for ever.

    power_cut_job.py work VOLUME SEED
    power_cut_job.py check [VOLUME]...      opens these volumes instead, else all, and compares

Every file whose backup ended with 0 is noted in the folder shared with the host before the next step.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.volume import NAME, Bench

OUT = Path(os.environ["LUKSHOOK_TEST_OUT"])
HOME = Path(os.environ["LUKSHOOK_TEST_DISK"]) / "power"


def bench_of(name: str) -> Bench:
    """The volume in the folder of that name, with what does not outlive a boot where that is so."""
    bench = Bench(HOME / name, extra={"LUKSHOOK_RUN_DIR": f"/run/lukshook-{name}"})
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench


def note(kind: str, **facts: str) -> None:
    """Tell the host, which loses nothing."""
    with (OUT / "notes").open("a") as notes:
        notes.write(json.dumps({"kind": kind, **facts}) + "\n")


def do(bench: Bench, *arguments: str) -> None:
    """Run lukshook, which has to succeed, and tell that it has ended."""
    bench.do(*arguments)
    note("done", volume=bench.folder.name, command=" ".join(arguments))


def work(name: str, seed: str) -> None:
    chance = random.Random(seed)
    bench = bench_of(name)
    bench.prepare()
    os.sync()
    note("begun", volume=name)
    bench.do("create", NAME)
    note("created", volume=name)
    number = 0
    while True:
        do(bench, "before-backup", NAME)
        written = {}
        for _ in range(chance.randrange(1, 6)):
            number += 1
            content = chance.randbytes(chance.randrange(1, 500_000))
            (bench.data / f"{number}").write_bytes(content)
            written[str(number)] = hashlib.sha256(content).hexdigest()
        do(bench, "after-backup", NAME)
        for file, digest in written.items():
            note("safe", volume=name, file=file, digest=digest)
        if chance.random() < 0.3:
            do(bench, "resize", NAME, "+4MiB")
        if chance.random() < 0.2:
            do(bench, "resize", NAME, "-1MiB", "--yes")
        if chance.random() < 0.3:
            do(bench, "key", "rotate", NAME)


def check(chosen: Sequence[str]) -> None:
    """Every volume that was created opens, all its safe files are whole, and it closes; others can be made."""
    notes = [json.loads(line) for line in (OUT / "notes").read_text().splitlines()]
    created = {entry["volume"] for entry in notes if entry["kind"] == "created"}
    begun = [entry["volume"] for entry in notes if entry["kind"] == "begun"]
    for name in [name for name in begun if name in chosen or not chosen]:
        bench = bench_of(name)
        if name not in created and not bench.image.exists():
            bench.do("create", NAME)
        bench.do("before-backup", NAME)
        for entry in notes:
            if entry["kind"] == "safe" and entry["volume"] == name:
                content = (bench.data / entry["file"]).read_bytes()
                assert entry["digest"] == hashlib.sha256(content).hexdigest(), entry
        bench.do("after-backup", NAME)
        assert bench.is_bare()
        note("created", volume=name)


if __name__ == "__main__":
    check(sys.argv[2:]) if sys.argv[1] == "check" else work(*sys.argv[2:])

"""Runs inside the test kernel while its power is cut: makes a volume, backs up, grows it, rotates its key, for ever.

    power_cut_job.py work VOLUME SEED
    power_cut_job.py check [VOLUME]...      opens these volumes instead, else all, and compares
    power_cut_job.py prepare-rekey VOLUME   makes a volume; `rekey` replaces its volume key, for ever; `complete-rekey`
                                            completes that and compares

Every file whose backup ended with 0 is noted in the folder shared with the host before the next step.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

from lukshook.luks import reencryption
from support import rekey_cases
from support.volume import NAME, CliVolume

OUT = Path(os.environ["LUKSHOOK_TEST_OUT"])
HOME = Path(os.environ["LUKSHOOK_TEST_DISK"]) / "power"


def volume_of(name: str) -> CliVolume:
    """The volume in the folder of that name, with what does not outlive a boot where that is so."""
    volume = CliVolume(HOME / name, extra={"LUKSHOOK_RUN_DIR": f"/run/lukshook-{name}"})
    volume.folder.mkdir(parents=True, exist_ok=True)
    return volume


def note(kind: str, **facts: str) -> None:
    """Tell the host, which loses nothing."""
    with (OUT / "notes").open("a") as notes:
        notes.write(json.dumps({"kind": kind, **facts}) + "\n")


def do(volume: CliVolume, *arguments: str) -> None:
    """Run lukshook, which has to succeed, and tell that it has ended."""
    volume.do(*arguments)
    note("done", volume=volume.folder.name, command=" ".join(arguments))


def work(name: str, seed: str) -> None:
    chance = random.Random(seed)
    volume = volume_of(name)
    volume.prepare()
    os.sync()
    note("begun", volume=name)
    volume.do("create", NAME)
    note("created", volume=name)
    number = 0
    while True:
        do(volume, "before-backup", NAME)
        written = {}
        for _ in range(chance.randrange(1, 6)):
            number += 1
            content = chance.randbytes(chance.randrange(1, 500_000))
            (volume.data / f"{number}").write_bytes(content)
            written[str(number)] = hashlib.sha256(content).hexdigest()
        do(volume, "after-backup", NAME)
        for file, digest in written.items():
            note("safe", volume=name, file=file, digest=digest)
        if chance.random() < 0.3:
            do(volume, "resize", NAME, "+4MiB")
        if chance.random() < 0.2:
            do(volume, "resize", NAME, "-1MiB", "--yes")
        if chance.random() < 0.3:
            do(volume, "key", "rotate", NAME)


def check(chosen: Sequence[str]) -> None:
    """Every volume that was created opens, all its safe files are whole, and it closes; others can be made."""
    notes = [json.loads(line) for line in (OUT / "notes").read_text().splitlines()]
    created = {entry["volume"] for entry in notes if entry["kind"] == "created"}
    begun = [entry["volume"] for entry in notes if entry["kind"] == "begun"]
    for name in [name for name in begun if name in chosen or not chosen]:
        volume = volume_of(name)
        if name not in created and not volume.image.exists():
            volume.do("create", NAME)
        volume.do("before-backup", NAME)
        for entry in notes:
            if entry["kind"] == "safe" and entry["volume"] == name:
                content = (volume.data / entry["file"]).read_bytes()
                assert entry["digest"] == hashlib.sha256(content).hexdigest(), entry
        volume.do("after-backup", NAME)
        assert volume.is_bare()
        note("created", volume=name)


def prepare_rekey(name: str) -> None:
    """Make a volume with a file that is safe."""
    volume = volume_of(name)
    volume.prepare()
    os.sync()
    volume.do("create", NAME)
    note("begun", volume=name)
    note("created", volume=name)
    do(volume, "before-backup", NAME)
    content = random.Random(name).randbytes(10_000_000)
    (volume.data / "file").write_bytes(content)
    do(volume, "after-backup", NAME)
    note("safe", volume=name, file="file", digest=hashlib.sha256(content).hexdigest())


def rekey(name: str) -> None:
    """Replace the volume key again and again, and tell the host when data is on its way."""
    volume = volume_of(name)
    while True:
        child = volume.start("key", "rekey", NAME, "--keep-key", prepare=rekey_cases.quick)
        while not (told := rekey_cases.done_in(volume.state_folder / f"{NAME}.rekey")) and not child.poll():
            time.sleep(0.01)
        if told:
            note("begun to rekey", volume=name)
        assert child.wait().returncode == 0


def complete_rekey(name: str) -> None:
    """Complete what was begun, note what that was, and compare."""
    volume = volume_of(name)
    file = volume.state_folder / f"{NAME}.rekey"
    running = file.exists() and reencryption.progress(file).running
    note("middle" if running else "between", volume=name)
    if file.exists():
        do(volume, "key", "rekey", NAME)
    check([name])
    volume.do("header", "verify", NAME)
    rekey_cases.check_nothing_left(volume)


WORK: dict[str, Callable[..., None]] = {
    "work": work,
    "prepare-rekey": prepare_rekey,
    "rekey": rekey,
    "complete-rekey": complete_rekey,
}


if __name__ == "__main__":
    check(sys.argv[2:]) if sys.argv[1] == "check" else WORK[sys.argv[1]](*sys.argv[2:])

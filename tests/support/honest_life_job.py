"""Runs inside the test kernel while its power is cut: the honest life of a volume with a ledger, for ever.

honest_life_job.py STORE work SEED      goes on until the power is cut
honest_life_job.py STORE check          after a cut: no alarm, the next backup works, and then every piece is known

STORE: "plain", or how snapshots are taken after each backup: "command", or "btrfs", on which the image lies then.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

from lukshook.snapshots.btrfs import FOLDER
from support.honest_life import ACTS, KERNEL_ACTS, Life, backup, header_restored, open_version
from support.volume import NAME, CliVolume

OUT = Path(os.environ["LUKSHOOK_TEST_OUT"])
DISK = Path(os.environ["LUKSHOOK_TEST_DISK"])
#: Bytes of the disk with btrfs.
_BTRFS_BYTES = 1 << 30


def life_of(store: str, seed: str) -> Life:
    """The life of the volume on the disk; its run folder is gone after a cut, as it should be."""
    home = DISK / f"life-{store}"
    home.mkdir(exist_ok=True)
    life = Life(CliVolume(home, extra={"LUKSHOOK_RUN_DIR": "/run/lukshook-life"}), random.Random(seed))
    if store == "btrfs":
        mount_btrfs(home / "btrfs", life.volume.image.parent)
        life.options = {"snapshot": "btrfs", "keep_snapshots": 2}
    if store == "command":
        life.options = {**life.own_snapshots, "keep_snapshots": 2}
    return life


def mount_btrfs(disk: Path, place: Path) -> None:
    """A btrfs in the file *disk*, made where there is none, at *place*."""
    if place.is_mount():
        return
    run("modprobe", "btrfs")
    if not disk.exists():
        with disk.with_name("new").open("wb") as file:
            file.truncate(_BTRFS_BYTES)
        run("mkfs.btrfs", "-q", disk.with_name("new"))
        os.sync()
        disk.with_name("new").rename(disk)
    place.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", "--direct-io=on", disk)
    run("mount", device, place)


def run(*argv: str | Path) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout.strip()


def work(store: str, seed: str) -> None:
    life = life_of(store, seed)
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


def check(store: str) -> None:
    life = life_of(store, "")
    life.configure()
    life.check("power cut")
    check_versions(life)
    life.complete()
    life.check("completed")
    backup(life.volume, life.chance)
    life.check("backup")
    backup(life.volume, life.chance)
    found = json.loads(life.volume.do("status", NAME, "--json"))[0]
    assert (0, "up to date") == (found["unknown_pieces"], found["ledger"]), found
    check_versions(life)
    if life.options:
        assert sorted(taken(life, store)) == sorted(life.versions()), (taken(life, store), life.versions())
    life.check_found()


def check_versions(life: Life) -> None:
    """Each that is listed is whole, and opens."""
    for image in life.versions():
        open_version(life, image)
        with (OUT / "versions").open("a") as versions:
            versions.write(f"{image}\n")


def taken(life: Life, store: str) -> list[Path]:
    """What lies where snapshots are."""
    if store == "btrfs":
        return [entry / life.volume.image.name for entry in (life.volume.image.parent / FOLDER).iterdir()]
    return list(life.versions_folder.iterdir())


if __name__ == "__main__":
    check(sys.argv[1]) if sys.argv[2] == "check" else work(sys.argv[1], sys.argv[3])

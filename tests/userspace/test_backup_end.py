"""Closing is killed after each file that it writes: the backup is noted once, and has one snapshot."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kill_at_file import KillAtFile
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
TAKE = '#!/bin/sh\nset -e\ncp --sparse=always -- "$2" "{folder}/$1.img"\necho "{folder}/$1.img"\n'
#: How its owner goes on, and how many backups that ends.
WAYS = {
    "after-backup": (("after-backup", NAME), 0),
    "close": (("close", NAME), 0),
    "run": (("run", NAME, "--", "true"), 1),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume with a ledger."""
    yield from created(tmp_path_factory.mktemp("template"), "userspace", ledger=True)


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A copy of it, of which a copy is taken after each backup."""
    for one in copied(template, tmp_path):
        folder = tmp_path / "copies"
        folder.mkdir()
        (tmp_path / "take").write_text(TAKE.format(folder=folder))
        (tmp_path / "take").chmod(0o755)
        one.configure(ledger=True, snapshot=f"command:'{tmp_path}/take'", keep_snapshots=1000, space="warn")
        yield one


def ended(volume: CliVolume) -> list[dict[str, Any]]:
    """The backups that are noted."""
    found: list[dict[str, Any]] = json.loads(volume.do("history", NAME, "--json"))["runs"]
    return found


def listed(volume: CliVolume) -> list[str]:
    """The snapshots that are noted."""
    return sorted(one["image"] for one in json.loads(volume.do("versions", NAME, "--json"))[0]["versions"])


def status_of(volume: CliVolume) -> dict[str, Any]:
    """What `status` says of it."""
    (status,) = json.loads(volume.do("status", NAME, "--json"))
    found: dict[str, Any] = status
    return found


def killed_at(volume: CliVolume, step: int) -> bool:
    """A backup whose closing is killed there; False where it has come to its end."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text(f"{step}")
    done = volume.start("after-backup", NAME, prepare=KillAtFile(step, volume.folder / "changes")).wait()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def check_once(volume: CliVolume, step: int, way: str) -> bool:
    """Whether closing was killed there. Whoever goes on, it is one backup with one snapshot."""
    backups, snapshots = len(ended(volume)), len(listed(volume))
    killed = killed_at(volume, step)
    arguments, more = WAYS[way]
    still_open = "open" == status_of(volume)["state"]  # closing has not begun: another backup joins the first one
    volume.do(*arguments)
    more = 1 if still_open else 1 + more
    found = [run["result"] for run in ended(volume)]
    assert ["done"] * (backups + more) == found, (step, way)
    assert snapshots + more == len(listed(volume)), (step, way)
    assert listed(volume) == sorted(map(str, (volume.folder / "copies").iterdir())), (step, way)
    status = status_of(volume)
    assert ("closed", "done", "up to date") == (status["state"], status["last_result"], status["ledger"]), (step, way)
    return killed


def test_a_backup_is_noted_once(volume: CliVolume, rounds: Callable[[int, int], int], chance: random.Random) -> None:
    """At some of the files (at each with --long), and in each way of going on."""
    assert not killed_at(volume, 10**6)
    trials = [(step, way) for step in range(1, int((volume.folder / "changes").read_text()) + 1) for way in WAYS]
    assert len(trials) > 30
    for step, way in sorted(chance.sample(trials, min(rounds(3, 1000), len(trials)))):
        assert check_once(volume, step, way), (step, way)
    volume.do("verify", NAME)

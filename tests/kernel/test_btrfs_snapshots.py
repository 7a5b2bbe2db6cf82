"""`snapshot = "btrfs"` on a real store: taken after good backups, listed, pruned, and nothing half after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lukshook.snapshots.btrfs import FOLDER
from lukshook.volume import snapshot_list
from support import kill_after_command
from support.lukshook_process import Done, nothing
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("mkfs.btrfs", "btrfs")
KEPT = 2


def run(*argv: str | Path) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image lies in a subvolume of a btrfs of its own."""
    subprocess.run(["modprobe", "btrfs"], check=False)
    volume = CliVolume(tmp_path)
    volume.prepare()
    disk, top = tmp_path / "disk", tmp_path / "top"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    top.mkdir()
    run("mkfs.btrfs", "-q", disk)
    run("mount", "-o", "loop", disk, top)
    try:
        run("btrfs", "subvolume", "create", top / "images")
        run("mount", "--bind", top / "images", volume.image.parent)
        configure(volume)
        volume.do("create", NAME)
        yield from closing(volume)
    finally:
        subprocess.run(["umount", volume.image.parent], check=False)
        run("umount", top)


def configure(volume: CliVolume, **options: object) -> None:
    volume.configure(**{"snapshot": "btrfs", "keep_snapshots": KEPT, "space": "warn", **options})


def back_up(volume: CliVolume, text: str, prepare: Callable[[], None] = nothing) -> Done:
    """A backup that leaves *text* in a file; closing runs in a process of its own, after *prepare*."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text(text)
    return volume.start("after-backup", NAME, prepare=prepare).wait()


def versions(volume: CliVolume) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(volume.do("versions", NAME, "--json"))[0]["versions"]
    return found


def names(volume: CliVolume) -> list[str]:
    """The names of the snapshots that are listed."""
    return sorted(one["name"] for one in versions(volume))


def on_disk(volume: CliVolume) -> list[str]:
    """The names in the folder for snapshots."""
    folder = volume.image.parent / FOLDER
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def opened(image: str, key: Path, folder: Path) -> tuple[str, str]:
    """The digest of an older image, and the file of the backup in it: read without what this host knows of it."""
    old = CliVolume(folder)
    old.prepare()
    shutil.copy(key, old.key)
    shutil.copy(image, old.image)
    for other in closing(old):
        before = other.digest()
        other.do("trust", NAME)
        other.do("open", NAME, "--read-only")
        text = (other.data / "file").read_text()
        other.do("close", NAME)
    return before, text


def test_yesterdays_state_comes_back(store: CliVolume, tmp_path: Path) -> None:
    """Each good backup has a snapshot, the oldest beyond the number goes, and what is listed has the old content."""
    wanted = []
    for text in ("one", "two", "three"):
        assert Done(0, "", "") == back_up(store, text)
        wanted.append((store.digest(), text))

    found = versions(store)
    assert names(store) == on_disk(store)
    assert KEPT == len(found)
    shown = [opened(one["image"], store.key, tmp_path / one["name"]) for one in found]
    assert [wanted[2], wanted[1]] == shown
    status = json.loads(store.do("status", "--json", NAME))[0]
    assert found[0]["taken"] == status["last_snapshot"]
    assert f"snapshots: btrfs, 2 of {KEPT} kept" in store.do("check", NAME)


def test_only_a_good_backup_has_one(store: CliVolume) -> None:
    """Not one that failed, not a restore, and not what was opened by hand."""
    store.do("before-backup", NAME)
    store.do("after-backup", NAME, "--failed")
    assert 1 == store.lukshook("run", NAME, "--", "false").returncode
    store.do("open", NAME, "--read-only")
    store.do("close", NAME)
    store.do("open", NAME)
    store.do("close", NAME)

    assert [] == on_disk(store) == names(store)


def killed_at_save(number: int) -> None:
    """From now on this process is killed right after it has noted its snapshots for the *number*th time."""
    original, count = snapshot_list.save, [0]

    def save(*arguments: Any) -> None:
        original(*arguments)
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    snapshot_list.save = save  # type: ignore[assignment]


MOMENTS = {
    "noted": partial(killed_at_save, 1),
    "taken": partial(kill_after_command.arm, "btrfs subvolume snapshot"),
    "marked": partial(killed_at_save, 2),
    "pruned": partial(kill_after_command.arm, "btrfs subvolume delete"),
    "forgotten": partial(killed_at_save, 3),
}


def test_a_kill_leaves_nothing_half(store: CliVolume) -> None:
    """After a kill at any step, what is there is what is listed, and the next backup puts the number right."""
    for text in ("one", "two"):
        back_up(store, text)
    for moment, prepare in MOMENTS.items():
        assert -signal.SIGKILL == back_up(store, moment, prepare).returncode, moment
        assert ([], False) == (store.mappings(), store.is_open()), moment
        assert names(store) == on_disk(store), moment
        assert all(Path(one["image"]).is_file() for one in versions(store)), moment

        assert Done(0, "", "") == back_up(store, f"after {moment}"), moment
        assert names(store) == on_disk(store), moment
        assert KEPT == len(on_disk(store)), moment


def test_what_is_not_ours_stays(store: CliVolume) -> None:
    """A subvolume that has taken the name of a snapshot of ours is neither listed nor removed."""
    back_up(store, "one")
    (ours,) = on_disk(store)
    place = store.image.parent / FOLDER / ours
    run("btrfs", "subvolume", "delete", place)
    run("btrfs", "subvolume", "create", place)
    (place / "kept").write_text("by somebody else")
    another = place.parent / f"lukshook-{NAME}-20200101T000000Z"
    run("btrfs", "subvolume", "snapshot", store.image.parent, another)

    assert [] == versions(store)
    for text in ("two", "three", "four"):
        back_up(store, text)

    assert "by somebody else" == (place / "kept").read_text()
    assert another.is_dir()
    assert KEPT == len(versions(store))
    run("btrfs", "subvolume", "delete", place)


def test_a_link_in_its_place_leads_nowhere(store: CliVolume, tmp_path: Path) -> None:
    """The folder for snapshots is a link, or another user's: nothing is written where it leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = store.image.parent / FOLDER
    folder.symlink_to(elsewhere)

    done = back_up(store, "one")
    assert (0, True) == (done.returncode, "its snapshot failed" in done.stderr), done.stderr
    folder.unlink()
    folder.mkdir()
    shutil.chown(folder, 65534)
    done = back_up(store, "two")

    assert (0, True) == (done.returncode, "other users may write to the folder" in done.stderr), done.stderr
    assert [] == list(elsewhere.iterdir()) == list(folder.iterdir())


@pytest.mark.parametrize(("hard", "status"), [(False, 0), (True, 69)])
def test_a_snapshot_that_fails_is_a_warning(store: CliVolume, hard: bool, status: int) -> None:
    """The backup is safe; only who asks for it gets an exit status. The next one works again."""
    configure(store, snapshot_hard=hard)
    block = store.image.parent / FOLDER
    block.write_text("in the way")

    done = back_up(store, "one")

    assert status == done.returncode
    assert "the backup of volume offsite is safe and closed, but its snapshot failed: " in done.stderr
    known = json.loads(store.do("status", "--json", NAME))[0]
    assert ("closed", "done", None) == (known["state"], known["last_result"], known["last_snapshot"])
    assert [] == versions(store)
    block.unlink()
    assert Done(0, "", "") == back_up(store, "two")
    assert on_disk(store) == names(store)


def test_a_full_store(store: CliVolume) -> None:
    """A backup that is safe stays so: the snapshot is there and listed, or there is none and a warning."""
    back_up(store, "one")
    filler = store.folder / "top/filler"  # not in the subvolume: the snapshot would keep it
    store.do("before-backup", NAME)
    (store.data / "file").write_text("two")
    run("sync")
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], check=False, capture_output=True)

    done = store.lukshook("after-backup", NAME)

    assert done.returncode in (0, 74), done.stderr
    assert names(store) == on_disk(store)
    filler.unlink()
    run("sync")  # btrfs gives the room back with its next commit
    assert Done(0, "", "") == back_up(store, "three")
    assert names(store) == on_disk(store)
    assert KEPT == len(on_disk(store))


def test_a_dry_run_shows_the_steps(store: CliVolume) -> None:
    """And takes none; its lines can be pasted."""
    store.do("before-backup", NAME)
    shown = store.do("--dry-run", "after-backup", NAME)
    assert [] == on_disk(store)
    lines = [line for line in shown.splitlines() if FOLDER in line]
    store.do("after-backup", NAME, "--failed")

    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True, capture_output=True)

    assert 1 == len(on_disk(store))
    run("btrfs", "subvolume", "delete", store.image.parent / FOLDER / on_disk(store)[0])

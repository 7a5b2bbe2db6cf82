"""`snapshot = "command:..."` with a command that copies the image."""

from __future__ import annotations

import filecmp
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import kill_after_command
from support.lukshook_process import Done
from support.volume import NAME, CliVolume

TAKE = """#!/bin/sh
set -e
echo "taking $LUKSHOOK_SNAPSHOT of $LUKSHOOK_IMAGE, $LUKSHOOK_KEEP are kept" >>"{folder}/log"
[ "$LUKSHOOK_SNAPSHOT $LUKSHOOK_IMAGE" = "$1 $2" ]
env | cut -d= -f1 | sort | tr '\\n' ' ' >"{folder}/environment"
mkdir -p "{folder}/copies"
cp --sparse=always -- "$2" "{folder}/copies/$1.img"
echo copied
echo "{folder}/copies/$1.img"
"""
PRUNE = """#!/bin/sh
echo "removing $1 at '$2'" >>"{folder}/log"
rm -f -- "{folder}/copies/$1.img"
"""


@pytest.fixture(name="copied")
def _copied(volume: CliVolume) -> CliVolume:
    """A volume that a command copies after each good backup; the last two copies are kept."""
    for name, text in (("take", TAKE), ("prune", PRUNE)):
        script = volume.folder / name
        script.write_text(text.format(folder=volume.folder))
        script.chmod(0o755)
    configure(volume)
    return volume


def configure(volume: CliVolume, **options: object) -> None:
    commands = {"snapshot": f"command:'{volume.folder}/take'", "prune_command": f"'{volume.folder}/prune'"}
    volume.configure(**{**commands, "keep_snapshots": 2, **options})


def back_up(volume: CliVolume, text: str) -> Done:
    return volume.lukshook("run", NAME, "--", "sh", "-c", f"echo {text} >'{volume.data}/file'")


def versions(volume: CliVolume) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(volume.do("versions", NAME, "--json"))[0]["versions"]
    return found


def copies(volume: CliVolume) -> list[str]:
    return sorted(map(str, (volume.folder / "copies").iterdir()))


def test_a_command_copies_the_closed_image(copied: CliVolume) -> None:
    """With the name and the image, and no more of the caller's environment; the oldest is removed by the other."""
    for text in ("one", "two", "three"):
        assert Done(0, "", "") == back_up(copied, text)
        newest = versions(copied)[0]
        assert filecmp.cmp(newest["image"], copied.image, shallow=False)

    found = versions(copied)
    assert 2 == len(found)
    assert copies(copied) == sorted(one["image"] for one in found)
    log = (copied.folder / "log").read_text().splitlines()
    assert ["taking", "taking", "taking", "removing"] == [line.split(" ")[0] for line in log]
    told = (copied.folder / "environment").read_text().split()
    assert {"LC_ALL", "LUKSHOOK_IMAGE", "LUKSHOOK_KEEP", "LUKSHOOK_SNAPSHOT", "PATH"} <= set(told)
    assert not {"HOME", "LUKSHOOK_CONFIG", "LUKSHOOK_STATE_DIR"} & set(told)
    text = copied.do("versions", NAME)
    assert "offsite: 2 versions" == text.splitlines()[0]
    assert found[0]["image"] in text.splitlines()[1]


def test_a_command_that_fails_costs_no_backup(copied: CliVolume) -> None:
    """What it has begun is given to the command that removes, and the next copy is whole."""
    (copied.folder / "take").write_text('#!/bin/sh\necho "no room" >&2\nexit 3\n')
    done = back_up(copied, "one")
    assert (0, True) == (done.returncode, "its snapshot failed: " in done.stderr and "no room" in done.stderr)
    assert [] == versions(copied)
    configure(copied, snapshot_hard=True)
    assert 69 == back_up(copied, "two").returncode
    (copied.folder / "take").write_text(TAKE.format(folder=copied.folder))

    assert Done(0, "", "") == back_up(copied, "three")

    assert copies(copied) == [one["image"] for one in versions(copied)]
    removed = [line for line in (copied.folder / "log").read_text().splitlines() if line.startswith("removing")]
    assert [" at ''"] * 2 == [line[-6:] for line in removed]


@pytest.mark.parametrize("which", ["take", "prune"])
def test_a_kill_leaves_nothing_half(copied: CliVolume, which: str) -> None:
    """After a kill right behind one of the two commands, what is listed is there, and the next run clears the rest."""
    for text in ("one", "two"):
        back_up(copied, text)
    copied.do("before-backup", NAME)
    arm = partial(kill_after_command.arm, f"{copied.folder}/{which}")
    killed = copied.start("after-backup", NAME, prepare=arm).wait()
    assert -signal.SIGKILL == killed.returncode

    assert all(Path(one["image"]).is_file() for one in versions(copied))
    assert Done(0, "", "") == back_up(copied, "after")

    assert copies(copied) == sorted(one["image"] for one in versions(copied))
    assert 2 == len(copies(copied))


def test_check_tells(copied: CliVolume) -> None:
    """Whether the command is there, and whether the patterns find anything; neither stops a backup."""
    back_up(copied, "one")
    configure(copied, versions=[f"{copied.folder}/copies/*.img", f"{copied.folder}/away/*"])
    text = copied.do("check", NAME)
    assert "snapshots: command, 1 of 2 kept" in text
    assert f"versions: 1 by {copied.folder}/copies/*.img" in text
    assert f"no file is found by {copied.folder}/away/*" in text
    configure(copied, snapshot="command:/not/there")

    assert "no snapshot can be taken: /not/there is not installed" in copied.do("check", NAME)


def test_an_open_version_is_kept(copied: CliVolume) -> None:
    """Until it is closed, also if it was opened by another name; those that nobody looks at go as always."""
    for text in ("one", "two"):
        back_up(copied, text)
    oldest, at = versions(copied)[1]["image"], copied.folder / "old"
    (copied.folder / "link").symlink_to(copied.folder / "copies")
    copied.do("open", NAME, "--image", str(copied.folder / "link" / Path(oldest).name), "--at", str(at))
    try:
        for text in ("three", "four"):
            done = back_up(copied, text)
            assert (0, True) == (done.returncode, f"it is open at {at}" in done.stderr)
            assert 3 == len(versions(copied))
            assert oldest == versions(copied)[2]["image"]
            assert "one\n" == (at / "data/file").read_text()
    finally:
        copied.do("close", NAME, "--at", str(at))

    assert Done(0, "", "") == back_up(copied, "five")
    assert 2 == len(copies(copied)) == len(versions(copied))


def test_a_version_opens_beside_the_volume(copied: CliVolume) -> None:
    """What `versions` lists is what `open --image` takes: the old content, while the volume has the new."""
    for text in ("one", "two"):
        back_up(copied, text)
    old, at = versions(copied)[1]["image"], copied.folder / "old"

    copied.do("open", NAME, "--image", old, "--at", str(at))
    try:
        assert "one\n" == (at / "data/file").read_text()
    finally:
        copied.do("close", NAME, "--at", str(at))

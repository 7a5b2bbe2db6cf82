"""What holds for every kind of place for a remote image, whichever engine opens it.

For any engine and kind: `tests/userspace/test_far_kinds.py` and `tests/kernel/test_remote_kernel.py` choose.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.ceph_cluster import CEPH
from support.far_places import PLACES, Place
from support.far_volume import back_up, in_it, nothing_stands, some
from support.host_volume import LUKSHOOK, same
from support.volume import NAME, CliVolume

ROOT = Path(__file__).parents[2]
BORGMATIC = ROOT / ".venv-borgmatic/bin/borgmatic"
#: The user's own part of borgmatic's configuration.
OWN_PART = "source_directories: [{tree}]\nunknown_unencrypted_repo_access_is_ok: true\nlocal_path: {borg}\n"
_SSHD = ("ssh", "/usr/sbin/sshd", "ssh-keygen", "nbdkit")
#: What each kind needs besides the tools of every remote image.
NEEDS = {
    "path": _SSHD,
    "ssh": _SSHD,
    "sftp": ("ssh", "/usr/sbin/sshd", "ssh-keygen", "/usr/lib/openssh/sftp-server"),
    "nbd": ("nbdkit",),
    "nbds": ("nbdkit",),
    "rbd": CEPH,
}


def kind_of(name: str, *more: object, is_slow: bool) -> Any:
    """For parametrize: one of `PLACES`, or "path", and *more* values."""
    marks = [pytest.mark.needs(*NEEDS[name]), *([pytest.mark.slow] if is_slow else [])]
    return pytest.param(name, *more, marks=marks)


def kinds(*quick: str, but: tuple[str, ...] = ()) -> list[Any]:
    """For parametrize: each kind *but* those; all except the *quick* ones are slow."""
    return [kind_of(name, is_slow=name not in quick) for name in PLACES if name not in but]


def check_the_whole_life(place: Place, volume: CliVolume, *, tools: bool, opens: bool) -> None:
    """It is made, written, grown, shrunk, gets a new key, is proven, copied; what lies there is restored by hand.

    *tools*: with real backup tools too. *opens*: as in `restore_by_hand`.
    """
    assert place.url in volume.do("create", NAME)
    assert len(place.images()) == 1
    content, tree = back_up(volume, "file"), a_tree(volume.folder)
    if tools:
        back_up_with_rsync(volume, tree)
        back_up_with_borgmatic(volume, tree)
    resize(volume, place)
    volume.do("key", "rotate", NAME)
    volume.do("key", "test", NAME)
    status = json.loads(volume.do("status", "--json"))[0]
    assert (place.url, "closed") == (status["image"], status["state"])
    assert not status["connected"]
    assert " fail " not in volume.do("check", NAME)
    back_up(volume, "more")
    volume.do("verify", NAME)
    copy_to_another_kind(volume, place, content)
    assert nothing_stands(volume)
    assert len(place.images()) == 1
    assert content == restore_by_hand(volume.do("sheet", NAME, "--show-key"), volume, place, opens=opens)


def a_tree(folder: Path) -> Path:
    """Something to back up."""
    tree = folder / "tree"
    (tree / "deep").mkdir(parents=True)
    for number in range(20):
        (tree / "deep" / str(number)).write_bytes(some(40_000))
    (tree / "link").symlink_to("deep/1")
    return tree


def back_up_with_rsync(volume: CliVolume, tree: Path) -> None:
    """Under `run`; twice, and what is gone goes."""
    for name in ("gone", "kept"):
        (tree / name).write_text(name)
        volume.do("run", NAME, "--", "rsync", "-a", "--delete", f"{tree}/", f"{volume.data}/tree/")
        (tree / "gone").unlink(missing_ok=True)
    volume.do("open", NAME, "--read-only")
    is_same = same(tree, volume.data / "tree")
    volume.do("close", NAME)
    assert is_same


def back_up_with_borgmatic(volume: CliVolume, tree: Path) -> None:
    """With the printed lines: its hooks open and close the volume, to back up and to give back."""
    printed = [str(LUKSHOOK), "hooks", "borgmatic", NAME, "--tool-version", "2.1"]
    lines = subprocess.run(printed, env=volume.environment, check=True, capture_output=True, text=True)
    config, restored = volume.folder / "borgmatic.yaml", volume.folder / "restored"
    config.write_text(lines.stdout + OWN_PART.format(tree=tree, borg=BORGMATIC.with_name("borg")))
    restored.mkdir()
    path = f"{LUKSHOOK.parent}:{BORGMATIC.parent}:{volume.environment['PATH']}"
    to_back_up, extract = ("repo-create", "--encryption", "none", "create"), ("extract", "--archive", "latest")
    for words in (to_back_up, (*extract, "--destination", str(restored))):
        done = subprocess.run(
            [BORGMATIC, "--config", config, *words],
            env=volume.environment | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        assert nothing_stands(volume)
    assert same(tree, restored / str(tree).lstrip("/"))


def resize(volume: CliVolume, place: Place) -> None:
    """Grow and shrink it; where the length of the image is given, that is said."""
    if not place.can_create:
        assert "the device has 64MiB, not 96MiB" in volume.refusal(69, "resize", NAME, "96MiB")
        return
    volume.do("resize", NAME, "96MiB")
    volume.do("resize", NAME, "80MiB", "--yes")


def copy_to_another_kind(volume: CliVolume, place: Place, content: bytes) -> None:
    """A copy, in a local file or of that behind ssh, opens as the image of the volume."""
    (copy, options), before = place.elsewhere(), volume.config.read_text()
    volume.do("copy", NAME, copy)
    volume.configure(image=copy, ledger=True, **options)
    found = in_it(volume, "file")
    volume.config.write_text(before)
    assert [content] == found


def restore_by_hand(sheet: str, volume: CliVolume, place: Place, *, opens: bool) -> bytes:
    """Type what the sheet says, with nothing but the place and the sheet; the content of "file" in it.

    *opens*: with cryptsetup and mount, which needs device-mapper; else the image alone is fetched.
    """
    typed = [line.removeprefix("    ") for line in sheet.splitlines() if line.startswith("    ")]
    first = next(number for number, line in enumerate(typed) if " luksOpen " in line)
    fetching = typed[:first] or [f"cp --sparse=always {place.url} backup.img"]  # by its path it is opened where it is
    opening, mounting, unmounting, closing = typed[first : first + 4]
    folder = volume.folder / "by-hand"
    folder.mkdir()
    in_full = (*typed[:first], opening, mounting, "cat /mnt/data/file >file", unmounting, closing)
    script = "\n".join(("set -e", *(in_full if opens else fetching)))
    done = subprocess.run(["sh", "-c", script], cwd=folder, check=False, capture_output=True, text=True)
    assert 0 == done.returncode, (script, done.stderr)
    if opens:
        return (folder / "file").read_bytes()
    other = CliVolume(folder / "house", "userspace")
    other.prepare()
    shutil.copy(volume.key, other.key)
    shutil.move(folder / "backup.img", other.image)
    other.do("trust", NAME)
    (found,) = in_it(other, "file")
    other.remove()
    return found

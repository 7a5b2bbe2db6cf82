"""Which FUSE mounts are ours: any user can mount one that names any source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lukshook.layers import fuse2fs
from lukshook.system import kernel
from lukshook.volume import unrecorded
from lukshook.volume.stack import closing_script
from support.direct_volume import NAME, parsed

BELOW = "/run/user/1000/lukshook/offsite.plain"


def mount(number: str, user: int) -> kernel.Mount:
    options = frozenset({"rw", f"user_id={user}"})
    return kernel.Mount(number, "/", f"/mnt/{number}", "fuse.fuse2fs", BELOW, frozenset({"rw"}), options)


@pytest.mark.parametrize("newest", [True, False])
def test_another_users_mount_of_the_same_name_is_not_ours(newest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the volume could not be closed: the mount that was found was not the one that was opened."""
    ours, theirs = mount("0:50", os.geteuid()), mount("0:51", os.geteuid() + 1)
    monkeypatch.setattr(kernel, "mounts", lambda: (ours, theirs) if newest else (theirs, ours))
    handle = fuse2fs.Handle("/mnt", BELOW, 1, 1, "0:50")

    assert ours == fuse2fs._ours(handle)
    assert ours == fuse2fs._mount_of(BELOW)
    assert ["/mnt/0:50"] == [str(place) for place in unrecorded.places_of(BELOW)]


def test_a_copy_that_is_the_image_itself_is_not_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemon has the same file open. Another user's volume of the same name says nothing of ours."""
    volume = parsed(tmp_path, engine="userspace")
    theirs = kernel.Mount("0:51", "/", f"/elsewhere/{NAME}.plain", "fuse", "/dev/fuse", frozenset(), frozenset())
    monkeypatch.setattr(kernel, "mounts", lambda: (theirs,))
    monkeypatch.setattr(kernel, "processes_named", lambda name: (7,))
    monkeypatch.setattr(kernel, "open_names", lambda pid: {os.fspath(volume.image.image)})
    monkeypatch.setattr(kernel, "words", lambda pid: [f"--pidfile=/run/{NAME}@1318bdf1.pid"])
    assert unrecorded.of(volume) is None
    monkeypatch.setattr(kernel, "words", lambda pid: [f"--pidfile=/run/{NAME}.pid"])
    assert unrecorded.of(volume) is not None


def test_a_second_mount_of_ours_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number tells them apart."""
    first, second = mount("0:50", os.geteuid()), mount("0:51", os.geteuid())
    monkeypatch.setattr(kernel, "mounts", lambda: (first, second))

    assert first == fuse2fs._ours(fuse2fs.Handle("/mnt", BELOW, 1, 1, "0:50"))


@pytest.mark.parametrize("line", [b"x a b c d e - f g h", b"", b"1 2", b" - ", b"12 3 0:5 / /mnt rw - "])
def test_what_is_no_line_of_mountinfo_is_passed_over(line: bytes) -> None:
    """An option with a raw line break leaves such a part."""
    assert kernel._mount(line) is None


def test_a_printed_closing_waits_until_the_daemon_has_written_everything() -> None:
    """fuse2fs goes on after the mount is gone; the daemon below it must not end before."""
    handle = fuse2fs.Handle("/mnt", "/run/a[b]*.plain", 7, 99, "0:42")
    unmount, wait = closing_script([("fuse2fs", handle)])

    assert "fusermount3 -u -- /mnt" == str(unmount)
    assert wait.argv[:2] == ("sh", "-c")
    assert r"/run/a\[b]\*.plain" == wait.argv[-1]

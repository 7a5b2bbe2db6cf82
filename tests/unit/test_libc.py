"""The calls of the C library say what failed, and the layers that use them say it to the user."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.errors import Busy, Unavailable
from lukshook.layers import loop, mount
from lukshook.layers.base import Opening
from lukshook.system import libc
from lukshook.system.safe_folders import Folder
from lukshook.system.secret import Secret
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import Known
from support.fake_runner import FakeRunner


def opening(runner: FakeRunner, folder: Path) -> Opening:
    return Opening("offsite", runner, folder, lambda: Secret(b""), "", Pinned("offsite", Known()))


def test_what_the_kernel_refuses_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """A folder that is not there, one that is no mount, a descriptor that is closed."""
    gone = str(tmp_path / "gone")

    with pytest.raises(OSError) as bound:
        libc.bind(gone, -1)
    with pytest.raises(OSError) as unmounted:
        libc.unmount(str(tmp_path))
    with pytest.raises(OSError) as flushed:
        libc.flush(-1)

    assert bound.value.errno in (errno.ENOENT, errno.EPERM)  # EPERM for whoever is not root
    assert unmounted.value.errno in (errno.EINVAL, errno.EPERM)
    assert errno.EBADF == flushed.value.errno


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.needs("unshare", "mount")
def test_only_writing_ends_where_a_file_system_is_made_read_only(tmp_path: Path) -> None:
    """While somebody writes it stays as it is; all other options stay, and another mount of it is read-only as well."""
    argv = ["unshare", "--mount", "--propagation=slave", sys.executable, "-c", _READ_ONLY, str(tmp_path)]
    subprocess.run(argv, check=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]})


_READ_ONLY = """
import errno, os, subprocess, sys
from lukshook.system import kernel, libc
place, other = sys.argv[1], sys.argv[1] + "/other"
subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,nosuid,noexec,noatime,size=1m", "place", place], check=True)
os.mkdir(other)
subprocess.run(["mount", "--bind", place, other], check=True)
before = kernel.mount_at(place)
root = kernel.enter(before)
with open(place + "/file", "w"):
    try:
        libc.remount_read_only(root)
    except OSError as error:
        assert errno.EBUSY == error.errno, error
    else:
        raise AssertionError("it was made read-only under a writer")
    assert before == kernel.mount_at(place)
libc.remount_read_only(root)
after = kernel.mount_at(place)
assert before.own - {"rw"} | {"ro"} == after.own, after
assert before.common - {"rw"} | {"ro"} == after.common, after
try:
    open(other + "/file", "w")
except OSError as error:
    assert errno.EROFS == error.errno, error
else:
    raise AssertionError("it is written to through another mount")
"""


def test_a_mount_that_cannot_be_shown_is_told_with_its_place(tmp_path: Path) -> None:
    """The commands that would do the same are named, for whoever wants to see it fail by hand."""
    place = str(tmp_path / "mnt")
    handle = mount.Handle(place, "/dev/mapper/x", "254:0", str(tmp_path / "gone"))
    runner = FakeRunner()

    with pytest.raises(Unavailable, match=f"offsite cannot be shown at {place}: ") as raised:
        mount._show(handle, Folder(-1, Path(place)), opening(runner, tmp_path))

    show = f"mount --bind -- {tmp_path}/gone {place}"
    assert f"{show}; umount -- {tmp_path}/gone" in (raised.value.hint or "")
    assert [show] == runner.notes


def test_a_loop_device_that_cannot_be_let_go_of_is_told() -> None:
    """The answer of something that is no loop device."""
    with pytest.raises(Unavailable, match="/dev/null could not be released: "):
        loop.Handle("/dev/null", 1, 2, True).release(FakeRunner())


def test_a_loop_device_that_cannot_be_detached_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it stands on its file; one that is gone is closed."""
    standing = [True, True, False]
    monkeypatch.setattr(loop, "_stands", lambda _: standing.pop(0) if len(standing) > 1 else standing[0])

    with pytest.raises(Busy, match="/dev/null could not be detached: "):
        loop.Handle("/dev/null", 1, 2, True).close(FakeRunner())

    standing[:] = [True, False]
    loop.Handle("/dev/null", 1, 2, True).close(FakeRunner())

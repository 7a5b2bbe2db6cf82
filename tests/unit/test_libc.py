"""The calls of the C library say what failed, and the layers that use them say it to the user."""

from __future__ import annotations

import errno
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

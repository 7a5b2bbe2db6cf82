"""What may lie on a bare mount point, and the guard that is a bind mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lukshook.errors import Unavailable
from lukshook.layers import mount_point
from lukshook.layers.mount import Spec
from lukshook.system import kernel, libc, safe_folders
from lukshook.system.command import Result
from lukshook.system.kernel import Mount
from support.fake_runner import Answer, FakeRunner

NO_FLAGS: dict[str, Answer] = {"chattr": Result(1, "", "Inappropriate ioctl for device")}
FINISH = "mount -o remount,bind,ro --"


@pytest.fixture(name="mounted")
def _mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Mount]:
    """The mounts there are, for root: the one that the mount point's folder lies in, and what a test adds."""
    found = [
        Mount("8:1", "/", "/", "ext4", "/dev/root", frozenset({"rw"})),
        Mount("0:40", "/inside", str(tmp_path), "ramfs", "ram", frozenset({"rw"})),
    ]
    (tmp_path / "mnt").mkdir()
    monkeypatch.setattr(kernel, "mounts", lambda: tuple(found))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(safe_folders, "_is_trusted", lambda owner: True)
    return found


def on(place: Path, number: str, root: str, option: str = "rw") -> Mount:
    return Mount(number, root, str(place), "ramfs", "ram", frozenset({option, "relatime"}))


@pytest.mark.parametrize(
    ("number", "root", "option"),
    [
        pytest.param("8:1", "/inside/mnt", "rw", id="the same name on another file system"),
        pytest.param("0:40", "/mnt", "rw", id="another folder of that name"),
        pytest.param("0:40", "/inside", "rw", id="the folder above"),
        pytest.param("0:41", "/", "ro", id="a whole file system"),
    ],
)
def test_what_is_not_ours_is_refused(mounted: list[Mount], tmp_path: Path, number: str, root: str, option: str) -> None:
    """Nothing but a bind of the mount point on itself is ours."""
    mounted.append(on(tmp_path / "mnt", number, root, option))

    with pytest.raises(Unavailable, match="and not by lukshook"):
        mount_point.secure(Spec(tmp_path / "mnt"), FakeRunner())


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done without a tool: each call with the folder that the descriptor in it is."""
    made: list[str] = []

    def bind(source: str, target: int, *, read_only: bool = False) -> int:
        made.append(f"bind {os.path.realpath(source)} {os.readlink(f'/proc/self/fd/{target}')} {read_only}")
        return 1

    monkeypatch.setattr(libc, "bind", bind)
    monkeypatch.setattr(
        libc, "make_read_only", lambda mount: made.append(f"read-only {os.readlink(f'/proc/self/fd/{mount}')}")
    )
    return made


def test_half_a_guard_is_finished(mounted: list[Mount], tmp_path: Path, calls: list[str]) -> None:
    """The bind is there from an earlier run; it is made read-only, and not made once more."""
    place, runner = tmp_path / "mnt", FakeRunner(NO_FLAGS)
    mounted.append(on(place, "0:40", "/inside/mnt"))

    assert not mount_point.look(Spec(place))
    mount_point.secure(Spec(place), runner)

    assert [f"{FINISH} {place}"] == runner.notes
    assert [f"read-only {place}"] == calls


def test_a_guard_is_bound_where_there_are_no_flags(mounted: list[Mount], tmp_path: Path, calls: list[str]) -> None:
    """On the open folder itself, read-only from the first."""
    place, runner = tmp_path / "mnt", FakeRunner(NO_FLAGS)

    mount_point.secure(Spec(place), runner)

    assert [f"mount --bind -- {place} {place} && {FINISH} {place}"] == runner.notes
    assert [f"bind {place} {place} True"] == calls


def test_a_guard_that_the_kernel_refuses_is_told(
    mounted: list[Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mount point and the reason."""

    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(libc, "bind", refuse)

    with pytest.raises(Unavailable, match="cannot be guarded against writing: Operation not permitted"):
        mount_point.secure(Spec(tmp_path / "mnt"), FakeRunner(NO_FLAGS))


def test_a_dry_run_names_the_folder_and_changes_nothing(mounted: list[Mount], tmp_path: Path) -> None:
    """What is printed can be pasted: no descriptor of ours is in it."""
    place, runner = tmp_path / "mnt", FakeRunner(dry=True)

    mount_point.prepare(Spec(place), runner)
    mount_point.prepare(Spec(tmp_path / "more" / "mnt"), runner)

    assert [f"chattr +i -- {place}"] == runner.lines
    assert [f"mkdir --parents -- {tmp_path}/more/mnt"] == runner.notes
    assert not (tmp_path / "more").exists()

"""What may lie on a bare mount point, and the guard that is a bind mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes import Answer, FakeRunner
from lukshook import guard, kernel
from lukshook.command import Result
from lukshook.errors import Unavailable
from lukshook.kernel import Mount

NO_FLAGS: dict[str, Answer] = {"chattr": Result(1, "", "Inappropriate ioctl for device")}
FINISH = "mount --options-source=mtab -o remount,bind,ro --"


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

    with pytest.raises(Unavailable, match="which is not ours"):
        guard.check_bare(tmp_path / "mnt", FakeRunner())


def test_half_a_guard_is_finished(mounted: list[Mount], tmp_path: Path) -> None:
    """The bind is there from an earlier run; it is made read-only, and not made once more."""
    place, runner = tmp_path / "mnt", FakeRunner(NO_FLAGS)
    mounted.append(on(place, "0:40", "/inside/mnt"))

    guard.check_bare(place, runner)
    assert not guard.is_guarded(place)
    guard.put(place, runner)

    assert [f"chattr +i -- {place}", f"{FINISH} {place}"] == runner.lines


def test_a_guard_that_cannot_be_finished_is_taken_away(mounted: list[Mount], tmp_path: Path) -> None:
    """A bind that can be written to guards nothing."""
    place, runner = tmp_path / "mnt", FakeRunner({**NO_FLAGS, FINISH: Result(32, "", "mount: permission denied")})

    with pytest.raises(Unavailable, match="cannot be guarded against writing"):
        guard.put(place, runner)

    assert [f"mount --bind -- {place} {place}", f"{FINISH} {place}", f"umount -- {place}"] == runner.lines[1:]

"""A mount point that is moved while the volume is opened, and folders in which another user could do that."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from attrs import define, frozen

from lukshook.layers import mount, mount_point
from lukshook.system import command, kernel, libc, safe_folders
from support.lukshook_process import Done
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.roots
#: What deals with the mount point.
CLOSE_BY = {module.__file__ for module in (safe_folders, mount_point, mount)}
USER = 65534
#: The system calls that look up a path, by their names in Python.
LOOKS_UP = {"open", "stat", "lstat", "readlink", "listdir", "scandir", "mkdir", "rmdir", "chmod", "statvfs", "access"}


@frozen
class Alices(CliVolume):
    """A volume whose mount point lies in a folder that is renamed and replaced."""

    @property
    def parent(self) -> Path:
        return self.folder / "users/alice"

    @property
    def aside(self) -> Path:
        return self.folder / "users/aside"

    @property
    def mountpoint(self) -> Path:
        return self.parent / "mnt"

    @property
    def victim(self) -> Path:
        return self.folder / "victim"

    def swap(self, how: str) -> None:
        """Put a link to the victim, or the victim itself, in the place of the parent folder."""
        self.parent.rename(self.aside)
        if how == "link":
            self.parent.symlink_to(self.victim)
        else:
            self.victim.rename(self.parent)

    def swap_back(self) -> None:
        """As it was before, if it was swapped at all."""
        if not self.aside.exists():
            return
        if self.parent.is_symlink():
            self.parent.unlink()
        else:
            self.parent.rename(self.victim)
        self.aside.rename(self.parent)

    def marks(self) -> list[object]:
        """What would have changed if the victim had been touched."""
        place = self.victim / "mnt"
        return [kernel.is_immutable(place), place.stat().st_mode, sorted(os.listdir(place))]

    def unguard(self) -> None:
        """So that the guard is put up again."""
        subprocess.run(["chattr", "-i", self.mountpoint], check=True)


@define
class Moments:
    """Counts the moments at which the mount point matters, and swaps its parent at one of them; each is noted in *log*.

    They are those before each system call that looks up a path, before and after each tool, and before and after each
    call that binds or unmounts. What happens between two of them cannot be told from what happens at the second.
    """

    volume: Alices
    log: Path
    at: int = -1
    how: str = "link"

    def __call__(self) -> None:
        """In the process of lukshook, before it starts."""
        count = itertools.count()

        def moment(frame: FrameType, event: str, call: Any) -> None:
            what = name_of_moment(frame, event, call)
            if not what:
                return
            sys.setprofile(None)
            number = next(count)
            with self.log.open("a") as log:
                log.write(f"{what}\n")
            if number == self.at:
                self.volume.swap(self.how)
            else:
                sys.setprofile(moment)

        sys.setprofile(moment)


def name_of_moment(frame: FrameType, event: str, call: Any) -> str:
    """What is about to happen, or has just happened; "" where it is no moment."""
    if not is_close_by(frame):
        return ""
    code = frame.f_code
    module = getattr(call, "__module__", "") or ""
    if event == "c_call" and module in ("posix", "_io") and call.__name__ in LOOKS_UP and not in_command(frame):
        return f"{call.__name__} by {code.co_name}"
    if event == "c_call" and module == "_posixsubprocess":
        return "a tool starts"
    if event in ("call", "return") and code in (libc.bind.__code__, libc.unmount.__code__):
        return f"{event} {code.co_name}"
    if event == "return" and code is command.SystemRunner._call.__code__:
        return "a tool has ended"
    return ""


def callers(frame: FrameType | None) -> Iterator[str]:
    """The files of the functions that are running, the innermost first."""
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def is_close_by(frame: FrameType) -> bool:
    """Whether one of the modules in CLOSE_BY is at it."""
    return any(file in CLOSE_BY for file in callers(frame))


def in_command(frame: FrameType) -> bool:
    """Whether a tool is waited for: how many calls that takes differs each time."""
    return next(file for file in callers(frame) if "/lukshook/" in file) == command.__file__


@pytest.fixture(name="alices")
def _alices(template: CliVolume, tmp_path: Path) -> Iterator[Alices]:
    template.copy_to(tmp_path)
    volume = Alices(tmp_path, "userspace")
    volume.mountpoint.mkdir(parents=True)
    (volume.victim / "mnt").mkdir(parents=True)
    (volume.victim / "mnt/file").touch()
    volume.configure()
    for _ in closing(volume):
        yield volume


@pytest.mark.parametrize("how", ["link", "folder"])
def test_a_folder_that_is_moved_at_any_moment(alices: Alices, how: str, request: pytest.FixtureRequest) -> None:
    """Nothing is mounted over what was put there, nothing stays mounted, and no run calls that a success.

    Where it is moved after the last look at it, the run that closes tells of it.
    """
    log, before = alices.folder / "moments", alices.marks()
    moments = steps_of(alices, log)
    stride = 1 if request.config.getoption("--long") else 35
    shown = moments.index("call bind")
    last_look = max(number for number, what in enumerate(moments) if what == "stat by number_within")
    failures = []
    for number in (*range(0, shown, stride), *range(shown, last_look + 2), *range(last_look + 2, len(moments), stride)):
        alices.unguard()
        done = alices.start("before-backup", NAME, prepare=Moments(alices, log, number, how)).wait()
        went = taken(log)
        found = problems(alices, done, before, seen=number <= last_look)
        found += [] if went == moments[: number + 1] else [f"it went another way: {went}"]
        if found:
            failures.append(f"{number}, {moments[number]}: {found}\n    {done}")
            alices.lukshook("close", NAME)
    assert not failures, "\n".join(failures)


def steps_of(volume: Alices, log: Path) -> list[str]:
    """The moments of a run in which nothing is moved; it is not the first one, which makes folders of ours."""
    for _ in range(2):
        volume.unguard()
        done = volume.start("before-backup", NAME, prepare=Moments(volume, log)).wait()
        assert 0 == done.returncode, done.stderr
        volume.do("after-backup", NAME)
        moments = taken(log)
    assert len(moments) > 10, moments
    return moments


def taken(log: Path) -> list[str]:
    """What is in *log*, which is empty then."""
    moments = log.read_text().splitlines()
    log.unlink()
    return moments


def problems(volume: Alices, done: Done, before: list[object], *, seen: bool) -> list[str]:
    """What is wrong after a run in which the folder was moved; *seen*: before the last look at it."""
    found = [place for place in volume.mounts() if place.startswith((f"{volume.victim}/", f"{volume.parent}/"))]
    if done.returncode == 0 and not seen:
        closed = volume.lukshook("after-backup", NAME)
        found += (
            [] if closed.returncode == 74 and "was no longer mounted at" in closed.stderr else [f"closed: {closed}"]
        )
    elif done.returncode not in (65, 69, 78):
        found.append("another exit status")
    found += volume.standing()
    volume.swap_back()
    found += [] if volume.marks() == before else [f"the victim was changed: {volume.marks()}"]
    return found


def give(folder: Path, owner: int = 0, mode: int = 0o755) -> None:
    """Make the folder, of that owner and mode."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, owner, owner)
    folder.chmod(mode)


UNSAFE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another user's": (lambda place: give(place, USER), f"belongs to user {USER}"),
    "another user's sticky one": (lambda place: give(place, USER, 0o1755), f"belongs to user {USER}"),
    "all can write": (lambda place: give(place, 0, 0o777), "can be written to by all"),
    "its group can write": (lambda place: give(place, 0, 0o775), "can be written to by its group"),
}


@pytest.mark.parametrize("above", ["right above", "further up"])
@pytest.mark.parametrize("kind", UNSAFE)
def test_folders_in_which_others_rename_are_refused(alices: Alices, kind: str, above: str) -> None:
    """Before anything is opened, by each command that would mount, and by `check`."""
    arrange, said = UNSAFE[kind]
    place = alices.parent if above == "right above" else alices.parent.parent
    arrange(place)

    for word in ("before-backup", "open", "trust"):
        assert f"another user can move the mount point {alices.mountpoint}: {place} {said}" == alices.refusal(
            78, word, NAME
        )
    checked = alices.lukshook("check", NAME)
    assert (
        f"another user can move the mount point {alices.mountpoint}: {place} {said}" in checked.stdout + checked.stderr
    )
    assert [] == alices.standing()
    assert not kernel.is_immutable(alices.mountpoint)


def test_what_belongs_to_another_in_a_sticky_folder_is_refused(alices: Alices) -> None:
    """Its owner can rename it there; one of root's is safe there, as in /tmp."""
    give(alices.parent, 0, 0o1777)
    alices.do("before-backup", NAME)
    alices.do("after-backup", NAME)

    alices.unguard()
    os.chown(alices.mountpoint, USER, USER)
    assert f"{alices.mountpoint} belongs to user {USER}" in alices.refusal(78, "before-backup", NAME)


def test_a_link_of_another_user_is_not_followed(alices: Alices) -> None:
    """It was followed when the configuration was read; where it leads to is safe, it itself is not."""
    link = alices.folder / "theirs/link"
    give(link.parent, USER)
    link.symlink_to(alices.parent)
    alices.configure(mountpoint=str(link / "mnt"))
    assert f"another user can move the mount point {alices.mountpoint}" in alices.refusal(78, "before-backup", NAME)

    give(link.parent)
    alices.do("before-backup", NAME)
    assert alices.is_open()
    alices.do("after-backup", NAME)


def test_create_makes_no_folder_in_another_users(alices: Alices) -> None:
    """Neither does a dry run say that it would."""
    give(alices.parent, USER)
    missing = alices.parent / "more/mnt"
    alices.configure(mountpoint=str(missing), image=str(alices.folder / "store/second.img"))
    shutil.rmtree(alices.state_folder)

    for options in ((), ("--dry-run",)):
        assert f"another user can move the mount point {missing}" in alices.refusal(78, *options, "create", NAME)
    assert ["mnt"] == [entry.name for entry in alices.parent.iterdir()]


def test_a_volume_that_is_moved_while_it_is_open_is_closed_where_it_is(alices: Alices) -> None:
    """Whatever lies at its mount point then stays as it is, and it is not called safe."""
    alices.do("before-backup", NAME)
    alices.swap("link")
    subprocess.run(["mount", "-t", "tmpfs", "none", alices.victim / "mnt"], check=True)
    try:
        assert f"was no longer mounted at {alices.mountpoint}" in alices.refusal(74, "after-backup", NAME)
        assert [str(alices.victim / "mnt")] == alices.standing()
    finally:
        subprocess.run(["umount", alices.victim / "mnt"], check=True)
        alices.swap_back()
    alices.do("before-backup", NAME)
    alices.do("after-backup", NAME)


def test_a_run_folder_that_others_can_move_is_refused(alices: Alices) -> None:
    """The volume is mounted there before it is proven."""
    folder = alices.folder / "theirs"
    give(folder, USER)
    done = alices.lukshook("before-backup", NAME, LUKSHOOK_RUN_DIR=str(folder / "run"))

    assert (69, True) == (done.returncode, f"is not safe from other users: {folder} belongs to " in done.stderr)
    assert not (folder / "run").exists()

"""Which fuse2fs is trusted, and that its exit status is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from attrs import define, field

from lukshook.errors import LukshookError, Refused, Unavailable
from lukshook.layers import fuse2fs, mount_point
from lukshook.layers.base import Opening, Trust
from lukshook.system import kernel
from lukshook.system.command import Command, CommandFailed, Result
from lukshook.system.safe_folders import Folder
from lukshook.system.secret import Secret

#: What each prints for -V, in full: Debian 12, 13 and sid; the last was built from sid's source with libfuse 2.
DEBIAN_12 = Result(
    0,
    "fusermount3 version: 3.14.0\n",
    "fuse2fs 1.47.0 (5-Feb-2023)\nFUSE library version: 2.9.9\nusing FUSE kernel interface version 7.19\n",
)
DEBIAN_13 = Result(0, "FUSE library version 3.17.2\nfusermount3 version: 3.17.2\n", "fuse2fs 1.47.2 (1-Jan-2025)\n")
SID = Result(0, "FUSE library version 3.18.3\nfusermount3 version: 3.18.3\n", "fuse2fs 1.47.4 (6-Mar-2025)\n")
NEW_WITH_LIBFUSE_2 = Result(0, "", "fuse2fs 1.47.4 (6-Mar-2025)\nFUSE library version: 2.9.9\n")
#: What fuse2fs says to `-o direct_io` on Debian 13, with 0, and on sid, with 32.
UNKNOWN_13 = Result(0, "", "fuse: unknown option(s): `-o direct_io'\n")
UNKNOWN_SID = Result(32, "", f"{UNKNOWN_13.err}Mount failed while opening filesystem.  Check dmesg(1) for details.\n")


@define
class Fake:
    """A runner for which `-V` and the start of fuse2fs are decided; e2fsck finds nothing."""

    version: Result
    start: Result = field(factory=lambda: Result(0))
    ran: list[str] = field(factory=list)
    dry = False

    def run(self, command: Command) -> Result:
        self.ran.append(str(command))
        if "-V" in command.argv:
            return self.version
        if command.argv[0] == "fuse2fs" and self.start.code:
            raise CommandFailed(command, self.start)
        return self.start if command.argv[0] == "fuse2fs" else Result(0)

    def note(self, line: str) -> None:
        self.ran.append(line)


def spec(place: Path, old_fuse2fs: bool = False) -> fuse2fs.Spec:
    return fuse2fs.Spec(place, old_fuse2fs)


def test_the_versions_of_the_releases(tmp_path: Path) -> None:
    """Debian 12's is taken where the user says so; one built with libfuse 3 never is."""
    spec(tmp_path, old_fuse2fs=True).check_tools(Fake(DEBIAN_12))
    spec(tmp_path).check_tools(Fake(NEW_WITH_LIBFUSE_2))
    for version in (DEBIAN_13, SID):
        with pytest.raises(Unavailable, match="does not support direct_io"):
            spec(tmp_path, old_fuse2fs=True).check_tools(Fake(version))


@pytest.mark.parametrize("version", [DEBIAN_12, Result(1, "", "no such option"), Result(0)])
def test_an_old_one_is_refused_unless_the_user_takes_it(tmp_path: Path, version: Result) -> None:
    """Also one that does not say its version."""
    with pytest.raises(Unavailable, match=r"bugs that are fixed in e2fsprogs 1\.47\.3"):
        spec(tmp_path).check_tools(Fake(version))


def opened(monkeypatch: pytest.MonkeyPatch, place: Path, start: Result) -> LukshookError:
    """What `open` raises where fuse2fs ends so and nothing is mounted."""

    @contextlib.contextmanager
    def lifted(*_: object) -> Iterator[Folder]:
        yield Folder(0, place)

    monkeypatch.setattr(mount_point, "lifted", lifted)
    monkeypatch.setattr(fuse2fs, "_START_SECONDS", 0.1)
    runner = Fake(NEW_WITH_LIBFUSE_2, start)
    opening = Opening("v", runner, place, lambda: Secret(b""), "cat key", cast(Trust, None))
    with pytest.raises(LukshookError) as caught:
        spec(place).open(str(place / "v.plain"), opening)
    return caught.value


@pytest.mark.parametrize("start", [UNKNOWN_13, UNKNOWN_SID], ids=["13", "sid"])
def test_an_option_that_it_does_not_know_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Result
) -> None:
    """Not "another volume is mounted there", though fuse2fs exits 0."""
    error = opened(monkeypatch, tmp_path, start)

    assert (69, True) == (error.exit_code, error.message.startswith("this fuse2fs does not support direct_io"))


@pytest.mark.parametrize(
    ("start", "reason"),
    [(Result(0), "fuse2fs exited with 0 and mounted nothing"), (Result(0, "", "x.img: no room\n"), "x.img: no room")],
)
def test_exit_status_0_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Result, reason: str
) -> None:
    """What is mounted counts."""
    error = opened(monkeypatch, tmp_path, start)

    assert (69, f"volume v cannot be mounted: {reason}") == (error.exit_code, error.message)


def test_another_mount_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That is no fault of fuse2fs."""
    theirs = kernel.Mount("0:51", "/", str(tmp_path), "tmpfs", "tmpfs", frozenset(), frozenset())
    monkeypatch.setattr(kernel, "mounts", lambda: (theirs,))

    error = opened(monkeypatch, tmp_path, Result(0))

    assert isinstance(error, Refused)

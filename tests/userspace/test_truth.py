"""What is said to be closed is closed: the record is lost, damaged, or another user's, and the kernel is asked."""

from __future__ import annotations

import base64
import json
import os
import pwd  # noqa: F401 - a forked lukshook that is no longer root may not be able to import it
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from lukshook.cli import paths
from lukshook.system.kernel import mounts
from lukshook.volume import holders  # noqa: F401 - the same
from support.lukshook_process import NOBODY, Child, nothing, to_nobody
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4")
ROOT = os.geteuid() == 0


def remove(record: Path) -> None:
    record.unlink()


def empty(record: Path) -> None:
    record.write_bytes(b"")


def another_version(record: Path) -> None:
    """A layer that this version does not know."""
    data = json.loads(record.read_text())
    data["layers"][-1][0] = "zfs"
    record.write_text(json.dumps(data))


def another_boot(record: Path) -> None:
    data = json.loads(record.read_text())
    record.write_text(json.dumps({**data, "boot": "another"}))


def more_fields(record: Path) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), "colour": "green"}))


def no_users(record: Path) -> None:
    """Not a list."""
    record.write_text(json.dumps({**json.loads(record.read_text()), "users": 7}))


def deep(record: Path) -> None:
    record.write_text("[" * 200_000)


def folder(record: Path) -> None:
    record.unlink()
    (record / "inside").mkdir(parents=True)


def pipe(record: Path) -> None:
    record.unlink()
    os.mkfifo(record)


def link(record: Path) -> None:
    record.rename(record.with_suffix(".elsewhere"))
    record.symlink_to(record.with_suffix(".elsewhere"))


DAMAGES = (remove, empty, another_version, another_boot, more_fields, no_users, deep, folder, pipe, link)
SILENT = (remove, another_boot)  # where nothing tells that there was a record


def status(volume: CliVolume) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(volume.do("status", NAME, "--json"))[0]
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_record_the_kernel_is_asked(volume: CliVolume, damage: Callable[[Path], None]) -> None:
    """It was "closed", with 0, while the plaintext stayed mounted."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    damage(volume.run_folder / f"{NAME}.json")

    fact = status(volume)
    assert "half open" == fact["state"]
    assert f"is mounted at {volume.mountpoint}" in fact["problem"]
    assert "PROBLEM" in volume.do("status", NAME)
    done = volume.lukshook("after-backup", NAME)

    assert 0 == done.returncode, done.stderr
    assert volume.is_bare()
    assert (damage in SILENT) == ("is damaged" not in done.stderr)
    assert (damage in SILENT) == (not list(volume.run_folder.glob("*.damaged")))
    assert ("closed", None) == (status(volume)["state"], status(volume)["problem"])
    volume.do("open", NAME)
    assert "content" == (volume.data / "file").read_text()
    volume.do("close", NAME)


@pytest.mark.parametrize("damage", [remove, another_version, folder])
def test_an_opening_closes_what_nobody_wrote_down(volume: CliVolume, damage: Callable[[Path], None]) -> None:
    """The next backup is not stopped by it."""
    volume.do("before-backup", NAME)
    damage(volume.run_folder / f"{NAME}.json")

    assert "closed what it had left open" in volume.lukshook("before-backup", NAME).stderr
    assert "open" == status(volume)["state"]
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_a_volume_whose_mount_point_was_another_is_closed_where_it_is(volume: CliVolume) -> None:
    """The configuration was changed while it was open, and the record is lost."""
    volume.do("before-backup", NAME)
    (volume.run_folder / f"{NAME}.json").unlink()
    (volume.folder / "new").mkdir()
    volume.configure(mountpoint=str(volume.folder / "new"))

    assert "half open" == status(volume)["state"]
    volume.do("close", NAME)

    assert [] == volume.standing()
    volume.configure()


@pytest.mark.roots
def test_what_is_not_ours_at_the_mount_point_is_no_success(volume: CliVolume) -> None:
    """Nobody knows what a backup wrote there."""
    subprocess.run(["mount", "-t", "tmpfs", "stranger", volume.mountpoint], check=True)
    try:
        for command in ("after-backup", "close"):
            assert f"stranger is mounted at {volume.mountpoint}" in volume.refusal(71, command, NAME)
        assert "half open" == status(volume)["state"]
        assert 69 == volume.lukshook("before-backup", NAME, "--soft").returncode
    finally:
        subprocess.run(["umount", volume.mountpoint], check=True)
    volume.do("close", NAME)


@pytest.mark.parametrize("content", ["{", '{"pins": 7}', "[" * 200_000])
def test_a_damaged_state_file_does_not_keep_the_volume_open(volume: CliVolume, content: str) -> None:
    """It is closed first, then refused."""
    volume.do("before-backup", NAME)
    file = volume.state_folder / f"{NAME}.json"
    whole = file.read_bytes()
    file.write_text(content)

    assert "is damaged" in volume.refusal(65, "after-backup", NAME)

    assert [] == volume.standing()
    assert content == file.read_text()
    file.write_bytes(whole)
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)


@frozen
class Users(CliVolume):
    """A volume of an ordinary user, whose folders are where they are without any LUKSHOOK_ variable."""

    @property
    def environment(self) -> dict[str, str]:
        given = super().environment
        return {name: value for name, value in given.items() if name not in ("LUKSHOOK_RUN_DIR", "LUKSHOOK_STATE_DIR")}

    @property
    def state_folder(self) -> Path:
        return self.folder / ".local/state/lukshook"

    @property
    def shown_folder(self) -> Path:
        """Where the daemon shows the plaintext."""
        return paths.places(self.environment, NOBODY if ROOT else os.geteuid()).mounts

    def shows(self) -> bool:
        return any(line.target == f"{self.shown_folder}/{NAME}.plain" for line in mounts())

    def standing(self) -> list[str]:
        return [*super().standing(), *(["the plaintext"] if self.shows() else [])]

    def write(self, name: str, content: str) -> None:
        """Back up a file, as the user whose volume it is."""
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if ROOT else {}
        subprocess.run(["tee", self.data / name], input=content.encode(), check=True, stdout=subprocess.DEVNULL, **user)

    def start(self, *arguments: str, prepare: Callable[[], None] = nothing, **more: str) -> Child:
        def both() -> None:
            to_nobody()
            prepare()

        return Child(arguments, self.environment | more, both)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Users]:
    """Where an ordinary user can reach it."""
    place = Path(tempfile.mkdtemp(dir="/tmp" if ROOT else tmp_path))
    place.chmod(0o755)
    volume = Users(place, "userspace")
    volume.prepare()
    if ROOT:
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    volume.do("create", NAME)
    for _ in closing(volume):
        yield volume
    for folder in (place, volume.shown_folder):
        shutil.rmtree(folder, ignore_errors=True)


def test_a_session_that_has_ended_changes_nothing(home: Users) -> None:
    """Opened in a session, whose runtime folder goes with it; closed by a job of cron. It was "closed", with 0."""
    runtime = home.folder / "xdg"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY) if ROOT else None
    home.do("before-backup", NAME, XDG_RUNTIME_DIR=str(runtime))
    assert not home.shown_folder.is_relative_to(home.folder)  # no backup of the home folder meets the plaintext
    assert 0o700 == home.shown_folder.stat().st_mode & 0o777
    assert home.shows()
    (home.folder / "gone").mkdir()
    runtime.rename(home.folder / "gone/xdg")  # as at the end of a session: what is open in it stays open

    assert "open" == status(home)["state"]
    home.do("after-backup", NAME)

    assert [] == home.standing()


def test_one_record_is_found_from_everywhere(home: Users) -> None:
    """From cron, from a session, and from another one."""
    sessions: list[dict[str, str]] = [{}, {"XDG_RUNTIME_DIR": str(home.folder)}, {"XDG_RUNTIME_DIR": "/nowhere"}]
    for opening in sessions:
        home.do("before-backup", NAME, **opening)
        for other in sessions:
            assert "open" == json.loads(home.do("status", NAME, "--json", **other))[0]["state"]
        home.do("after-backup", NAME, **sessions[0])
        assert [] == home.standing()


def test_a_volume_that_an_earlier_version_opened_is_closed(home: Users) -> None:
    """Its record is where that version kept it, and what is open stays where it is."""
    runtime = home.folder / "xdg"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY) if ROOT else None
    home.do("before-backup", NAME, LUKSHOOK_RUN_DIR=f"{runtime}/lukshook")

    assert "open" == json.loads(home.do("status", NAME, "--json", XDG_RUNTIME_DIR=str(runtime)))[0]["state"]
    home.do("after-backup", NAME)

    assert [] == home.standing()
    assert [] == list(runtime.glob("lukshook/*.json"))


def test_a_volume_that_an_earlier_version_opened_in_a_session_that_has_ended(home: Users) -> None:
    """Neither a record nor the plaintext file can be found any more: the daemons can, but nobody can check the file."""
    runtime = home.folder / "xdg"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY) if ROOT else None
    home.do("before-backup", NAME, LUKSHOOK_RUN_DIR=f"{runtime}/lukshook")
    home.write("file", "content")
    plain = f"{runtime}/lukshook/{NAME}.plain"
    subprocess.run(
        ["umount" if ROOT else "fusermount3", *([] if ROOT else ["-u"]), "-l" if ROOT else "-z", plain], check=True
    )
    shutil.rmtree(runtime)

    assert "half open" == status(home)["state"]
    assert "some of the data written to" in home.refusal(74, "after-backup", NAME)

    assert [] == home.standing()
    home.do("before-backup", NAME)
    home.do("after-backup", NAME)


@pytest.fixture
def roots(home: Users, tmp_path: Path) -> Iterator[CliVolume]:
    """The same volume for root, whose configuration, state and mount point belong to root."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    other = CliVolume(place, "userspace")
    other.prepare()
    other.set_key(base64.b64decode(home.key.read_bytes()))
    other.configure(image=str(home.image))
    yield other
    for _ in closing(other):
        pass
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.roots
def test_root_does_not_call_a_users_volume_closed(home: Users, roots: CliVolume) -> None:
    """Root cannot look into it, so root cannot say that it is safe; and names the user who can."""
    roots.configure(image=str(home.image), mountpoint=str(home.mountpoint))
    home.do("before-backup", NAME)
    for command in ("after-backup", "close"):
        said = roots.refusal(71, command, NAME)
        assert f"is mounted at {home.mountpoint}" in said
        assert "nobody can close it" in said
    assert "nobody can close it" in status(roots)["problem"]
    assert "half open" == status(roots)["state"]

    home.do("after-backup", NAME)
    assert [] == home.standing()
    roots.do("close", NAME)


@pytest.mark.roots
def test_a_user_does_not_call_roots_volume_closed(home: Users, roots: CliVolume) -> None:
    """A forgotten sudo: the volume stays as it is, and who can close it is named."""
    shutil.copytree(home.state_folder, roots.state_folder)
    os.chown(roots.state_folder, 0, 0)
    home.configure(mountpoint=str(roots.mountpoint))
    roots.do("before-backup", NAME)
    try:
        for command in ("after-backup", "close"):
            said = home.refusal(77, command, NAME)
            assert f"is mounted at {roots.mountpoint}" in said
            assert "root can close it" in said
        assert "root can close it" in status(home)["problem"]
    finally:
        roots.do("after-backup", NAME)
    home.do("close", NAME)

"""What is said to be closed is closed, with the kernel engine: its record is lost, or another user's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from support.lukshook_process import NOBODY, Child, nothing, to_nobody
from support.volume import NAME, CliVolume, closing


def remove(record: Path) -> None:
    record.unlink()


def another_version(record: Path) -> None:
    data = json.loads(record.read_text())
    data["layers"][-1][0] = "zfs"
    record.write_text(json.dumps(data))


def folder(record: Path) -> None:
    record.unlink()
    record.mkdir()


def deep(record: Path) -> None:
    record.write_text("[" * 200_000)


#: Which engine creates the volume; both open it.
ENGINE = "userspace"


@pytest.fixture
def volume(template: CliVolume) -> Iterator[CliVolume]:
    """A copy of it where an ordinary user can look, with the kernel engine."""
    place = Path(tempfile.mkdtemp(dir="/disk"))
    place.chmod(0o755)
    volume = template.copy_to(place)
    volume.configure(engine="kernel")
    for _ in closing(volume):
        yield volume
    shutil.rmtree(place)


def status(volume: CliVolume) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(volume.do("status", NAME, "--json"))[0]
    return found


@pytest.mark.parametrize(
    ("damage", "engines"),
    [
        *((damage, ("kernel", "kernel")) for damage in (remove, another_version, folder, deep)),
        (remove, ("kernel", "userspace")),
        (remove, ("userspace", "kernel")),
    ],
)
def test_without_a_record_the_kernel_is_asked(
    volume: CliVolume, damage: Callable[[Path], None], engines: tuple[str, str]
) -> None:
    """Also where the configuration has got another engine meanwhile."""
    volume.configure(engine=engines[0])
    volume.do("before-backup", NAME)
    assert ("kernel" == engines[0]) == bool(volume.mappings())
    damage(volume.run_folder / f"{NAME}.json")
    volume.configure(engine=engines[1])

    assert "half open" == status(volume)["state"]
    volume.do("after-backup", NAME)

    assert volume.is_bare()
    assert "closed" == status(volume)["state"]


def test_a_mount_point_that_was_another_is_found(volume: CliVolume) -> None:
    """The mapping says where it is mounted."""
    volume.do("before-backup", NAME)
    (volume.run_folder / f"{NAME}.json").unlink()
    (volume.folder / "new").mkdir()
    volume.configure(mountpoint=str(volume.folder / "new"), engine="kernel")

    assert f"mounted at {volume.mountpoint}" in status(volume)["problem"]
    volume.do("close", NAME)

    assert [] == volume.standing()
    subprocess.run(["chattr", "-i", volume.folder / "new"], check=True)


def test_a_mapping_without_a_mount_is_found(volume: CliVolume) -> None:
    """Somebody unmounted it and the record is lost: the key is still in the kernel."""
    volume.do("before-backup", NAME)
    (volume.run_folder / f"{NAME}.json").unlink()
    subprocess.run(["umount", volume.mountpoint], check=True)

    assert f"the mapping lukshook-{NAME}" in status(volume)["problem"]
    volume.do("close", NAME)

    assert [] == volume.standing()


def test_another_lukshooks_volume_is_not_called_closed(volume: CliVolume) -> None:
    """Opened with other folders: what it marked as its own is not touched, and the state is not "closed"."""
    volume.do("before-backup", NAME)
    other = CliVolume(volume.folder, "kernel", {"LUKSHOOK_RUN_DIR": f"{volume.folder}/other"})

    for command in ("after-backup", "close"):
        assert f"is mounted at {volume.mountpoint}" in other.refusal(71, command, NAME)
    assert "half open" == status(other)["state"]
    assert volume.is_open()
    volume.do("after-backup", NAME)
    other.do("after-backup", NAME)


@frozen
class Users(CliVolume):
    """An ordinary user's lukshook."""

    def start(self, *arguments: str, prepare: Callable[[], None] = nothing, **more: str) -> Child:
        return Child(arguments, self.environment | more, to_nobody)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_user_does_not_call_roots_volume_closed(volume: CliVolume, mounted: bool) -> None:
    """A forgotten sudo: the mount, or the mapping alone, is named, and root, who can close it."""
    place = volume.folder / "users"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    folders = {"LUKSHOOK_RUN_DIR": f"{place}/run", "LUKSHOOK_STATE_DIR": f"{place}/state", "HOME": str(place)}
    user = Users(volume.folder, "kernel", folders)
    volume.do("before-backup", NAME)
    if not mounted:
        subprocess.run(["umount", volume.mountpoint], check=True)

    for command in ("after-backup", "close"):
        said = user.refusal(77, command, NAME)
        assert "root can close it" in said
        assert (f"is mounted at {volume.mountpoint}" if mounted else f"the mapping lukshook-{NAME}") in said
    assert "root can close it" in status(user)["problem"]

    assert (0 if mounted else 74) == volume.lukshook("after-backup", NAME).returncode
    user.do("after-backup", NAME)

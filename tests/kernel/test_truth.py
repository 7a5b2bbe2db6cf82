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

from support.volume import NAME, NOBODY, Bench, Child, closing, created, nothing, to_nobody


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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume that both engines open."""
    yield from created(tmp_path_factory.mktemp("template"), "userspace")


@pytest.fixture
def bench(template: Bench) -> Iterator[Bench]:
    """A copy of it where an ordinary user can look, with the kernel engine."""
    place = Path(tempfile.mkdtemp(dir="/disk"))
    place.chmod(0o755)
    bench = template.copy_to(place)
    bench.configure(engine="kernel")
    for _ in closing(bench):
        yield bench
    shutil.rmtree(place)


def status(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench.do("status", NAME, "--json"))[0]
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
    bench: Bench, damage: Callable[[Path], None], engines: tuple[str, str]
) -> None:
    """Also where the configuration has got another engine meanwhile."""
    bench.configure(engine=engines[0])
    bench.do("before-backup", NAME)
    assert ("kernel" == engines[0]) == bool(bench.mappings())
    damage(bench.run_folder / f"{NAME}.json")
    bench.configure(engine=engines[1])

    assert "half open" == status(bench)["state"]
    bench.do("after-backup", NAME)

    assert bench.is_bare()
    assert "closed" == status(bench)["state"]


def test_a_mount_point_that_was_another_is_found(bench: Bench) -> None:
    """The mapping says where it is mounted."""
    bench.do("before-backup", NAME)
    (bench.run_folder / f"{NAME}.json").unlink()
    (bench.folder / "new").mkdir()
    bench.configure(mountpoint=str(bench.folder / "new"), engine="kernel")

    assert f"mounted at {bench.mountpoint}" in status(bench)["problem"]
    bench.do("close", NAME)

    assert [] == bench.standing()
    subprocess.run(["chattr", "-i", bench.folder / "new"], check=True)


def test_a_mapping_without_a_mount_is_found(bench: Bench) -> None:
    """Somebody unmounted it and the record is lost: the key is still in the kernel."""
    bench.do("before-backup", NAME)
    (bench.run_folder / f"{NAME}.json").unlink()
    subprocess.run(["umount", bench.mountpoint], check=True)

    assert f"the mapping lukshook-{NAME}" in status(bench)["problem"]
    bench.do("close", NAME)

    assert [] == bench.standing()


def test_another_lukshooks_volume_is_not_called_closed(bench: Bench) -> None:
    """Opened with other folders: what it marked as its own is not touched, and the state is not "closed"."""
    bench.do("before-backup", NAME)
    other = Bench(bench.folder, "kernel", {"LUKSHOOK_RUN_DIR": f"{bench.folder}/other"})

    for command in ("after-backup", "close"):
        assert f"is mounted at {bench.mountpoint}" in other.refusal(71, command, NAME)
    assert "half open" == status(other)["state"]
    assert bench.is_open()
    bench.do("after-backup", NAME)
    other.do("after-backup", NAME)


@frozen
class Users(Bench):
    """An ordinary user's lukshook."""

    def start(self, *arguments: str, prepare: Callable[[], None] = nothing, **more: str) -> Child:
        return Child(arguments, self.environment | more, to_nobody)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_user_does_not_call_roots_volume_closed(bench: Bench, mounted: bool) -> None:
    """A forgotten sudo: the mount, or the mapping alone, is named, and root, who can close it."""
    place = bench.folder / "users"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    folders = {"LUKSHOOK_RUN_DIR": f"{place}/run", "LUKSHOOK_STATE_DIR": f"{place}/state", "HOME": str(place)}
    user = Users(bench.folder, "kernel", folders)
    bench.do("before-backup", NAME)
    if not mounted:
        subprocess.run(["umount", bench.mountpoint], check=True)

    for command in ("after-backup", "close"):
        said = user.refusal(77, command, NAME)
        assert "root can close it" in said
        assert (f"is mounted at {bench.mountpoint}" if mounted else f"the mapping lukshook-{NAME}") in said
    assert "root can close it" in status(user)["problem"]

    assert (0 if mounted else 74) == bench.lukshook("after-backup", NAME).returncode
    user.do("after-backup", NAME)

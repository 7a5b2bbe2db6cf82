"""A volume that cannot be opened: nothing reaches the bare mount point, even when nobody minds the hook's failure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.host_volume import LUKSHOOK, HostVolume, build, need

pytestmark = pytest.mark.hosts
ROOT = Path(__file__).parents[2]


def rsync(house: HostVolume, target: Path) -> list[str | Path]:
    """rsync straight to the folder."""
    return [need("rsync"), "-a", f"{house.tree}/", f"{target}/"]


def rsnapshot(house: HostVolume, target: Path) -> list[str | Path]:
    """rsnapshot that may make its root, and whose hook is a line that always ends with 0."""
    config = house.folder / "rsnapshot.conf"
    settings = {
        "config_version": "1.2",
        "snapshot_root": f"{target}/",
        "cmd_rsync": need("rsync"),
        "cmd_preexec": "/bin/true",
        "retain": "alpha\t2",
        "lockfile": f"{house.folder}/rsnapshot.pid",
        "backup": f"{house.tree}/\tlocalhost/",
    }
    config.write_text("".join(f"{name}\t{value}\n" for name, value in settings.items()))
    return [need("rsnapshot"), "-c", config, "alpha"]


def restic(house: HostVolume, target: Path) -> list[str | Path]:
    """restic that makes its repository when there is none."""
    program = need("restic")
    password = house.folder / "password"
    password.write_text("x\n")
    common = f"{program} --repo '{target}/restic' --password-file '{password}' --cache-dir '{house.folder}/cache'"
    return ["sh", "-c", f"{common} init; {common} backup '{house.tree}'"]


def borgmatic(house: HostVolume, target: Path) -> list[str | Path]:
    """borgmatic whose hook's failure is ignored, and which makes its repository."""
    program = need(ROOT / ".venv-borgmatic/bin/borgmatic")
    config = house.folder / "borgmatic.yaml"
    config.write_text(
        f"source_directories: [{house.tree}]\n"
        f"repositories: [{{path: {target}/borg}}]\n"
        "unknown_unencrypted_repo_access_is_ok: true\n"
        "commands:\n"
        "    - before: configuration\n"
        f"      run: ['{LUKSHOOK} -c {house.config} before-backup offsite || true']\n"
    )
    common = f"{program} --config {config}"
    path = f"{Path(program).parent}:{house.environment['PATH']}"
    return [
        "sh",
        "-c",
        f"PATH={path}; {common} repo-create --encryption none --make-parent-directories; {common} create",
    ]


def rclone(house: HostVolume, target: Path) -> list[str | Path]:
    """rclone, which makes whatever folders are missing."""
    return [need("rclone"), "--config", house.folder / "rclone.conf", "copy", house.tree, target / "a/b", "--retries=1"]


def duplicity(house: HostVolume, target: Path) -> list[str | Path]:
    """duplicity, which makes whatever folders are missing, without encryption of its own."""
    archive = house.folder / "archive"
    where = f"file://{target}/a/b"
    program = need("duplicity")
    return [program, "full", "--no-encryption", "--num-retries=1", "--archive-dir", archive, house.tree, where]


def rdiff_backup(house: HostVolume, target: Path) -> list[str | Path]:
    """rdiff-backup, which makes one missing folder."""
    return [need("rdiff-backup"), "backup", house.tree, target / "rdiff"]


TOOLS = {tool.__name__: tool for tool in (rsync, rsnapshot, restic, borgmatic, rclone, duplicity, rdiff_backup)}
Tool = Callable[[HostVolume, Path], list[str | Path]]


@pytest.fixture(name="house")
def _house(request: pytest.FixtureRequest, tmp_path: Path, tree: Path) -> Iterator[HostVolume]:
    """A house whose mount point is guarded by the immutable flag, or lies on a file system that has no flags."""
    if request.param == "flag":
        yield build(HostVolume(tmp_path, tree=tree))
        return
    (tmp_path / "ram").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path / "ram"], check=True)
    try:
        house = build(HostVolume(tmp_path, tree=tree, mount_name="ram/mnt"))
        assert not kernel.is_immutable(house.mountpoint)
        yield house
    finally:
        subprocess.run(["umount", tmp_path / "ram/mnt"], check=True)
        subprocess.run(["umount", tmp_path / "ram"], check=True)


@pytest.mark.parametrize(
    ("house", "where"),
    [("flag", "mount point"), ("flag", "data folder"), ("read-only bind", "mount point")],
    indirect=["house"],
)
@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_written_outside_the_volume(house: HostVolume, tool: str, where: str) -> None:
    """before-backup fails, and the tool runs all the same, as root: 0 bytes, and it says that it failed."""
    house.spoil_key()
    assert 77 == house.lukshook("before-backup", "offsite").returncode

    done = house.host(*TOOLS[tool](house, house.data if where == "data folder" else house.mountpoint))

    assert 0 != done.returncode, done.stdout + done.stderr
    assert house.closed_and_bare(), list(house.mountpoint.rglob("*"))
    assert house.is_guarded()

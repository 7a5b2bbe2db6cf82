"""Every kind of file system goes through the main job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.system import kernel
from lukshook.volume import holders

LUKSHOOK = Path(sys.executable).with_name("lukshook")


@pytest.mark.needs("mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_kinds_other_than_ext4(kind: str, tmp_path: Path) -> None:
    """Made, written to, closed, opened again read-only, and the file is there; who keeps it busy is found."""
    subprocess.run(["modprobe", kind], check=False)
    mountpoint = tmp_path / "mnt"
    config = tmp_path / "config.toml"
    config.write_text(
        f'[volumes.other]\nimage = "{tmp_path}/image"\nmountpoint = "{mountpoint}"\nsize = "400MiB"\n'
        f'key = "file:{tmp_path}/key"\nfilesystem = "{kind}"\nengine = "kernel"\nfill = "sparse"\n'
    )
    places = {"LUKSHOOK_RUN_DIR": str(tmp_path / "run"), "LUKSHOOK_STATE_DIR": str(tmp_path / "state")}

    def lukshook(*words: str) -> str:
        """Run it, and be content with nothing but success."""
        argv = [str(LUKSHOOK), "-c", str(config), *words]
        return subprocess.run(argv, env={**os.environ, **places}, check=True, capture_output=True, text=True).stdout

    lukshook("create", "other")
    lukshook("run", "other", "--", "sh", "-c", f"echo kept > {mountpoint}/data/file")
    lukshook("open", "other", "--read-only")
    kept = (mountpoint / "data/file").read_text()
    with subprocess.Popen(["sleep", "60"], cwd=mountpoint / "data") as inside:
        named = holders_of(mountpoint)
        inside.kill()
    lukshook("close", "other")

    assert "kept\n" == kept
    assert [(inside.pid, "working folder")] == named
    assert [] == list(mountpoint.iterdir())
    subprocess.run(["chattr", "-i", mountpoint], check=True)


def holders_of(mountpoint: Path) -> list[tuple[int, str]]:
    """Who holds what is mounted there, and what: files of btrfs have another number than its device."""
    found = kernel.mount_at(mountpoint)
    assert found is not None
    return [(holder.pid, holder.holds) for holder in holders.of(kernel.number(found.source), str(mountpoint))]

"""`snapshot = "lvm"` on a real thin pool: the image is a logical volume, named by LVM's own link."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("lvcreate", "thin_check")
GROUP = "lukshooktest"
#: The guest has no udev that makes the links in /dev, so LVM makes them itself; no daemon that watches the pool.
LOCAL = "activation {\n udev_sync=0\n udev_rules=0\n monitoring=0\n}\n"


def run(*argv: str | Path) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is a thin logical volume."""
    subprocess.run(["modprobe", "dm-thin-pool"], check=False)
    if "LUKSHOOK_GUEST" in os.environ:
        Path("/etc/lvm/lvmlocal.conf").write_text(LOCAL)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(600 << 20)
    node = run("losetup", "--find", "--show", disk)
    volume = CliVolume(tmp_path)
    try:
        run("vgcreate", GROUP, node)
        run("lvcreate", "--yes", "--type", "thin-pool", "--size", "400M", "--name", "pool", GROUP)
        run("lvcreate", "--yes", "--virtualsize", "100M", "--thinpool", f"{GROUP}/pool", "--name", "image")
        volume.prepare()
        volume.configure(image=f"/dev/{GROUP}/image", size=None, snapshot="lvm", keep_snapshots=2)
        volume.do("create", NAME)
        yield from closing(volume)
    finally:
        subprocess.run(["vgremove", "--yes", "--force", GROUP], check=False, capture_output=True)
        run("losetup", "--detach", node)


def versions(volume: CliVolume) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(volume.do("versions", NAME, "--json"))[0]["versions"]
    return found


def on_disk() -> list[str]:
    """The snapshots that LVM has."""
    return run("lvs", "--noheadings", "--options", "lv_name", "--select", "origin!=''", GROUP).split()


def test_yesterdays_state_comes_back(store: CliVolume, tmp_path: Path) -> None:
    """Taken, pruned and opened: the content of an older snapshot is that of then."""
    assert Path(f"/dev/{GROUP}/image").is_symlink()
    for text in ("one", "two", "three"):
        store.do("before-backup", NAME)
        store.do("before-backup", NAME)  # finds the same image open, whatever it is called
        (store.data / "file").write_text(text)
        store.do("after-backup", NAME)

    found = versions(store)
    assert 2 == len(found)
    assert sorted(one["name"] for one in found) == sorted(on_disk())
    assert "snapshots: lvm, 2 of 2 kept" in store.do("check", NAME)
    old = CliVolume(tmp_path / "old")
    old.prepare()
    shutil.copy(store.key, old.key)
    run("dd", f"if={found[1]['image']}", f"of={old.image}", "bs=1M")
    for other in closing(old):
        other.do("trust", NAME)
        other.do("open", NAME, "--read-only")
        assert "two" == (other.data / "file").read_text()


def test_a_foreign_snapshot_stays(store: CliVolume) -> None:
    """One that somebody has made again under our name has another UUID."""
    store.do("run", NAME, "--", "true")
    (ours,) = on_disk()
    run("lvremove", "--yes", f"{GROUP}/{ours}")
    run("lvcreate", "--snapshot", "--name", ours, f"{GROUP}/image")
    assert [] == versions(store)

    for _ in range(2):
        store.do("run", NAME, "--", "true")

    assert ours in on_disk()
    assert 3 == len(on_disk())
    assert 2 == len(versions(store))

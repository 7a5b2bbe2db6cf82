"""examples/ceph as its README says, in a real cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ceph_cluster import CEPH, CephCluster, ceph_cluster
from support.store_examples import EXAMPLES, backup, replaced, text
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("rsync", *CEPH),
]
EXAMPLE = "ceph"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[CephCluster]:
    """With a key for host1, made by the script of the example, twice."""
    with ceph_cluster(tmp_path / "ceph") as cluster:
        for _ in range(2):
            made = subprocess.run(
                [EXAMPLES / EXAMPLE / "add-host", "host1"],
                check=True,
                capture_output=True,
                env=os.environ | {"CEPH_CONF": str(cluster.config)},
            )
        keyring = cluster.folder / "client.host1.keyring"
        keyring.write_bytes(made.stdout)
        keyring.chmod(0o600)
        yield cluster


@pytest.fixture
def volume(cluster: CephCluster, tmp_path: Path) -> Iterator[CliVolume]:
    """The example's configuration with the test's own folders, engine and size."""
    volume = CliVolume(tmp_path / "house", "userspace")
    volume.prepare()
    volume.config.write_text(
        replaced(
            text(EXAMPLE, "config.toml"),
            ("/mnt/backupspace", str(volume.mountpoint)),
            ("500GiB", "64MiB"),
            ("/etc/lukshook/offsite.key", str(volume.key)),
        )
        + f'ceph_config = "{cluster.config}"\nengine = "userspace"\nold_fuse2fs = true\n'
    )
    yield from closing(volume)


def test_a_backup_and_a_restore(volume: CliVolume, tmp_path: Path) -> None:
    """With the command of the service; a snapshot is there afterwards, and all files."""
    home = tmp_path / "home"
    home.mkdir()
    for number in range(20):
        (home / str(number)).write_bytes(os.urandom(100_000))
    volume.do("create", NAME)
    assert " fail " not in volume.do("check", NAME)
    words = backup(EXAMPLE)
    words[words.index("/home/")] = f"{home}/"
    if os.geteuid():
        words = [word.replace("-aAXH", "-rt") for word in words]  # owners are root's to keep
    volume.do(*(word.replace("/mnt/backupspace", str(volume.mountpoint)) for word in words[1:]))
    assert volume.is_bare()
    assert f"lukshook-{NAME}-" in volume.do("versions", NAME)
    volume.do("open", NAME, "--read-only")
    same = subprocess.run(["diff", "-r", home, volume.data / "home"], check=False)
    volume.do("close", NAME)
    assert 0 == same.returncode

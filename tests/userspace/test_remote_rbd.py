"""An image in a Ceph cluster: three OSDs, a monitor and a manager, all real, with cephx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lukshook.system import kernel
from support import rekey_cases
from support.ceph_cluster import CEPH, POOL, CephCluster, ceph_cluster
from support.far_volume import (
    back_up,
    house,
    in_it,
    nothing_stands,
    some,
)
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs(*CEPH),
]
#: Seconds that the cluster needs to forget a watcher.
FORGETS = 30.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """One for all tests of this file."""
    with ceph_cluster(tmp_path_factory.mktemp("ceph"), 3) as cluster:
        cluster.host("h1")
        yield cluster


def volume_at(cluster: CephCluster, folder: Path, host: str = "h1", name: str = "", **options: object) -> CliVolume:
    """A volume of *host*, whose image has a name of its own unless *name* says otherwise. Not created yet."""
    url = f"rbd:{POOL}/{host}/{name or folder.parent.name}"
    return house(folder, url, ceph_user=host, ceph_config=str(cluster.config), **options)


@pytest.fixture
def volume(cluster: CephCluster, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie in the cluster, not created yet."""
    yield from closing(volume_at(cluster, tmp_path / "house"))
    assert nothing_is_watched(cluster, tmp_path.name)


def image_of(tmp_path: Path, host: str = "h1") -> str:
    return f"{POOL}/{host}/{tmp_path.name}"


def nothing_is_watched(cluster: CephCluster, name: str) -> bool:
    """Whether nobody has an image of that name open, if it is there."""
    return name not in cluster.json("rbd", "ls", f"{POOL}/h1") or not watchers(cluster, f"{POOL}/h1/{name}")


def watchers(cluster: CephCluster, image: str) -> list[str]:
    return [one["address"] for one in cluster.json("rbd", "status", image)["watchers"]]


def reconfigure(volume: CliVolume, cluster: CephCluster, image: str, **options: object) -> None:
    """The same volume in the cluster, with other options."""
    values = {"image": f"rbd:{image}", "ceph_user": "h1", "ceph_config": str(cluster.config)}
    volume.configure(**(values | options))


def test_what_is_said_of_it(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """It is made of holes, and `check` says what the cluster can do."""
    volume.do("create", NAME)
    assert cluster.json("rbd", "du", image_of(tmp_path))["images"][0]["used_size"] < 32 << 20
    checked = volume.do("check", NAME)
    for word in ("locks out other hosts", "takes snapshots", "store has ~"):
        assert word in checked


def test_the_volume_key_is_replaced(cluster: CephCluster, volume: CliVolume) -> None:
    """An OSD crashes and everything here is killed meanwhile; nothing is lost, and the old key opens nothing."""
    volume.do("create", NAME)
    back_up(volume, "file")

    def one_crashes() -> None:
        cluster.kill("osd.1")
        cluster.start("osd.1")

    rekey_cases.check_far(volume, one_crashes, lambda: in_it(volume, "file"))
    assert nothing_stands(volume)
    cluster.wait_for_osds(3)


def test_copies_to_another_kind_and_from_it(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """What lies in the cluster is copied to a file, and heals from it; a file becomes an image by Ceph's tool."""
    image, copy = image_of(tmp_path), tmp_path / "copy.img"
    reconfigure(volume, cluster, image, ledger=True)
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("copy", NAME, str(copy))
    cluster.do("rbd", "remove", "--no-progress", image)
    cluster.do("rbd", "import", "--no-progress", "--image-feature=exclusive-lock", str(copy), image)
    assert [content] == in_it(volume, "file")
    with copy.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        good = file.read()
        file.seek(-5, os.SEEK_END)
        file.write(b"spoil")
    spoiled = tmp_path / "spoiled"
    cluster.do("rbd", "remove", "--no-progress", image)
    cluster.do("rbd", "import", "--no-progress", "--image-feature=exclusive-lock", str(copy), image)
    assert 65 == volume.lukshook("verify", NAME).returncode
    with copy.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(good)
    volume.do("heal", NAME, "--from", str(copy))
    volume.do("verify", NAME)
    cluster.do("rbd", "export", "--no-progress", image, str(spoiled))
    assert copy.read_bytes() == spoiled.read_bytes()


def test_two_hosts_at_once(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """Of two that open the image at the same moment, at most one gets it."""
    volume.do("create", NAME)
    other = volume_at(cluster, tmp_path / "other", name=tmp_path.name)
    shutil.copy(volume.key, other.key)
    other.do("trust", NAME)
    for _ in range(5):
        children = [one.start("before-backup", NAME) for one in (volume, other)]
        codes = sorted(child.wait().returncode for child in children)
        assert codes in ([0, 69], [69, 69]), codes
        for one in (volume, other):
            one.lukshook("after-backup", NAME)
    assert nothing_stands(other)
    other.remove()


def test_an_image_without_the_lock_is_refused(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """Nothing would fence off a host that the cluster has forgotten; the hint says how to switch it on."""
    volume.do("create", NAME)
    cluster.do("rbd", "feature", "disable", image_of(tmp_path), "fast-diff", "object-map", "exclusive-lock")
    done = volume.lukshook("before-backup", NAME)
    assert (69, True) == (done.returncode, "has no exclusive lock" in done.stderr), done.stderr
    line = done.stderr.split("switch that on: ")[1].strip()
    subprocess.run(["sh", "-c", line], check=True)
    back_up(volume, "file")


WHO = {"one OSD": ["osd.1"], "every OSD": ["osd.0", "osd.1", "osd.2"], "the monitor": ["mon.a"]}


@pytest.mark.parametrize("who", WHO)
def test_a_part_of_the_cluster_crashes_and_comes_back(cluster: CephCluster, volume: CliVolume, who: str) -> None:
    """The backup waits, and what it has written is there afterwards."""
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    content = some(20_000_000)
    with (volume.data / "file").open("wb", buffering=0) as file:
        for start in range(0, len(content), 2_000_000):
            file.write(content[start : start + 2_000_000])
            os.fsync(file.fileno())
            if start == 4_000_000:
                cluster.kill(*WHO[who])
                cluster.start(*WHO[who])
    volume.do("after-backup", NAME)

    assert nothing_stands(volume)
    assert [content] == in_it(volume, "file")
    cluster.wait_for_osds(3)


def test_one_of_three_is_lost(cluster: CephCluster, volume: CliVolume) -> None:
    """During a backup, and for good: nothing is lost, and the next backup works."""
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    content = some(8_000_000)
    (volume.data / "file").write_bytes(content[:4_000_000])
    cluster.kill("osd.2")
    with (volume.data / "file").open("ab") as file:
        file.write(content[4_000_000:])
    volume.do("after-backup", NAME)
    after = back_up(volume, "after")
    assert [content, after] == in_it(volume, "file", "after")
    cluster.start("osd.2")
    cluster.wait_for_osds(3)
    assert [content, after] == in_it(volume, "file", "after")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_cluster_that_stays_away(cluster: CephCluster, volume: CliVolume, tmp_path: Path, how: str) -> None:
    """When patience is over the backup is lost, says so, and leaves nothing; with the cluster, the next one works."""
    reconfigure(volume, cluster, image_of(tmp_path), patience="5s")
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("before-backup", NAME)
    (volume.data / "lost").write_bytes(some())
    away = [*cluster.osds, "mon.a"]
    if how == "killed":
        cluster.kill(*away)
    else:
        cluster.freeze(*away)

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert nothing_stands(volume)
    assert "does not answer" in volume.refusal(69, "before-backup", NAME)
    assert nothing_stands(volume)
    if how == "killed":
        cluster.start(*away)
    else:
        cluster.thaw(*away)
    cluster.wait_for_osds(3)
    # A cluster that was killed has the watcher of the lost backup on its disks, for longer than this patience.
    assert kernel.wait_until(lambda: not watchers(cluster, image_of(tmp_path)), 2 * FORGETS)
    after = back_up(volume, "after")
    assert [content, after] == in_it(volume, "file", "after")


def test_what_is_written_is_stored(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """No cache answers in the cluster's place: while no OSD answers, no write is acknowledged."""
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    subprocess.run(["sync", "-f", volume.data], check=True)
    image = volume.run_folder / f"{NAME}.remote/image"
    write = ["dd", "if=/dev/zero", f"of={image}", "bs=4k", "count=1", "seek=16000", "conv=notrunc", "status=none"]
    subprocess.run(write, check=True)
    cluster.freeze(*cluster.osds)
    writing = subprocess.Popen(write)
    assert not kernel.wait_until(lambda: writing.poll() is not None, 4.0)
    cluster.thaw(*cluster.osds)
    assert 0 == writing.wait(60)
    volume.do("after-backup", NAME)


def test_snapshots(cluster: CephCluster, volume: CliVolume, tmp_path: Path) -> None:
    """One after each backup, the oldest go, `versions` lists them, and an older state opens."""
    image = image_of(tmp_path)
    reconfigure(volume, cluster, image, snapshot="rbd", keep_snapshots=2)
    volume.do("create", NAME)
    assert " fail " not in volume.do("check", NAME)
    contents = [back_up(volume, "file") for _ in range(3)]
    volume.do("versions", NAME)
    versions = json.loads(volume.do("versions", NAME, "--json"))[0]["versions"]
    names = [one["name"] for one in cluster.json("rbd", "snap", "ls", image)]
    assert sorted(names) == sorted(one["name"] for one in versions)
    assert 2 == len(names)

    oldest, older = versions[-1]["name"], tmp_path / "older.img"
    cluster.do("rbd", "export", "--no-progress", f"{image}@{oldest}", str(older))
    volume.do("open", NAME, "--image", str(older), "--at", str(at := tmp_path / "at"))
    assert contents[1] == (at / "data/file").read_bytes()
    volume.do("close", NAME, "--at", str(at))
    assert [contents[2]] == in_it(volume, "file")


def test_a_user_of_another_place(cluster: CephCluster, tmp_path: Path) -> None:
    """A host's key opens its own namespace alone: not another host's, not another pool. One line says so."""
    cluster.host("h2")
    cluster.make_pool("other")
    mine = volume_at(cluster, tmp_path / "mine")
    mine.do("create", NAME)
    for url in (f"rbd:{image_of(tmp_path)}", f"rbd:{POOL}/x", "rbd:other/x"):
        other = house(tmp_path / "other", url, ceph_user="h2", ceph_config=str(cluster.config))
        told = other.refusal(77, "create", NAME)
        assert f"Ceph does not let client.h2 look at {url}" in told
        assert nothing_stands(other)
    other.configure(image=f"rbd:{POOL}/h2/x", ceph_user="nobody", ceph_config=str(cluster.config))
    assert "Ceph does not let client.nobody in" in other.refusal(77, "create", NAME)
    other.configure(image="rbd:absent/x", ceph_user="h2", ceph_config=str(cluster.config))
    assert "no pool absent" in other.refusal(69, "create", NAME)
    other.remove()
    mine.remove()


def test_twenty_volumes_of_five_hosts_at_once(cluster: CephCluster, tmp_path: Path) -> None:
    """In one pool; each host has its own key, and each volume what was written to it."""
    volumes = []
    for number in range(20):
        host = f"fleet{number % 5}"
        cluster.host(host)
        volumes.append(volume_at(cluster, tmp_path / f"house{number}", host, f"volume{number}", patience="10m"))
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda one: one.do("create", NAME), volumes))
        contents = list(pool.map(lambda one: back_up(one, "file"), volumes))
        found = list(pool.map(lambda one: in_it(one, "file"), volumes))
    assert [[content] for content in contents] == found
    for one in volumes:
        assert nothing_stands(one)
        one.remove()

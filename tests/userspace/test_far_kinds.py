"""Every kind of place for a remote image, with the userspace engine: the cases that several of them share."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import unquote

import pytest

from lukshook.store.remote import kinds as urls
from lukshook.store.remote.own_folder import HELD
from lukshook.system import kernel
from support.ceph_cluster import CephCluster, ceph_cluster
from support.far_cases import check_the_whole_life, kind_of, kinds
from support.far_places import Place, RbdPlace, SshPlace, place_of, running
from support.far_volume import (
    back_up,
    check_a_frozen_host_changes_nothing,
    connections,
    house,
    in_it,
    nothing_stands,
    ours,
    some,
)
from support.lukshook_process import kill_all
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("rsync"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """One for all tests of this file."""
    with ceph_cluster(tmp_path_factory.mktemp("ceph"), 3) as cluster:
        cluster.host("h1")
        yield cluster


@pytest.fixture
def far(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Place]:
    """A place of that *kind*."""
    cluster = request.getfixturevalue("cluster") if kind == "rbd" else None
    yield from running(place_of(kind, tmp_path / "place", cluster))


@pytest.fixture
def volume(far: Place, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie there, not created yet."""
    yield from closing(house(tmp_path / "house", far.url, **far.options))


def reconfigure(volume: CliVolume, far: Place, **options: object) -> None:
    """The same volume with other *options*."""
    volume.configure(**({"image": far.url} | far.options | options))


@pytest.mark.parametrize("kind", [kind_of("path", is_slow=False), *kinds("sftp")])  # ssh by default: test_remote_proof
def test_the_whole_life_of_a_volume(far: Place, volume: CliVolume, request: pytest.FixtureRequest) -> None:
    """With `--long` also with real backup tools; what lies there in the end is restored by hand."""
    reconfigure(volume, far, ledger=True, patience="2m")
    check_the_whole_life(far, volume, tools=request.config.getoption("--long"), opens=False)


BREAKS = [
    pytest.param("ssh", "line", id="ssh-line"),
    *(pytest.param("ssh", who, id=f"ssh-{who}", marks=pytest.mark.slow) for who in ("server", "sshd", "everything")),
    pytest.param("sftp", "server", id="sftp-server"),
    *(pytest.param("sftp", who, id=f"sftp-{who}", marks=pytest.mark.slow) for who in ("line", "everything")),
]


@pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen", "nbdkit", "/usr/lib/openssh/sftp-server")
@pytest.mark.parametrize(("kind", "who"), BREAKS)
def test_a_connection_that_breaks_loses_nothing(far: SshPlace, volume: CliVolume, who: str) -> None:
    """The backup waits, and what it has written is there afterwards."""
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    content = some(12_000_000)
    with (volume.data / "file").open("wb", buffering=0) as file:
        for start in range(0, len(content), 2_000_000):
            file.write(content[start : start + 2_000_000])
            os.fsync(file.fileno())
            if start == 4_000_000:
                break_connection(far, volume, who)
    volume.do("after-backup", NAME)

    assert nothing_stands(volume)
    assert [content] == in_it(volume, "file")


def break_connection(far: SshPlace, volume: CliVolume, who: str) -> None:
    if who == "everything":
        far.down()
        far.up()
        return
    pids = {"server": far.serving(), "sshd": far.far.serving("sshd"), "line": connections(volume, "ssh")}[who]
    assert pids
    kill_all(pids)


@pytest.mark.parametrize("kind", kinds("ssh", but=("nbd", "nbds", "rbd")))
def test_a_server_that_never_comes_back(far: Place, volume: CliVolume) -> None:
    """When patience is over the backup is lost, says so, and leaves nothing; our own lock does not keep us out."""
    reconfigure(volume, far, patience="3s")
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("before-backup", NAME)
    (volume.data / "lost").write_bytes(some())
    far.down()

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    held = [HELD] if far.url.startswith("sftp:") else []  # its lock is a file there
    assert nothing_stands(volume, *held)
    assert "cannot be reached" in volume.refusal(69, "before-backup", NAME)
    assert nothing_stands(volume, *held)
    far.up()
    after = back_up(volume, "after")
    assert [content, after] == in_it(volume, "file", "after")
    assert ["backup.img"] == far.images()


@pytest.mark.parametrize("kind", kinds("ssh", but=("nbd", "nbds")))
def test_a_second_host_is_kept_out(far: Place, volume: CliVolume, tmp_path: Path, kind: str) -> None:
    """It learns who has the image; when that one has closed it, it may."""
    named = "the cluster lists" if kind == "rbd" else f"is open elsewhere: host {os.uname().nodename} (process "
    volume.do("create", NAME)
    other = house(tmp_path / "other", far.url, **far.options)
    shutil.copy(volume.key, other.key)
    volume.do("before-backup", NAME)

    assert named in other.refusal(69, "trust", NAME)

    assert nothing_stands(other)
    (volume.data / "file").write_bytes(b"all of it")
    volume.do("after-backup", NAME)
    other.do("trust", NAME)
    content = back_up(other, "theirs")
    assert [b"all of it", content] == in_it(volume, "file", "theirs")
    assert ["backup.img"] == far.images()
    other.remove()


@pytest.mark.parametrize("kind", kinds(but=("sftp", "nbd", "nbds")))
def test_a_frozen_host_changes_nothing(far: Place, volume: CliVolume, tmp_path: Path) -> None:
    """The place gives it up, another host writes; when it wakes up, nothing that it still has to write is stored."""
    reconfigure(volume, far, patience="5s")
    other = house(tmp_path / "other", far.url, **(far.options | {"patience": "5s"}))
    check_a_frozen_host_changes_nothing(volume, other, far.is_free, far.content)


@pytest.mark.parametrize("kind", kinds("ssh", "sftp", but=("nbd", "nbds", "rbd")))
def test_a_host_key_is_never_learned(far: SshPlace, volume: CliVolume) -> None:
    """One line says what to do; with the key of another machine it is a refusal. A known host cannot add keys."""
    host = far.far
    known = host.known.read_text()
    host.known.write_text("")
    assert "the host key of far is not known" in volume.refusal(69, "create", NAME)
    assert "" == host.known.read_text()
    other = (host.folder / "user.pub").read_text().split(" ")[1]
    host.known.write_text(" ".join([*known.split(" ")[:2], other]) + "\n")
    assert "another host key" in volume.refusal(65, "create", NAME)
    host.known.write_text(known)
    volume.do("create", NAME)
    assert known == host.known.read_text()
    assert nothing_stands(volume)


NAMES = [
    kind_of("ssh", "a%20b'%22$(reboot),c;d", is_slow=False),
    kind_of("ssh", "-%25s[a]*%3F%5C{}%C3%A4!", is_slow=True),
    kind_of("sftp", "a%20b'%22$(reboot)", is_slow=True),
    kind_of("sftp", "-%25s[a]*%3F%5C{}%C3%A4!", is_slow=False),
    kind_of("rbd", "-a%20b,c'%22$(reboot)%C3%A4=", is_slow=True),
]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_odd_names(far: Place, volume: CliVolume, name: str) -> None:
    """Every name of an image that can be written as a URL, also in the line of the recovery sheet that fetches it."""
    url = far.url_of(name)
    volume.configure(image=url, **far.options)
    volume.do("create", NAME)
    content = back_up(volume, "file")
    assert [unquote(name)] == far.images()

    store = urls.parse(url).with_config(Path(str(far.options.get("ssh_config"))))
    if isinstance(far, RbdPlace):
        store = store.with_ceph("h1", far.cluster.config)
    subprocess.run(["sh", "-c", store.fetch(shlex.quote(os.fspath(volume.image)))], check=True)
    volume.configure()
    assert [content] == in_it(volume, "file")


KILLED = [
    kind_of("ssh", "before-backup", is_slow=False),
    *(kind_of("ssh", command, is_slow=True) for command in ("create", "check")),
    kind_of("sftp", "create", is_slow=False),
    kind_of("sftp", "before-backup", is_slow=True),
]


@pytest.mark.parametrize(("kind", "command"), KILLED)
def test_a_lukshook_that_is_killed(far: Place, volume: CliVolume, command: str, chance: Random) -> None:
    """At any moment: the next command finds what it left, and closing leaves nothing."""
    if command != "create":
        volume.do("create", NAME)
    for _ in range(3):
        child = volume.start(command, NAME)
        kernel.wait_until(child.poll, chance.uniform(0.1, 5.0))
        child.signal(signal.SIGKILL)
        child.wait()
    if command == "create":
        for file in (*volume.state_folder.glob(f"{NAME}.[!h]*"), volume.state_folder / f"{NAME}.header"):
            file.unlink(missing_ok=True)
        far.image.unlink(missing_ok=True)
        volume.do("create", NAME)
    back_up(volume, "file")
    assert nothing_stands(volume)
    assert ["backup.img"] == far.images()


PROCESSES = [
    kind_of("ssh", "nbdfuse", is_slow=False),
    *(kind_of("ssh", who, is_slow=True) for who in ("socat", "qemu-storage-daemon")),
    *(
        kind_of("rbd", who, is_slow=True)
        for who in ("socat", "qemu-nbd", "qemu-storage-daemon", "nbdfuse", "connections")
    ),
]


@pytest.mark.parametrize(("kind", "who"), PROCESSES)
def test_a_process_of_ours_that_is_killed(far: Place, volume: CliVolume, who: str) -> None:
    """Nothing of ours keeps us out. With 74 where something may be lost, and the next backup works."""
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("before-backup", NAME)
    more = some()
    (volume.data / "more").write_bytes(more)
    kill_all(connections(volume) if who == "connections" else ours(volume, who))

    done = volume.lukshook("after-backup", NAME)

    lost = who in ("qemu-storage-daemon", "nbdfuse")
    assert (74 if lost else 0) == done.returncode, done.stderr
    assert nothing_stands(volume)
    after = back_up(volume, "after")
    expected = {"file": content, "after": after} | ({} if lost else {"more": more})
    assert list(expected.values()) == in_it(volume, *expected)

"""An image on a machine with nothing but SFTP: a real sshd that gives no shell."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from urllib.parse import unquote

import pytest

from lukshook.store.remote import kinds
from lukshook.system import kernel
from support import rekey_cases
from support.far_host import FarHost, far_host
from support.far_volume import back_up, connections, house, in_it, nothing_stands, some
from support.lukshook_process import kill_all
from support.volume import NAME, CliVolume, closing

SERVER = "/usr/lib/openssh/sftp-server"
LOCK = ".backup.img.lukshook-lock"
pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen", SERVER),
]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    """It gives SFTP, whatever is asked for."""
    with far_host(tmp_path / "far", "Subsystem sftp internal-sftp\nForceCommand internal-sftp\n") as host:
        yield host


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[FarHost]:
    """Its SFTP server is a process of its own."""
    with far_host(tmp_path / "far", f"Subsystem sftp {SERVER}\n") as host:
        yield host


def volume_at(far: FarHost, folder: Path, **options: object) -> CliVolume:
    return house(folder, far.url(scheme="sftp"), ssh_config=str(far.config), **options)


@pytest.fixture
def volume(far: FarHost, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie on the far host, not created yet."""
    yield from closing(volume_at(far, tmp_path / "house"))


def test_the_whole_life_of_a_volume(far: FarHost, volume: CliVolume) -> None:
    """It is made, of holes; written, grown, shrunk, gets a new key; and what lies at the far end opens by itself."""
    assert far.url(scheme="sftp") in volume.do("create", NAME)
    assert ["backup.img"] == os.listdir(far.store)
    image = far.store / "backup.img"
    assert image.stat().st_blocks * 512 < image.stat().st_size
    content = back_up(volume, "file")
    for words in (("resize", NAME, "96MiB"), ("resize", NAME, "80MiB", "--yes"), ("key", "rotate", NAME)):
        volume.do(*words)
    assert 80 << 20 == image.stat().st_size
    status = json.loads(volume.do("status", "--json"))[0]
    assert (far.url(scheme="sftp"), False, "closed") == (status["image"], status["connected"], status["state"])
    checked = volume.do("check", NAME)
    assert "a lock file for other hosts with lukshook" in checked
    assert "has only a lock file, and nobody but lukshook looks at that" in checked
    assert nothing_stands(volume)
    assert ["backup.img"] == os.listdir(far.store)

    fetch(far, far.url(scheme="sftp"), volume.image)
    image.unlink()
    volume.configure()
    assert [content] == in_it(volume, "file")


def fetch(far: FarHost, url: str, image: Path) -> None:
    """Get the image as the recovery sheet says."""
    line = kinds.parse(url).with_config(far.config).fetch(shlex.quote(os.fspath(image)))
    subprocess.run(["sh", "-c", line], check=True)


def test_a_server_that_cannot_flush_is_refused(tmp_path: Path) -> None:
    """Nobody could say when a backup is stored; nothing is made there."""
    with far_host(tmp_path / "far", "Subsystem sftp internal-sftp -P fsync\n") as far:
        volume = volume_at(far, tmp_path / "house")
        assert "cannot flush (it has no fsync@openssh.com)" in volume.refusal(69, "create", NAME)
        assert nothing_stands(volume)
        assert [] == os.listdir(far.store)


@pytest.mark.parametrize(
    "who", ["server", *(pytest.param(who, marks=pytest.mark.slow) for who in ("ssh", "everything"))]
)
def test_a_connection_that_breaks_loses_nothing(far: FarHost, volume: CliVolume, who: str) -> None:
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


def break_connection(far: FarHost, volume: CliVolume, who: str) -> None:
    if who == "everything":
        far.stop()
        far.start()
        return
    pids = far.serving("sshd") if who == "server" else connections(volume, "ssh")
    assert pids
    kill_all(pids)


@pytest.mark.slow
def test_the_volume_key_is_replaced(far: FarHost, volume: CliVolume) -> None:
    """The line breaks and everything here is killed meanwhile; nothing is lost, and the old key opens nothing."""
    volume.do("create", NAME)
    back_up(volume, "file")
    rekey_cases.check_far(volume, lambda: kill_all(far.serving("sshd")), lambda: in_it(volume, "file"))
    assert nothing_stands(volume)
    assert ["backup.img"] == os.listdir(far.store)


def test_a_server_that_never_comes_back(far: FarHost, volume: CliVolume) -> None:
    """When patience is over the backup is lost, says so, and leaves nothing; our own lock does not keep us out."""
    volume.configure(image=far.url(scheme="sftp"), ssh_config=str(far.config), patience="3s")
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("before-backup", NAME)
    (volume.data / "lost").write_bytes(some())
    far.stop()

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert nothing_stands(volume)
    assert "cannot be reached" in volume.refusal(69, "before-backup", NAME)
    assert nothing_stands(volume)
    assert LOCK in os.listdir(far.store)
    far.start()
    after = back_up(volume, "after")
    assert [content, after] == in_it(volume, "file", "after")
    assert ["backup.img"] == os.listdir(far.store)


def test_a_second_host_is_kept_out(far: FarHost, volume: CliVolume, tmp_path: Path) -> None:
    """It is told who has the image; what a host has left that never comes back is broken on request alone."""
    volume.do("create", NAME)
    other = volume_at(far, tmp_path / "other")
    shutil.copy(volume.key, other.key)
    volume.do("before-backup", NAME)

    told = other.refusal(69, "trust", NAME)

    assert f"is open elsewhere: host {os.uname().nodename} (process " in told
    assert nothing_stands(other)
    kept = (far.store / LOCK).read_bytes()
    volume.do("after-backup", NAME)
    assert not (far.store / LOCK).exists()
    (far.store / LOCK).write_bytes(kept)
    other.refusal(69, "trust", NAME)
    other.do("trust", NAME, "--break-lock")
    assert ["backup.img"] == os.listdir(far.store)
    back_up(other, "file")
    other.remove()


def test_a_lock_that_was_broken(far: FarHost, volume: CliVolume) -> None:
    """Another host may have written, or the server is another one: the backup counts as failed."""
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    (far.store / LOCK).write_text('{"host": "other", "holder": "x"}')

    done = volume.lukshook("after-backup", NAME)

    assert (74, True) == (done.returncode, "no longer has our lock" in done.stderr), done.stderr
    assert nothing_stands(volume)
    assert "host other" in volume.refusal(69, "before-backup", NAME)
    assert LOCK in os.listdir(far.store)


def test_a_lock_with_anything_in_it(far: FarHost, volume: CliVolume) -> None:
    """It is somebody's; one line says so."""
    for content in (b"", b"[" * 4000, b'{"host": "a\\u001b[31mb\\n", "pid": {}}', b"\xff" * 9999):
        (far.store / LOCK).write_bytes(content)
        assert "is open elsewhere" in volume.refusal(69, "create", NAME)
        assert [LOCK] == os.listdir(far.store)


@pytest.mark.slow
def test_the_words_of_a_server_hide_nothing(tmp_path: Path) -> None:
    """It says that all ended well; a line that was cut while writes were under way makes the backup fail."""
    server = tmp_path / "server"
    server.write_text(f"#!/bin/sh\nprintf 'ended 0\\nand' >&2\nexec {SERVER}\n")
    server.chmod(0o755)
    with far_host(tmp_path / "far", f"Subsystem sftp {server}\n") as far:
        for volume in closing(volume_at(far, tmp_path / "house", patience="60s")):
            volume.do("create", NAME)
            volume.do("before-backup", NAME)
            writes = ["dd", "if=/dev/urandom", f"of={volume.data / 'more'}", "bs=1M", "count=2", "conv=notrunc,fsync"]
            subprocess.run(writes, check=True)
            stopped = far.serving("sftp-server")
            assert stopped
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            with subprocess.Popen(writes) as writing:
                assert not kernel.wait_until(lambda: writing.poll() is not None, 3.0)
                kill_all(connections(volume, "ssh"))
                assert 0 == writing.wait(60)
            kill_all(stopped)

            done = volume.lukshook("after-backup", NAME)

            assert (74, True) == (done.returncode, "a broken connection" in done.stderr), done.stderr
            assert nothing_stands(volume)


@pytest.mark.slow
def test_a_frozen_server_is_left(frozen: FarHost, tmp_path: Path) -> None:
    """A new connection is made; since the frozen one may write late, the backup counts as failed."""
    volume = volume_at(frozen, tmp_path / "house", patience="60s")
    stopped: list[int] = []
    try:
        volume.do("create", NAME)
        volume.do("before-backup", NAME)
        (volume.data / "more").write_bytes(some())  # what is read for that must not wait for the frozen server
        stopped += frozen.serving("sftp-server")
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

        done = volume.lukshook("after-backup", NAME)

        assert (74, True) == (done.returncode, "a broken connection" in done.stderr), done.stderr
        assert nothing_stands(volume)
    finally:
        kill_all(stopped)
        for _ in closing(volume):
            pass


def test_a_host_key_is_never_learned(far: FarHost, volume: CliVolume) -> None:
    """One line says what to do; with the key of another machine it is a refusal."""
    known = far.known.read_text()
    far.known.write_text("")
    assert "the host key of far is not known" in volume.refusal(69, "create", NAME)
    assert "" == far.known.read_text()
    other = (far.folder / "user.pub").read_text().split(" ")[1]
    far.known.write_text(" ".join([*known.split(" ")[:2], other]) + "\n")
    assert "another host key" in volume.refusal(65, "create", NAME)
    assert nothing_stands(volume)


@pytest.mark.parametrize("name", ["a%20b'%22$(reboot)", "-%25s[a]*%3F%5C{}%C3%A4!"])
def test_odd_names(far: FarHost, volume: CliVolume, name: str) -> None:
    """Every name of a file that can be written as a URL."""
    volume.configure(image=far.url(name, "sftp"), ssh_config=str(far.config))
    volume.do("create", NAME)
    assert [unquote(name)] == os.listdir(far.store)
    fetch(far, far.url(name, "sftp"), volume.image)
    assert (far.store / unquote(name)).read_bytes() == volume.image.read_bytes()


@pytest.mark.parametrize("command", ["create", pytest.param("before-backup", marks=pytest.mark.slow)])
def test_a_lukshook_that_is_killed(far: FarHost, volume: CliVolume, command: str, chance: Random) -> None:
    """At any moment: the next command finds what it left, and closing leaves nothing."""
    if command != "create":
        volume.do("create", NAME)
    for _ in range(3):
        child = volume.start(command, NAME)
        kernel.wait_until(child.poll, chance.uniform(0.1, 4.0))
        child.signal(signal.SIGKILL)
        child.wait()
    if command == "create":
        for file in volume.state_folder.glob(f"{NAME}.[!h]*"):
            file.unlink()
        (volume.state_folder / f"{NAME}.header").unlink(missing_ok=True)
        (far.store / "backup.img").unlink(missing_ok=True)
        volume.do("create", NAME)
    back_up(volume, "file")
    assert nothing_stands(volume)
    assert ["backup.img"] == os.listdir(far.store)

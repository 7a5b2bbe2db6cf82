"""An image on a machine with nothing but SFTP: a real sshd that gives no shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lukshook.proof import verify
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


def test_what_is_said_of_it(far: FarHost, volume: CliVolume) -> None:
    """It is made of holes, and `check` says that its lock is weaker than others."""
    volume.do("create", NAME)
    image = (far.store / "backup.img").stat()
    assert image.st_blocks * 512 < image.st_size
    checked = volume.do("check", NAME)
    assert "a lock file for other hosts with lukshook" in checked
    assert "has only a lock file, and nobody but lukshook looks at that" in checked


def test_noting_what_was_verified_takes_no_login(
    far: FarHost, volume: CliVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a login takes longer than reading, `verify` did hardly anything else."""
    volume.configure(image=far.url(scheme="sftp"), ssh_config=str(far.config), ledger=True)
    volume.do("create", NAME)
    back_up(volume, "file")
    usual = logins(far, volume)
    monkeypatch.setattr(verify, "_BATCH", 1)
    assert usual == logins(far, volume)


def logins(far: FarHost, volume: CliVolume) -> int:
    """How many a verification takes."""
    log = far.folder / "sshd.log"
    before = log.read_text().count("Accepted publickey")
    volume.do("verify", NAME)
    return log.read_text().count("Accepted publickey") - before


def test_a_lock_that_a_host_has_left(far: FarHost, volume: CliVolume, tmp_path: Path) -> None:
    """What a host has left that never comes back is broken on request alone."""
    volume.do("create", NAME)
    other = volume_at(far, tmp_path / "other")
    shutil.copy(volume.key, other.key)
    volume.do("before-backup", NAME)
    kept = (far.store / LOCK).read_bytes()
    volume.do("after-backup", NAME)
    assert not (far.store / LOCK).exists()
    (far.store / LOCK).write_bytes(kept)
    other.refusal(69, "trust", NAME)
    other.do("trust", NAME, "--break-lock")
    assert ["backup.img"] == os.listdir(far.store)
    other.remove()


def test_a_server_that_cannot_flush_is_refused(tmp_path: Path) -> None:
    """Nobody could say when a backup is stored; nothing is made there."""
    with far_host(tmp_path / "far", "Subsystem sftp internal-sftp -P fsync\n") as far:
        volume = volume_at(far, tmp_path / "house")
        assert "cannot flush (it has no fsync@openssh.com)" in volume.refusal(69, "create", NAME)
        assert nothing_stands(volume)
        assert [] == os.listdir(far.store)


@pytest.mark.slow
def test_the_volume_key_is_replaced(far: FarHost, volume: CliVolume) -> None:
    """The line breaks and everything here is killed meanwhile; nothing is lost, and the old key opens nothing."""
    volume.do("create", NAME)
    back_up(volume, "file")
    rekey_cases.check_far(volume, lambda: kill_all(far.serving("sshd")), lambda: in_it(volume, "file"))
    assert nothing_stands(volume)
    assert ["backup.img"] == os.listdir(far.store)


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

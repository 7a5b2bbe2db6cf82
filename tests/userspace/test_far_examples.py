"""examples/friend-ssh and examples/rented-sftp as their READMEs say, with a real sshd as the other machine."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.far_host import SSHD, FarHost
from support.lukshook_process import PATIENCE, Child
from support.store_examples import backup, replaced, text
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "socat", "nbdkit", "nbdfuse"),
    pytest.mark.needs("ssh", SSHD, "ssh-keygen", "rsync"),
]
#: For each example: the user in its ssh_config, what else stands there, how its URL begins, and the file of its key.
USED = {
    "friend-ssh": ("backup-of-a-friend", ("friend.example.org", "Port 22"), "ssh://friend/~/", "/etc/lukshook/friend"),
    "rented-sftp": ("User u123", ("u123.example.org", "Port 23"), "sftp://rented/~/", "/etc/lukshook/rented"),
}


@pytest.fixture(params=["friend-ssh", pytest.param("rented-sftp", marks=pytest.mark.slow)])
def example(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def far(example: str, tmp_path: Path) -> Iterator[FarHost]:
    """The friend's machine, with the example's part of its sshd_config for the user that the test is; or SFTP alone."""
    host = FarHost(tmp_path / "far")
    if example == "friend-ssh":
        host.settings = replaced(text(example, "sshd_config"), ("backup-of-a-friend\n ", f"{me()}\n "))
    else:
        host.settings = "Subsystem sftp internal-sftp\nForceCommand internal-sftp\n"
    host.prepare()
    host.start()
    try:
        yield host
    finally:
        host.stop()


@pytest.fixture
def volume(example: str, far: FarHost, tmp_path: Path) -> Iterator[CliVolume]:
    """The example's configuration with the test's own folders, engine and size."""
    volume = CliVolume(tmp_path / "house", "userspace")
    volume.prepare()
    ssh_config = volume.folder / "ssh_config"
    user, (name, port), url, key = USED[example]
    ssh_config.write_text(
        replaced(
            text(example, "ssh_config"),
            (name, "127.0.0.1"),
            (port, f"Port {far.port}"),
            (user, user.replace(user.rpartition(" ")[2], me())),
            (key, str(far.folder / "user")),
            ("/etc/lukshook/known_hosts", str(far.known)),
        )
    )
    volume.config.write_text(
        replaced(
            text(example, "config.toml"),
            (url, f"{url[:-3]}{far.store}/"),  # this machine's own home folder
            ("/etc/lukshook/ssh_config", str(ssh_config)),
            ("/mnt/backupspace", str(volume.mountpoint)),
            ("500GiB", "64MiB"),
            ("/etc/lukshook/offsite.key", str(volume.key)),
        )
        + 'engine = "userspace"\n'
    )
    yield from closing(volume)


def me() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def test_a_backup_and_a_restore(example: str, far: FarHost, volume: CliVolume, tmp_path: Path) -> None:
    """With the command of the service; the line breaks before rsync begins, and all is there."""
    home, held = tmp_path / "home", tmp_path / "held"
    home.mkdir()
    os.mkfifo(held)
    for number in range(20):
        (home / str(number)).write_bytes(os.urandom(100_000))
    volume.do("create", NAME)
    assert " fail " not in volume.do("check", NAME)

    job = volume.start(*held_at(held, on(example, volume, home)))
    go_on = waited_for(held, job)
    for pid in far.serving("sshd"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.close(go_on)
    done = job.wait()

    assert 0 == done.returncode, done.stderr
    assert volume.is_bare()
    volume.do("open", NAME, "--read-only")
    same = subprocess.run(["diff", "-r", home, volume.data / "home"], check=False)
    volume.do("close", NAME)
    assert 0 == same.returncode


def on(example: str, volume: CliVolume, home: Path) -> list[str]:
    """The command of the service, with this volume and another home."""
    words = backup(example)
    words[words.index("/home/")] = f"{home}/"
    return [word.replace("/mnt/backupspace", str(volume.mountpoint)) for word in words]


def held_at(pipe: Path, words: list[str]) -> list[str]:
    """The arguments of lukshook in *words*, whose command waits before it begins until *pipe* was opened and closed."""
    begin = words.index("--") + 1
    return [*words[1:begin], "sh", "-c", 'read _ <"$0"; exec "$@"', str(pipe), *words[begin:]]


def waited_for(pipe: Path, job: Child) -> int:
    """A descriptor that keeps the command of *job* waiting, once it waits."""
    found: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # nobody reads yet
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found) or job.poll()

    assert kernel.wait_until(is_read, PATIENCE)
    assert found, job.wait()
    return found[0]

"""A store at the other end of sshfs: no locks between hosts, no reserving, and a connection that breaks."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from lukshook.system import kernel
from support.volume import NAME, CliVolume, closing

SERVER = "/usr/lib/openssh/sftp-server"
pytestmark = pytest.mark.needs(
    *("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "sshfs", SERVER)
)


@define
class Far:
    """A folder that sshfs shows as *place*; its server is a process of ours, with a socket in the place of ssh."""

    folder: Path
    place: Path
    processes: list[subprocess.Popen[bytes]] = field(factory=list)

    def connect(self) -> None:
        """Show it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sshfs = ["sshfs", "-o", "passive", f":{self.folder}", str(self.place)]
            self.processes = [
                subprocess.Popen(sshfs, stdin=ours.fileno(), stdout=ours.fileno(), cwd="/"),
                subprocess.Popen([SERVER], stdin=theirs.fileno(), stdout=theirs.fileno(), cwd="/"),
            ]
        assert kernel.wait_until(self.place.is_mount, 30.0)

    def kill_server(self) -> None:
        """The connection breaks."""
        self.processes[1].kill()
        self.processes[1].wait(10)

    def disconnect(self) -> None:
        """Take it away, whatever is left of it."""
        subprocess.run(["fusermount3", "-u", "-z", self.place], check=False, capture_output=True)
        for process in self.processes:
            process.kill()
            process.wait(10)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """Something at the other end."""
    (tmp_path / "far").mkdir()
    (tmp_path / "house/store").mkdir(parents=True)
    far = Far(tmp_path / "far", tmp_path / "house/store")
    far.connect()
    yield far
    far.disconnect()


@pytest.fixture
def volume(far: Far, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume there, not created yet."""
    volume = CliVolume(tmp_path / "house", "userspace")
    volume.prepare()
    yield from closing(volume)


def back_up(volume: CliVolume, name: str) -> bytes:
    """A file in the volume; its content."""
    content = os.urandom(3_000_000)
    volume.do("before-backup", NAME)
    (volume.data / name).write_bytes(content)
    volume.do("after-backup", NAME)
    return content


def test_the_whole_life_of_a_volume(far: Far, volume: CliVolume) -> None:
    """It is made, written, grown, shrunk, gets a new key, and is read; what lies at the far end opens by itself."""
    volume.do("create", NAME)
    told = volume.lukshook("before-backup", NAME)
    volume.do("after-backup", NAME)
    assert (0, True) == (told.returncode, "its store is fuse.sshfs" in told.stderr)
    content = back_up(volume, "file")
    for words in (("resize", NAME, "96MiB"), ("resize", NAME, "80MiB", "--yes"), ("key", "rotate", NAME)):
        volume.do(*words)

    far.disconnect()
    volume.image.parent.rmdir()
    volume.image.parent.symlink_to(far.folder)
    volume.do("open", NAME, "--read-only")

    assert content == (volume.data / "file").read_bytes()
    volume.do("close", NAME)
    volume.image.parent.unlink()
    volume.image.parent.mkdir()


def test_a_connection_that_breaks_is_no_success(far: Far, volume: CliVolume) -> None:
    """after-backup says 74; once the store is back the next backup works, and what was safe is."""
    volume.do("create", NAME)
    content = back_up(volume, "file")
    volume.do("before-backup", NAME)
    (volume.data / "lost").write_bytes(os.urandom(3_000_000))
    far.kill_server()

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    far.disconnect()
    far.connect()
    after = back_up(volume, "after")
    volume.do("open", NAME, "--read-only")
    assert [content, after] == [(volume.data / name).read_bytes() for name in ("file", "after")]
    volume.do("close", NAME)
    far.disconnect()
    assert volume.is_bare()

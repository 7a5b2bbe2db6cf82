"""A store that runs full or fails, under the daemons of the userspace engine: never a success."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("qemu-storage-daemon", "nbdkit", "fusermount3")
MIB = 1 << 20


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a file system with 64 MiB; an ordinary user cannot mount one, so tests/run does."""
    given = os.environ.get("LUKSHOOK_SMALL_STORE")
    if given:
        yield Path(given)
        return
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def tight(template: CliVolume, tmp_path: Path, small: Path) -> Iterator[CliVolume]:
    """A volume whose store has 4 MiB left, until the file "filler" goes."""
    copied = template.copy_to(tmp_path)
    image = small / "backup.img"
    subprocess.run(["cp", "--sparse=always", copied.image, image], check=True)
    copied.configure(image=str(image), space="warn")
    free = os.statvfs(small)
    with (small / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 4 * MIB)
    yield from closing(copied)
    for left in small.iterdir():
        left.unlink()


def test_a_full_store_is_never_a_success(tight: CliVolume, small: Path) -> None:
    """74 although every write may have been taken; with room again the next backup is whole."""
    assert 0 == tight.lukshook("before-backup", NAME).returncode
    with contextlib.suppress(OSError):  # the backup tool may be told
        (tight.data / "file").write_bytes(os.urandom(16 * MIB))

    done = tight.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert tight.is_bare()
    (small / "filler").unlink()
    assert 0 == tight.lukshook("before-backup", NAME).returncode
    content = os.urandom(8 * MIB)
    (tight.data / "file").write_bytes(content)
    tight.do("after-backup", NAME)
    assert 0 == tight.lukshook("before-backup", NAME).returncode
    assert content == (tight.data / "file").read_bytes()
    tight.do("after-backup", NAME)


@pytest.mark.parametrize("kib", [3000, 4100, 4200, 5000, 6000])
def test_what_is_called_a_success_is_whole(tight: CliVolume, kib: int) -> None:
    """Around the size that is left, after-backup says 0 only if the file is there again, byte for byte."""
    assert 0 == tight.lukshook("before-backup", NAME).returncode
    content = os.urandom(kib << 10)
    told = False
    try:
        (tight.data / "file").write_bytes(content)
    except OSError:
        told = True

    done = tight.lukshook("after-backup", NAME)

    assert done.returncode in (0, 74), done.stderr
    if done.returncode == 0 and not told:
        assert 0 == tight.lukshook("open", NAME, "--read-only").returncode
        assert content == (tight.data / "file").read_bytes()
        tight.do("close", NAME)


@pytest.fixture
def broken(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is a file of a store where writing fails while the file "fail" is there."""
    yield from on_a_broken_store(template.copy_to(tmp_path))


@pytest.fixture(name="broken_btrfs")
def _broken_btrfs(tmp_path: Path) -> Iterator[CliVolume]:
    """The same with btrfs."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    made.configure(filesystem="btrfs", size="200MiB")
    done = made.lukshook("create", NAME)
    if done.returncode and "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs")
    assert 0 == done.returncode, done.stderr
    yield from on_a_broken_store(made, filesystem="btrfs", size="200MiB")


def on_a_broken_store(volume: CliVolume, **options: str) -> Iterator[CliVolume]:
    """For fixtures: the volume is opened through a daemon that can write nothing while the file "fail" is there."""
    folder = volume.folder
    shown, socket, pid_file = folder / "store/shown.img", folder / "nbd", folder / "store.pid"
    shown.touch(mode=0o600)
    errors = ("error-pwrite-rate=100%", f"error-file={folder}/fail")
    nbdkit = subprocess.Popen(
        ["nbdkit", "-f", "-U", socket, "--filter=error", "file", volume.image, *errors], stdin=subprocess.DEVNULL
    )
    assert kernel.wait_until(socket.exists, 20.0)
    server = f"driver=nbd,node-name=n,server.type=unix,server.path={socket}"
    export = f"type=fuse,id=e,node-name=n,mountpoint={shown},writable=on,allow-other=off"
    daemon = ["qemu-storage-daemon", "--daemonize", f"--pidfile={pid_file}"]
    subprocess.run([*daemon, f"--blockdev={server}", f"--export={export}"], check=True, stdin=subprocess.DEVNULL)
    volume.configure(image=str(shown), **options)
    yield from closing(volume)
    stop(int(pid_file.read_text()))
    nbdkit.terminate()
    nbdkit.wait(20)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    assert kernel.wait_until(lambda: kernel.started(pid) is None, 20.0)


def test_a_store_with_write_errors_is_never_a_success(broken: CliVolume) -> None:
    """74 although every write of the backup tool was taken.

    The store is good for no more: qemu 7.2 may overwrite what it is asked to write when it shows a node that does not
    copy it at once, as the LUKS driver of the volume itself does.
    """
    broken.do("before-backup", NAME)
    (broken.folder / "fail").touch()
    with contextlib.suppress(OSError):  # the backup tool may be told
        (broken.data / "file").write_bytes(os.urandom(8 * MIB))

    done = broken.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert not broken.is_open()


@pytest.mark.needs("mkfs.btrfs")
@pytest.mark.roots
def test_btrfs_that_has_stopped_writing_is_never_a_success(broken_btrfs: CliVolume) -> None:
    """The kernel makes it read-only, tells everybody else's sync, and has no error left for ours."""
    sync = ["sync", "--file-system", str(broken_btrfs.mountpoint)]
    broken_btrfs.do("before-backup", NAME)
    (broken_btrfs.data / "file").write_bytes(os.urandom(MIB))
    (broken_btrfs.folder / "fail").touch()
    assert 0 != subprocess.run(sync, check=False).returncode
    (broken_btrfs.folder / "fail").unlink()
    assert kernel.wait_until(lambda: subprocess.run(sync, check=False).returncode == 0, 20.0)

    done = broken_btrfs.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert not broken_btrfs.is_open()

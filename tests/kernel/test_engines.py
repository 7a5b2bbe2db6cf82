"""One image, every engine: what one has written, the others read."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lukshook
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "qemu-storage-daemon", "fusermount3")


#: Which engine creates the volume; the others open it.
ENGINE = "userspace"


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that was created, and is closed."""
    assert Path("/dev/fuse").exists()
    yield from closing(template.copy_to(tmp_path))


def write(volume: CliVolume, engine: str, name: str) -> bytes:
    """A backup of one file by an engine; its content."""
    content = os.urandom(3 << 20)
    volume.configure(engine=engine)
    volume.do("before-backup", NAME)
    assert (engine == "kernel") == bool(volume.mappings())
    (volume.data / name).write_bytes(content)
    volume.do("after-backup", NAME)
    assert volume.is_bare()
    return content


def read(volume: CliVolume, engine: str, name: str) -> bytes:
    """What an engine finds in the file."""
    volume.configure(engine=engine)
    volume.do("open", NAME, "--read-only")
    content = (volume.data / name).read_bytes()
    volume.do("close", NAME)
    assert volume.is_bare()
    return content


def check(volume: CliVolume) -> None:
    """`e2fsck -fn` finds nothing, without lukshook's help."""
    lines = f"""set -e
        base64 --decode {volume.key} | cryptsetup open --readonly --type luks1 --key-file=- {volume.image} checked
        trap 'cryptsetup close checked' EXIT
        e2fsck -fn /dev/mapper/checked"""
    done = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("writer", "reader"), [("userspace", "kernel"), ("kernel", "userspace")])
def test_what_one_engine_writes_the_other_reads(volume: CliVolume, writer: str, reader: str) -> None:
    """Both ways, and then the other engine goes on writing; the file system is clean each time."""
    first = write(volume, writer, "first")
    check(volume)
    assert first == read(volume, reader, "first")

    second = write(volume, reader, "second")
    check(volume)
    assert [first, second] == [read(volume, writer, name) for name in ("first", "second")]


NOBODY = 65534


@pytest.fixture
def user(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that an ordinary user has created, with fuse2fs."""
    for module in pkgutil.walk_packages(lukshook.__path__, "lukshook."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # where the project lies only root may be able to read
    device = Path("/dev/fuse")
    mode = device.stat().st_mode
    device.chmod(0o666)  # as udev makes it
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o711 == 0o700:
            folder.chmod(0o711)
    volume = CliVolume(tmp_path / "user", "userspace")
    volume.folder.mkdir()
    volume.prepare()
    give(volume, NOBODY)
    as_user(volume, "create", NAME)
    yield from closing(volume)
    device.chmod(mode)


def give(volume: CliVolume, owner: int) -> None:
    """Everything of the volume belongs to *owner* then."""
    for place in (volume.folder, *volume.folder.rglob("*")):
        os.lchown(place, owner, owner)


def become_nobody() -> None:
    """In the process of a lukshook, before it begins."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.path[:] = [place for place in sys.path if os.access(place, os.R_OK)]  # the interpreter may be root's own


def as_user(volume: CliVolume, *arguments: str) -> None:
    """lukshook of the ordinary user, which has to succeed."""
    done = volume.start(*arguments, prepare=become_nobody).wait()
    assert (0, "") == (done.returncode, done.stderr), (arguments, done)


def copy_as_user(volume: CliVolume, source: Path, target: Path) -> None:
    """A backup, or a restore: root cannot look into a user's mount."""
    as_user(volume, "before-backup", NAME)
    pid = os.fork()
    if not pid:
        become_nobody()
        try:
            shutil.copyfile(source, target)
            os._exit(0)
        finally:
            os._exit(1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    as_user(volume, "after-backup", NAME)


def taken_by_root(user: CliVolume, folder: Path) -> CliVolume:
    """The user's closed volume as root's: the same image, key and knowledge."""
    folder.mkdir()
    volume = user.copy_to(folder)
    give(volume, 0)
    return volume


def test_a_volume_of_an_ordinary_user_is_read_and_written_by_the_kernel(user: CliVolume, tmp_path: Path) -> None:
    """And the user reads what the kernel wrote into it; the file system is clean each time."""
    first = user.folder / "first"
    first.write_bytes(os.urandom(3 << 20))
    os.chown(first, NOBODY, NOBODY)
    copy_as_user(user, first, user.data / "first")

    volume = taken_by_root(user, tmp_path / "root")
    check(volume)
    assert first.read_bytes() == read(volume, "kernel", "first")
    second = write(volume, "kernel", "second")
    check(volume)

    shutil.copyfile(volume.image, user.image)
    for name in ("first", "second"):
        copy_as_user(user, user.data / name, user.folder / f"{name} again")
    assert [first.read_bytes(), second] == [
        (user.folder / f"{name} again").read_bytes() for name in ("first", "second")
    ]
    check(taken_by_root(user, tmp_path / "again"))


def test_a_volume_that_is_open_with_one_engine_is_not_opened_with_the_other(volume: CliVolume) -> None:
    """The second before joins the first, whatever the configuration says meanwhile."""
    volume.do("before-backup", NAME)
    volume.configure(engine="kernel")
    volume.do("before-backup", NAME)
    assert [] == volume.mappings()

    volume.do("after-backup", NAME)
    assert volume.is_bare()

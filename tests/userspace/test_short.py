"""An image that is not as long as its file system needs: refused by everything, whoever we are, never grown over."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.filesystems import ext4_repair
from lukshook.system import kernel
from support import short_image
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
ROOT = os.geteuid() == 0
#: An ordinary user's fuse2fs mounts ext4 alone.
KINDS = {"ext4": "64MiB", **({"xfs": "336MiB", "btrfs": "144MiB"} if ROOT else {})}


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume of one kind of file system that was created once."""
    folder = tmp_path_factory.mktemp(request.param)
    yield from created(folder, "userspace", size=KINDS[request.param], filesystem=request.param)


@pytest.fixture
def copy(of_kind: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that is closed."""
    yield from copied(of_kind, tmp_path)


@pytest.mark.parametrize(("of_kind", "end"), short_image.pairs(KINDS, short_image.SHORTER), indirect=["of_kind"])
def test_a_shorter_image_is_refused(copy: CliVolume, end: str) -> None:
    """65 with one line from whatever looks, also where 75 was asked for; resize does not cover the traces."""
    offset = short_image.offset_of(copy)

    short_image.check_refused(copy, offset, short_image.SHORTER[end](offset, copy.image.stat().st_size))


@pytest.mark.parametrize(("of_kind", "more"), short_image.pairs(KINDS, short_image.LONGER), indirect=["of_kind"])
def test_a_longer_image_is_no_alarm(copy: CliVolume, more: str) -> None:
    """What a store adds at the end is not used."""
    short_image.check_no_alarm(copy, short_image.LONGER[more])


def test_a_host_that_has_never_seen_the_size_sees_it_when_it_opens(copy: CliVolume) -> None:
    """An older lukshook wrote the state: `check` cannot tell, an opening can."""
    short_image.forget_extent(copy)
    os.truncate(copy.image, copy.image.stat().st_size - short_image.MIB)

    assert 0 == copy.lukshook("check", NAME).returncode
    assert short_image.LINE in copy.refusal(65, "before-backup", NAME, "--soft")


def test_what_is_known_follows_each_change_of_size(volume: CliVolume) -> None:
    """Growing, shrinking, shrinking as another configuration, trusting: `check` is content, and sees a byte less."""
    for command in (("resize", NAME, "96MiB"), ("resize", NAME, "80MiB", "--yes"), ("trust", NAME)):
        volume.do(*command)
        assert (0, None) == (volume.lukshook("check", NAME).returncode, short_image.facts(volume)["problem"]), command
        length = volume.image.stat().st_size
        os.truncate(volume.image, length - 1)
        assert 65 == volume.lukshook("check", NAME).returncode, command
        os.truncate(volume.image, length)


def test_a_host_learns_of_shrinking_by_another(volume: CliVolume) -> None:
    """Until it opens the volume it can but take it for a loss; then it knows."""
    volume.do("lukshook-resize", str(volume.image), "48MiB", "--key", f"file:{volume.key}", "--yes")
    assert "another host shrank it" in volume.lukshook("check", NAME).stdout

    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)

    assert (0, None) == (volume.lukshook("check", NAME).returncode, short_image.facts(volume)["problem"])


MAKE = {"a file": Path.touch, "a pipe": os.mkfifo, "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)}


@pytest.mark.parametrize("what", MAKE)
@pytest.mark.parametrize("command", ["before-backup", "trust", "run"])
def test_what_is_no_folder_in_the_place_of_the_data_folder_is_refused(
    volume: CliVolume, what: str, command: str
) -> None:
    """A backup cannot be written there, and what a FIFO does with it nobody knows."""
    volume.do("before-backup", NAME)
    volume.data.rmdir()
    MAKE[what](volume.data)
    volume.do("after-backup", NAME)

    assert "is not a folder" in volume.refusal(65, command, NAME, *(("--", "true") if command == "run" else ()))
    assert volume.is_bare()


def damage(volume: CliVolume, work: Callable[[Path], object]) -> None:
    """Let *work* change the content of a closed volume; lukshook has it open and is told nothing."""
    volume.do("open", NAME)
    plain = volume.run_folder / f"{NAME}.plain"
    subprocess.run([*(("umount",) if ROOT else ("fusermount3", "-u")), volume.mountpoint], check=True)
    found = plain.stat()
    assert kernel.wait_until(lambda: not kernel.processes_with("fuse2fs", found.st_dev, found.st_ino), 60)
    work(plain)
    volume.lukshook("close", NAME)


def zero_metadata(plain: Path) -> None:
    """Everything up to 32 MiB but the super blocks: descriptors of ext4, the root folder of xfs, the trees of btrfs."""
    descriptor = os.open(plain, os.O_RDWR)
    try:
        for start, end in ((short_image.BLOCK, 0x10000), (0x11000, 32 * short_image.MIB)):
            os.pwrite(descriptor, bytes(end - start), start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def zero_root(plain: Path) -> None:
    """The inode of the root folder of ext4, whose super block stays clean."""
    tool = ["debugfs", "-w", "-R", "clri <2>", str(plain)]
    subprocess.run(tool, check=True, capture_output=True)


DAMAGES = [
    ("ext4", zero_root),
    ("ext4", zero_metadata),
    *([("xfs", zero_metadata)] if ROOT else []),  # btrfs is checked before every mount
]


@pytest.mark.parametrize(("of_kind", "work"), DAMAGES, indirect=["of_kind"])
def test_damage_under_a_clean_super_block_is_refused_at_the_first_opening(
    copy: CliVolume, work: Callable[[Path], object]
) -> None:
    """Nothing is checked before mounting then: 65 all the same, and 75 never."""
    damage(copy, work)

    assert "damaged" in copy.refusal(65, "before-backup", NAME, "--soft")
    assert copy.is_bare()


def test_a_journal_that_makes_the_file_system_larger_than_the_image_is_refused(volume: CliVolume) -> None:
    """The super block says that it fits; what is replayed says that it does not."""
    before = volume.image.stat().st_size

    def grow_in_the_journal(plain: Path) -> None:
        small = plain.stat().st_size // short_image.BLOCK
        replayed_larger(plain, small, small + 2048)

    damage(volume, grow_in_the_journal)
    short_image.forget_extent(volume)

    assert short_image.LINE in volume.refusal(65, "resize", NAME, "+64MiB")
    assert before == volume.image.stat().st_size
    assert short_image.LINE in volume.refusal(65, "before-backup", NAME, "--soft")


def replayed_larger(plain: Path, small: int, large: int) -> None:
    """Put a super block with *large* blocks into the journal of the ext4 in *plain*, which has *small*."""
    fresh, script = (plain.with_name(name) for name in ("fresh", "script"))
    with plain.open("rb") as file:
        block = bytearray(file.read(short_image.BLOCK))
    assert small == int.from_bytes(block[1028:1032], "little")
    block[1028:1032] = large.to_bytes(4, "little")
    block[1024 + 0x3FC : 2048] = ext4_repair._crc32c(bytes(block[1024 : 1024 + 0x3FC])).to_bytes(4, "little")
    fresh.write_bytes(block)
    script.write_text(f"jo -c\njw -b 0 {fresh}\njc\n")
    subprocess.run(["debugfs", "-w", "-f", script, plain], check=True, capture_output=True)

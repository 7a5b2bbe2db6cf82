"""An image that is not as long as its file system needs: refused by everything, whoever we are, and never grown over."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import shortness

from engine import NAME, Bench, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
ROOT = os.geteuid() == 0
#: An ordinary user's fuse2fs mounts ext4 alone.
KINDS = {"ext4": "64MiB", **({"xfs": "336MiB", "btrfs": "144MiB"} if ROOT else {})}


@pytest.fixture(scope="module", params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume of one kind of file system that was created once."""
    bench = Bench(tmp_path_factory.mktemp(request.param), "userspace")
    bench.prepare()
    bench.configure(size=KINDS[request.param], filesystem=request.param)
    bench.do("create", NAME)
    yield bench
    bench.remove()


@pytest.fixture
def copy(volume: Bench, tmp_path: Path) -> Iterator[Bench]:
    """A volume that is closed."""
    other = volume.copy_to(tmp_path)
    other.config.write_text(volume.config.read_text().replace(str(volume.folder), str(tmp_path)))
    yield from closing(other)


@pytest.mark.parametrize("end", shortness.SHORTER)
def test_a_shorter_image_is_refused(copy: Bench, end: str) -> None:
    """65 with one line from whatever looks, also where 75 was asked for; resize does not cover the traces."""
    offset = shortness.offset_of(copy)

    shortness.see_refused(copy, offset, shortness.SHORTER[end](offset, copy.image.stat().st_size))


@pytest.mark.parametrize("more", shortness.LONGER)
def test_a_longer_image_is_no_alarm(copy: Bench, more: str) -> None:
    """What a store adds at the end is not used."""
    shortness.see_no_alarm(copy, shortness.LONGER[more])


def test_a_host_that_has_never_seen_the_size_sees_it_when_it_opens(copy: Bench) -> None:
    """An older lukshook wrote the state: `check` cannot tell, an opening can."""
    shortness.forget_extent(copy)
    os.truncate(copy.image, copy.image.stat().st_size - shortness.MIB)

    assert 0 == copy.lukshook("check", NAME).returncode
    assert shortness.LINE in copy.refusal(65, "before-backup", NAME, "--soft")


def test_what_is_known_follows_each_change_of_size(bench: Bench) -> None:
    """Growing, shrinking, shrinking as another configuration, trusting: `check` is content, and sees a byte less."""
    for command in (("resize", NAME, "96MiB"), ("resize", NAME, "80MiB", "--yes"), ("trust", NAME)):
        bench.do(*command)
        assert (0, None) == (bench.lukshook("check", NAME).returncode, shortness.facts(bench)["problem"]), command
        length = bench.image.stat().st_size
        os.truncate(bench.image, length - 1)
        assert 65 == bench.lukshook("check", NAME).returncode, command
        os.truncate(bench.image, length)


def test_a_host_learns_of_shrinking_by_another(bench: Bench) -> None:
    """Until it opens the volume it can but take it for a loss; then it knows."""
    bench.do("lukshook-resize", str(bench.image), "48MiB", "--key", f"file:{bench.key}", "--yes")
    assert "another host has shrunk it" in bench.lukshook("check", NAME).stdout

    bench.do("before-backup", NAME)
    bench.do("after-backup", NAME)

    assert (0, None) == (bench.lukshook("check", NAME).returncode, shortness.facts(bench)["problem"])


def plain(bench: Bench, *argv: str) -> None:
    """Run a tool of e2fsprogs on the content of a closed volume; it may exit with anything."""
    bench.do("open", NAME)
    subprocess.run([*(("umount",) if ROOT else ("fusermount3", "-u")), bench.mountpoint], check=True)
    subprocess.run([*argv, bench.run_folder / f"{NAME}.plain"], check=False, capture_output=True)
    bench.lukshook("close", NAME)


MAKE = {"a file": Path.touch, "a pipe": os.mkfifo, "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)}


@pytest.mark.parametrize("what", MAKE)
@pytest.mark.parametrize("command", ["before-backup", "trust", "run"])
def test_what_is_no_folder_in_the_place_of_the_data_folder_is_refused(bench: Bench, what: str, command: str) -> None:
    """A backup cannot be written there, and what a FIFO does with it nobody knows."""
    bench.do("before-backup", NAME)
    bench.data.rmdir()
    MAKE[what](bench.data)
    bench.do("after-backup", NAME)

    assert "is not a folder" in bench.refusal(65, command, NAME, *(("--", "true") if command == "run" else ()))
    assert bench.is_bare()


def test_a_damaged_root_folder_is_refused_at_the_first_opening(bench: Bench) -> None:
    """The super block says "clean", so nothing was checked before mounting: 65 all the same, and 75 never."""
    plain(bench, "debugfs", "-w", "-R", "clri <2>")
    bench.lukshook("close", NAME)
    plain_state_is_clean = True
    assert plain_state_is_clean

    assert "damaged" in bench.refusal(65, "before-backup", NAME, "--soft")
    assert bench.is_bare()

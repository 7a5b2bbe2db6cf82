"""Random operations on files, in the volume and in a folder beside it: both have to be the same at every look."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field

from support.volume import NAME, CliVolume, closing
from userspace.test_kills import check_clean

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "e2fsck")
_LIBRARY = ctypes.CDLL(None, use_errno=True)
RESERVE, RESERVE_BEYOND, PUNCH = 0, 1, 3  # fallocate(2)
PLACES = (9_000, 120_000, 3_000_000)
LENGTHS = (3, 300, 4_096, 30_000)


@define
class Twins:
    """Two folders to which the same is done. *open*: pairs of descriptors of one file."""

    folders: tuple[Path, Path]
    chance: random.Random
    names: list[str] = field(factory=list)
    open: list[list[int]] = field(factory=list)
    made: int = 0

    def both(self, work: Callable[[Path], object]) -> None:
        """Do it in both; what comes of it, an error as well, is the same."""
        seen: list[object] = []
        for folder in self.folders:
            try:
                seen.append(work(folder))
            except OSError as error:
                seen.append(error.errno)
        assert seen[0] == seen[1]

    def step(self) -> None:
        """One operation."""
        works = {self.make: 16, self.overwrite: 30, self.truncate: 9, self.reserve: 6, self.punch: 10, self.link: 6}
        works |= {self.remove: 9, self.rename: 6, self.read: 10, self.keep_open: 4, self.use_open: 10}
        work = self.chance.choices(list(works), list(works.values()))[0] if self.names else self.make
        work()

    def new_name(self) -> str:
        self.made += 1
        return f"{self.chance.choice(('', 'a/', 'b/', 'a/deep/'))}{self.made}"

    def any_name(self) -> str:
        return self.chance.choice(self.names)

    def make(self) -> None:
        name, content = self.new_name(), self.chance.randbytes(self.chance.choice((0, 10, 5_000, 70_000)))
        self.both(lambda folder: (folder / name).write_bytes(content))
        self.names.append(name)

    def overwrite(self) -> None:
        name, (place, content) = self.any_name(), self._content()

        def work(folder: Path) -> None:
            with (folder / name).open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), content, place)

        self.both(work)

    def truncate(self) -> None:
        name, length = self.any_name(), self._place()
        self.both(lambda folder: os.truncate(folder / name, length))

    def reserve(self) -> None:
        self._allocate(self.chance.choice((RESERVE, RESERVE_BEYOND)))

    def punch(self) -> None:
        self._allocate(PUNCH)

    def _allocate(self, mode: int) -> None:
        name, place, length = self.any_name(), self._place(), self.chance.randrange(1, 900_000)

        def work(folder: Path) -> int:
            with (folder / name).open("r+b", buffering=0) as file:
                return int(_LIBRARY.fallocate(file.fileno(), mode, ctypes.c_long(place), ctypes.c_long(length)))

        self.both(work)

    def link(self) -> None:
        name, other = self.any_name(), self.new_name()
        self.both(lambda folder: os.link(folder / name, folder / other))
        self.names.append(other)

    def remove(self) -> None:
        name = self.any_name()
        self.both(lambda folder: (folder / name).unlink())
        self.names.remove(name)

    def rename(self) -> None:
        """Also over another file."""
        name, other = self.any_name(), self.chance.choice([*self.names, self.new_name()])
        self.both(lambda folder: bool((folder / name).rename(folder / other)))
        if name != other:
            self.names = [left for left in self.names if left not in (name, other)] + [other]

    def read(self) -> None:
        name = self.any_name()
        self.both(lambda folder: (folder / name).read_bytes())

    def keep_open(self) -> None:
        name = self.any_name()
        self.open.append([os.open(folder / name, os.O_RDWR) for folder in self.folders])
        if len(self.open) > 8:
            self.close(self.open.pop(0))

    def use_open(self) -> None:
        """Write through one that was kept open, whatever became of its name, and read it."""
        if self.open:
            pair, (place, content) = self.chance.choice(self.open), self._content()
            for descriptor in pair:
                os.pwrite(descriptor, content, place)
            ours, theirs = (os.pread(descriptor, 4_000_000, 0) for descriptor in pair)
            assert ours == theirs

    def close(self, pair: list[int]) -> None:
        for descriptor in pair:
            os.close(descriptor)

    def _place(self) -> int:
        return self.chance.randrange(self.chance.choice(PLACES))

    def _content(self) -> tuple[int, bytes]:
        return self._place(), self.chance.randbytes(self.chance.choice(LENGTHS))


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume in which the files have room."""
    volume = CliVolume(tmp_path / "house", "userspace")
    volume.folder.mkdir()
    volume.prepare()
    volume.configure(size="600MiB")
    volume.do("create", NAME)
    yield from closing(volume)


def test_it_is_as_any_file_system(
    roomy: CliVolume, tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """A backup's files are the same as beside it while they are written, and at the next opening."""
    beside = tmp_path / "beside"
    for _ in range(rounds(1, 10)):
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "a/deep").mkdir(parents=True)
        (beside / "b").mkdir()
        roomy.do("before-backup", NAME)
        shutil.rmtree(roomy.data / "files", ignore_errors=True)
        shutil.copytree(beside, roomy.data / "files")
        twins = Twins((roomy.data / "files", beside), chance)
        for _ in range(3000):
            twins.step()
        for pair in twins.open:
            twins.close(pair)
        roomy.do("after-backup", NAME)
        check_clean(roomy)
        roomy.do("open", NAME, "--read-only")
        for name in twins.names:
            assert (roomy.data / "files" / name).read_bytes() == (beside / name).read_bytes(), name
        roomy.do("close", NAME)


def test_what_is_written_through_one_hard_link_is_read_through_the_other(volume: CliVolume) -> None:
    """Also where the other was read before."""
    volume.do("before-backup", NAME)
    one, other = volume.data / "one", volume.data / "other"
    one.write_bytes(b"old" * 1000)
    os.link(one, other)
    assert b"old" * 1000 == other.read_bytes()

    with one.open("r+b") as file:
        file.write(b"new")

    assert b"newold" == other.read_bytes()[:6]
    volume.do("after-backup", NAME)

"""What an image takes from its store, and what the store has room for."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import LukshookError, Unavailable
from lukshook.store import room
from lukshook.store.image_file import ImageFile, open_image
from lukshook.store.room import Room

MIB = 1 << 20
GIB = 1 << 30
STORE = Room(length=10 * GIB, allocated=10 * GIB, free=90 * GIB, total=100 * GIB)


def test_space_on_the_store_is_asked_for_before_anything_changes() -> None:
    """What is needed for growing beside a reserve; a sparse image needs its holes as well; shrinking needs none."""
    full = evolve(STORE, free=5 * GIB)
    full.check(15 * GIB - 16 * MIB, sparse=False)
    evolve(full, free=0).check(5 * GIB, sparse=False)
    with pytest.raises(Unavailable, match="needs 5GiB, and 16MiB must stay free"):
        full.check(15 * GIB, sparse=False)
    with pytest.raises(Unavailable):
        evolve(full, allocated=5 * GIB).check(11 * GIB, sparse=True)
    with pytest.raises(Unavailable, match="the device has 10GiB, not 11GiB"):
        evolve(full, free=None, total=None).check(11 * GIB, sparse=False)


def test_a_sparse_image_may_still_take_its_holes() -> None:
    """More than the store has is too much; a block device takes nothing."""
    sparse = evolve(STORE, allocated=GIB)
    assert (9 * GIB, False) == (sparse.holes, sparse.may_run_out)
    assert evolve(sparse, free=9 * GIB - 1).may_run_out
    device = Room(10 * GIB, 0, None, None)
    assert (0, False) == (device.holes, device.may_run_out)


def test_an_image_is_measured_without_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as through its descriptor; only O_PATH is used, which needs no permission and has no side effects."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    os.truncate(image, 5 * MIB)
    with open_image(image, writable=True) as there:
        wanted = room.of(there)
    assert (5 * MIB, image.stat().st_blocks * 512) == (wanted.length, wanted.allocated)
    opened, flags = os.open, []

    def seen(path: str, how: int, *more: int, **options: int) -> int:
        flags.append(how)
        return opened(path, how, *more, **options)

    monkeypatch.setattr(os, "open", seen)
    found = room.at(image)
    assert (wanted.length, wanted.allocated, wanted.total) == (found.length, found.allocated, found.total)
    assert flags
    assert all(how & os.O_PATH for how in flags)


@pytest.mark.parametrize("lay", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_image_is_not_measured(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    """Nobody waits for a pipe, and nothing is measured through a link."""
    lay(tmp_path / "image")
    with pytest.raises(LukshookError):
        room.at(tmp_path / "image")


def test_a_new_image_has_the_room_of_its_folder(tmp_path: Path) -> None:
    """As the kernel has it for that folder."""
    found, store = room.of_new(tmp_path / "image"), os.statvfs(tmp_path)
    assert (0, 0, store.f_blocks * store.f_frsize) == (found.length, found.allocated, found.total)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[ImageFile]:
    """An image of a MiB, open for writing."""
    (tmp_path / "image").write_bytes(bytes(MIB))
    with open_image(tmp_path / "image", writable=True) as there:
        yield there


@pytest.fixture
def limited() -> Iterator[None]:
    """This process may make no file of more than 8 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("limited")
def test_a_limit_of_the_process_is_met_before_anything_changes(image: ImageFile) -> None:
    """ulimit -f: what goes beyond it would be ended by SIGXFSZ."""
    room.check_length(image, 8 * MIB)
    with pytest.raises(Unavailable, match=r"only files of up to 8MiB may be written, and the image .* needs 9MiB"):
        room.check_length(image, 9 * MIB)


def test_a_file_larger_than_the_store_has_any_is_refused(image: ImageFile) -> None:
    """No file of any file system is longer than a signed number of 64 bits."""
    with pytest.raises(Unavailable, match="allows no file of that size"):
        room.check_length(image, 1 << 63)
    assert MIB == image.size


def test_a_store_with_small_files_is_known_by_seeking(image: ImageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """lseek(2) fails with EINVAL beyond the largest file of the store, as on FAT beyond 4 GiB."""
    seek = os.lseek

    def limited_seek(descriptor: int, to: int, whence: int) -> int:
        if to >= 4 * GIB:
            raise OSError(22, os.strerror(22))
        return seek(descriptor, to, whence)

    monkeypatch.setattr(os, "lseek", limited_seek)
    room.check_length(image, 4 * GIB - 1)
    with pytest.raises(Unavailable, match="cannot have 4GiB"):
        room.check_length(image, 4 * GIB)

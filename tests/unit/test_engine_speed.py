"""What the userspace engine is started with for the sake of speed, and what is never given up for it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import cast

import pytest
from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.layers import loop, loop_device, qemu
from lukshook.layers.base import Opening, Trust
from lukshook.store import liveness
from lukshook.store.image_file import open_image
from lukshook.system.command import Command
from lukshook.system.secret import Secret
from support.fake_runner import FakeRunner


def opening(runner: FakeRunner) -> Opening:
    """Of a volume that nobody has to trust, because it is not opened."""
    return Opening("offsite", runner, Path("/run/lukshook"), lambda: Secret(b""), "cat key", cast(Trust, None))


def attached(file: int, *_: object) -> loop_device.Attached:
    """Takes the place of attaching a device."""
    return loop_device.Attached("/dev/loop7", os.dup(file))


def daemon() -> Command:
    """The command that starts the daemon."""
    _, command = qemu.Spec().open_commands("/store/offsite.img", opening(FakeRunner()))
    return command


def test_the_daemon_keeps_its_memory() -> None:
    """Both limits have to be there: one alone leaves the way open on which the other gives memory back."""
    tunables = dict(part.split("=") for part in daemon().environment["GLIBC_TUNABLES"].split(":"))

    assert {"glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold"} == set(tunables)
    # The largest buffer is 1 MiB, and the kernel has 12 requests under way (fs/fuse: max_background), two buffers each.
    assert int(tunables["glibc.malloc.mmap_threshold"]) > 1 << 20
    assert int(tunables["glibc.malloc.trim_threshold"]) > 2 * 12 << 20


def test_the_image_is_written_past_the_page_cache_and_flushed() -> None:
    """No cache mode in which a flush of the file system ends in the daemon."""
    (image,) = (word for word in daemon().argv if word.startswith("--blockdev=driver=file"))

    assert "cache.direct=on" in image.split(",")
    assert "no-flush" not in " ".join(daemon().argv)


def test_a_loop_device_reads_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """768 KiB, in sectors, by the ioctl: /sys is read-only in a container."""
    asked: list[tuple[str, int, object]] = []

    def note(node: str, request: int, argument: object) -> int:
        asked.append((node, request, argument))
        return 0

    monkeypatch.setattr(loop_device, "ioctl", note)
    monkeypatch.setattr(loop_device, "attach", attached)
    image = tmp_path / "image"
    image.touch()

    with open_image(image, writable=True) as there:
        loop.Spec().open(str(image), evolve(opening(FakeRunner()), image=there))

    assert ("/dev/loop7", 0x1262, 1536) == asked[-1]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_file_is_opened_for_direct_io_where_the_store_wants_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    """And it is that open file that has the lock: on SMB another one could not even read."""
    got: list[tuple[bool, bool]] = []

    def look(file: int, *_: object) -> loop_device.Attached:
        got.append((bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT), bool(fcntl.fcntl(file, fcntl.F_GETFD))))
        with pytest.raises(BlockingIOError), image.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return attached(file)

    monkeypatch.setattr(liveness, "is_direct_when_opened", lambda image: wanted)
    monkeypatch.setattr(loop_device, "ioctl", lambda node, request, argument: 0)
    monkeypatch.setattr(loop_device, "attach", look)
    image = tmp_path / "image"
    image.touch()

    with open_image(image, writable=True) as there:
        loop.Spec().open(str(image), evolve(opening(FakeRunner()), image=there))

    assert [(wanted, True)] == got


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EACCES])
def test_a_lock_of_another_host_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int) -> None:
    """Also as SMB reports it, which passes on how its server refuses."""

    def refuse(file: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    image = tmp_path / "image"
    image.touch()

    with open_image(image, writable=True) as there:
        assert there.is_locked()
        with pytest.raises(Unavailable, match="it is locked"):
            loop.Spec().open(str(image), evolve(opening(FakeRunner()), image=there))


def test_a_kernel_that_refuses_to_read_ahead_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It costs speed, not the backup."""

    def refuse(node: str, request: int, argument: object) -> int:
        if request == 0x1262:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return 0

    monkeypatch.setattr(loop_device, "ioctl", refuse)
    monkeypatch.setattr(loop_device, "attach", attached)
    image, runner = tmp_path / "image", FakeRunner()
    image.touch()

    with open_image(image, writable=True) as there:
        handle = loop.Spec().open(str(image), evolve(opening(runner), image=there))

    assert "/dev/loop7" == handle.path
    assert "blockdev --setra 1536 /dev/loop7: Permission denied" in runner.notes

"""A store in user space whose daemon can be stopped, as a hung server is, or killed, as a lost connection is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from lukshook.store import liveness
from lukshook.system import kernel
from support.lukshook_process import Done
from support.volume import NAME, CliVolume, closing

MIB = 1 << 20
LIMIT = 0.5


def hasty() -> None:
    """Give a store up soon: for one that hangs already, because a live one may take that long on a loaded machine."""
    liveness.SECONDS = LIMIT


def less_patient() -> None:
    """Give a store up sooner, but not before a live one has had time enough."""
    liveness.SECONDS = 10 * LIMIT


@frozen
class Hanging:
    """A volume whose image lies on ext4 in user space, mounted at *store* by the process *daemon*."""

    volume: CliVolume
    store: Path
    daemon: int

    @contextmanager
    def hung(self) -> Iterator[None]:
        """While its daemon does nothing."""
        with self.resumed():
            os.kill(self.daemon, signal.SIGSTOP)
            yield

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Whoever stops the daemon meanwhile: it goes on afterwards."""
        try:
            yield
        finally:
            os.kill(self.daemon, signal.SIGCONT)

    def lukshook(self, *arguments: str, prepare: Callable[[], None] = hasty) -> tuple[Done, float]:
        """How lukshook ends, and after how many seconds; it may not hang."""
        begun = time.monotonic()
        done = self.volume.start(*arguments, prepare=prepare).wait(30)
        return done, time.monotonic() - begun


def serve(folder: Path, device: Path) -> int:
    """Mount the ext4 in the file *device* on *folder* by a daemon of ours; its pid."""
    subprocess.run(["fuse2fs", "-o", "fakeroot", device, folder], check=True, stdin=subprocess.DEVNULL)
    found = device.stat()
    daemons = kernel.processes_with("fuse2fs", found.st_dev, found.st_ino)
    assert 1 == len(daemons)
    return daemons[0]


def make(device: Path) -> None:
    """An ext4 in a new file."""
    with device.open("wb") as file:
        file.truncate(160 * MIB)
    owner = f"root_owner={os.geteuid()}:{os.getegid()}"
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", owner, device], check=True)


def stop(pid: int) -> None:
    """End a daemon, and wait until it is gone."""
    os.kill(pid, signal.SIGTERM)
    assert kernel.wait_until(lambda: kernel.started(pid) is None, 20.0)


def unmount(folder: Path) -> None:
    subprocess.run([*(["fusermount3", "-u"] if os.geteuid() else ["umount"]), folder], check=True)


def on_hanging_store(template: CliVolume, store_folder: Path, volume_folder: Path) -> Iterator[Hanging]:
    """For fixtures: a copy of the volume *template* whose image lies on such a store."""
    folder, device = store_folder / "mounted", store_folder / "device"
    folder.mkdir()
    make(device)
    daemon = serve(folder, device)
    volume = template.copy_to(volume_folder)
    subprocess.run(["cp", "--sparse=always", volume.image, folder], check=True)
    volume.configure(image=str(folder / volume.image.name), space="warn")
    try:
        yield from (Hanging(volume, folder, daemon) for volume in closing(volume))
    finally:
        unmount(folder)
        assert kernel.wait_until(lambda: not kernel.processes_with("fuse2fs", *_numbers(device)), 20.0)


def _numbers(device: Path) -> tuple[int, int]:
    found = device.stat()
    return found.st_dev, found.st_ino


__all__ = ["LIMIT", "NAME", "Hanging", "hasty", "less_patient", "make", "on_hanging_store", "serve", "stop", "unmount"]

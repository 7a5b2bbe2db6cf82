"""What fits this machine, for a new volume: where its image can be, how large, and which backup tool is here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from lukshook import hosts, size
from lukshook.errors import LukshookError
from lukshook.store import liveness, room
from lukshook.system import kernel
from lukshook.system.command import Runner

#: Where disks and shares are mounted by hand, and for a user who is logged in.
_STORES = tuple(map(Path, ("/mnt", "/media", "/run/media", "/srv")))
_GIB = 1024**3


def image(name: str, runner: Runner, otherwise: Path) -> Path:
    """A new image on the mounted store with the most free space, or in the folder *otherwise*."""
    rooms = ((free, folder) for folder in _stores() if (free := _free(folder, runner)))
    _, folder = max(rooms, default=(0, otherwise))
    return folder / f"{name}.img"


def _stores() -> Iterator[Path]:
    """Mounted folders that this user can write to, which nothing is asked for yet."""
    for mount in kernel.mounts():
        target = Path(mount.target)
        if any(place in target.parents for place in _STORES) and "ro" not in mount.options:
            yield target


def _free(folder: Path, runner: Runner) -> int:
    """Bytes that are free on a store, 0 where it does not answer or is not for us."""
    try:
        liveness.probe(folder / "any", runner)
        return (room.of_new(folder / "any").free or 0) if os.access(folder, os.W_OK | os.X_OK) else 0
    except (LukshookError, OSError):
        return 0


def image_size(image: Path) -> str:
    """Half of what is free where the image will be, "" where that is too little or nobody knows."""
    try:
        half = (room.of_new(image).free or 0) // 2
    except (LukshookError, OSError):
        return ""
    unit = _GIB if half >= 2 * _GIB else 64 * size.ALIGNMENT
    return size.show(half - half % unit) if half >= unit else ""


@frozen
class Tools:
    """The backup tools of this machine: those that are *configured*, and those that are *installed* as programs."""

    configured: tuple[str, ...]
    installed: tuple[str, ...]

    @property
    def proposed(self) -> str:
        """The one whose lines are wanted; "" where that is a guess: an installed tool may serve other ends."""
        return self.configured[0] if len(self.configured) == 1 else ""


def tools(path: str, home: Path | None) -> Tools:
    """What is found in the folders of *path*, as in PATH, and in the usual places for configurations."""
    names = hosts.hosts()
    folders = [Path(folder) for folder in path.split(":") if folder]
    return Tools(
        tuple(name for name in names if any(hosts.files_of(name, home))),
        tuple(name for name in names if any(os.access(folder / name, os.X_OK) for folder in folders)),
    )

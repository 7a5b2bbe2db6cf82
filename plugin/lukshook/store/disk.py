"""The disk that an image lies on: where it is mounted, and the name that it keeps when it is plugged in again."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.system import kernel

_BY_UUID = Path("/dev/disk/by-uuid")


@frozen
class Disk:
    """*device*: by the UUID of its file system; *mountpoint*: where that is mounted now."""

    device: Path
    mountpoint: Path


def of(image: Path) -> Disk:
    """The disk of *image*, which has to be mounted. Raises `Unavailable` where the image lies on no disk of its own."""
    mount = kernel.mount_above(Path(os.path.realpath(image.parent)) / image.name)
    device = _by_uuid(mount.source) if mount else None
    if mount is None or device is None or mount.target == "/":
        raise Unavailable(
            f"the image {image} does not lie on a mounted disk of its own",
            hint="plug the disk in, mount it where the image is expected, and run the command again",
        )
    return Disk(device, Path(mount.target))


def _by_uuid(source: str) -> Path | None:
    """The link by UUID that leads to the device *source*."""
    node = os.path.realpath(source)
    try:
        links = sorted(_BY_UUID.iterdir())
    except OSError:
        return None
    return next((link for link in links if os.path.realpath(link) == node), None)

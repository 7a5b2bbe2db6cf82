"""Which file or device an image really is: behind loop devices and overlays, as the kernel knows them."""

from __future__ import annotations

import os
from pathlib import Path

from lukshook.errors import LukshookError
from lukshook.store.image_file import Identity, identity, look
from lukshook.system import kernel, loops

#: Of loop devices (devices.txt of the kernel).
_LOOP_MAJOR = 7


def origin(path: Path) -> Identity | None:
    """What the image at *path* shows, None where nothing is there."""
    try:
        return origin_of(Path(os.path.realpath(path)), identity(look(path)))
    except (OSError, LukshookError):
        return None


def origin_of(path: Path, opened: Identity) -> Identity | None:
    """The same of an image that is known as *opened*. Its place is looked at only where an overlay shows it."""
    below = _below_overlay(path)
    return _behind(opened) if below is None else origin(below)


def _behind(image: Identity) -> Identity:
    """The file behind a loop device; anything else is what it is."""
    backing = None
    if os.major(image.device) == _LOOP_MAJOR:
        backing = loops.backing(f"/dev/loop{os.minor(image.device)}")
    return image if backing is None else Identity(backing.device, backing.inode)


def _below_overlay(whole: Path) -> Path | None:
    """The file that an overlay shows at *whole*: that of the first layer that has it; None without an overlay."""
    mount = kernel.mount_above(whole)
    if mount is None or mount.kind != "overlay":
        return None
    inside = Path(mount.root.lstrip("/")) / whole.relative_to(mount.target)
    return next((file for layer in _layers(mount) if os.path.lexists(file := Path(layer) / inside)), None)


def _layers(mount: kernel.Mount) -> list[str]:
    """The folders of an overlay, the uppermost first (overlayfs.rst of the kernel)."""
    options = dict(kernel.unescaped(os.fsencode(option)).partition("=")[::2] for option in mount.common)
    upper = [options["upperdir"]] if options.get("upperdir") else []
    return upper + [layer for layer in options.get("lowerdir", "").split(":") if layer]

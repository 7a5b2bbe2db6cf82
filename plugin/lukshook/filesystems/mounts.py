"""Of which device a mount is: for some kinds of file system its number does not say that."""

from __future__ import annotations

from lukshook.filesystems.kinds import has_own_numbers
from lukshook.system import kernel


def lies_on(mount: kernel.Mount, device: str) -> bool:
    """Whether *mount* is of block device *device*; one that has a number of its own names the device."""
    if mount.number == device:
        return True
    try:
        return has_own_numbers(mount.kind) and kernel.number(mount.source) == device
    except OSError:
        return False


def shows_all(mount: kernel.Mount, device: str) -> bool:
    """Whether *mount* is one of *device* that its file system can be resized by; any subvolume will do."""
    return lies_on(mount, device) and (mount.root == "/" or has_own_numbers(mount.kind))

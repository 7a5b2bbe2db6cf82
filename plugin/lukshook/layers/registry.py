"""The layers, and the stacks of them that make an engine."""

from __future__ import annotations

from lukshook.layers import dmcrypt, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.layers.base import Layer, Opening, Trust

LAYERS: dict[str, Layer] = {layer.NAME: layer for layer in (image, loop, dmcrypt, qemu, filesystem, mount, fuse2fs)}

#: An engine is nothing but a stack, bottom first.
ENGINES: dict[str, tuple[str, ...]] = {
    "kernel": ("image", "loop", "dmcrypt", "filesystem", "mount"),
    "userspace": ("image", "qemu", "loop", "filesystem", "mount"),
    "rootless": ("image", "qemu", "filesystem", "fuse2fs"),
}

__all__ = ["ENGINES", "LAYERS", "Layer", "Opening", "Trust"]

"""The layers. A new one is a file in this package and its name here."""

from __future__ import annotations

from lukshook.layers import dmcrypt, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.layers.base import Layer, Opening, Trust

LAYERS: dict[str, Layer] = {layer.NAME: layer for layer in (image, loop, dmcrypt, qemu, filesystem, mount, fuse2fs)}

__all__ = ["LAYERS", "Layer", "Opening", "Trust"]

"""The layers, and the stacks of them that make an engine."""

from __future__ import annotations

from lukshook.layers import dmcrypt, filesystem, image, loop, mount
from lukshook.layers.base import Layer, Opening, Trust

LAYERS: dict[str, Layer] = {layer.NAME: layer for layer in (image, loop, dmcrypt, filesystem, mount)}

#: An engine is nothing but a stack, bottom first.
ENGINES: dict[str, tuple[str, ...]] = {
    "kernel": ("image", "loop", "dmcrypt", "filesystem", "mount"),
}

__all__ = ["ENGINES", "LAYERS", "Layer", "Opening", "Trust"]

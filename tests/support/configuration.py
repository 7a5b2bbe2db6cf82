"""The configuration of a volume and its key file, as every kind of volume in the tests writes them."""

from __future__ import annotations

import base64
import os
from pathlib import Path


def configuration(name: str, **values: object) -> str:
    """The text of a configuration with the volume *name*; a value that is None is left out."""
    lines = [f"{key} = {toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[volumes.{name}]", *lines, ""])


def toml(value: object) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_key(file: Path, key: bytes) -> None:
    """Put *key* into a new *file* that only its owner can read, in place of the one that may be there."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(base64.b64encode(key) + b"\n")

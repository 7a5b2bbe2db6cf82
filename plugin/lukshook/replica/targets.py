"""The kinds of targets, by how they are written: a path, or a URL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from lukshook.replica.local import LocalTarget
from lukshook.replica.target import Target


def open_target(text: str) -> AbstractContextManager[Target]:
    """The target that *text* names, open in a `with` block. Raises `Unavailable`, `Refused`, OSError."""
    return LocalTarget(Path(text))

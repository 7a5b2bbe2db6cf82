"""Tells the waiting user that the connection to a remote image is down, and when it is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lukshook.store.remote.kind import LOST
from lukshook.system import forked_call

#: Seconds until a command that waits says that the connection is down.
_LOOK_SECONDS = 1.0


@contextmanager
def said(folder: Path, url: str, patience: float, warn: Callable[[str], None]) -> Iterator[None]:
    """Say it while the block runs. *folder*: the private one of the image; *patience* in seconds."""
    with forked_call.beside(_changes(folder, url, patience, warn), _LOOK_SECONDS):
        yield


def _changes(folder: Path, url: str, patience: float, warn: Callable[[str], None]) -> Callable[[], None]:
    """What says in what way the connection has changed since the last call."""
    was_lost = False

    def tell() -> None:
        nonlocal was_lost
        is_lost = (folder / LOST).exists()
        if is_lost and not was_lost:
            warn(f"the connection to {url} is down; writing waits up to {patience:.0f} s")
        elif was_lost and not is_lost:
            warn(f"the connection to {url} is back")
        was_lost = is_lost

    return tell

"""What may have happened at the remote side since an image was attached, so that what was flushed may be lost."""

from __future__ import annotations

import time
from pathlib import Path

from lukshook.errors import LukshookError, Unavailable
from lukshook.store.remote.kind import LATE, UNFLUSHED, WRITTEN, Store
from lukshook.system import kernel
from lukshook.system.command import Runner

_ASK_AGAIN_SECONDS = 1.0


def since(store: Store, folder: Path, identity: str | None, patience: float, runner: Runner) -> str:
    """What has happened, or "".

    *folder*: the private one; *identity*: of the image then (`kind.Seen`), None where the note of it cannot be read.
    """
    if (folder / LATE).exists():
        return "may have got what a broken connection carried after what was written later"
    if (folder / UNFLUSHED).exists():
        return "had not flushed what it had got when a connection broke"
    if identity is None and (folder / WRITTEN).exists():
        return "may have restarted: the note of what it said before cannot be read"
    if not identity:
        return ""
    try:
        now = _identity_now(store, patience, runner)
    except LukshookError as error:
        return f"cannot be asked whether it has restarted: {error.message}"
    return "" if now == identity else store.changed


def _identity_now(store: Store, patience: float, runner: Runner) -> str:
    """A connection that is down now is waited for, as when writing. Raises as `Store.look`."""
    end = time.monotonic() + patience
    while True:
        try:
            return store.look(runner).identity
        except Unavailable:
            if time.monotonic() > end:
                raise
        kernel.wait_until(lambda: False, _ASK_AGAIN_SECONDS)

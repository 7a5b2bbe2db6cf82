"""`prompt`: typed on the terminal, which has to be there; never on standard input."""

from __future__ import annotations

import getpass
from pathlib import Path

from lukshook.errors import Denied
from lukshook.keys.key_sources import Asking, no_argument

check = no_argument
store = staged = replace = None


def obtain(argument: str, asking: Asking) -> bytes:
    """Ask on /dev/tty without echo."""
    try:
        with Path("/dev/tty").open():
            pass
    except OSError as error:
        raise Denied(
            f"the key of volume {asking.volume} is to be typed, and there is no terminal",
            hint="a job that runs alone needs another key source",
        ) from error
    try:
        return getpass.getpass(f"Key of volume {asking.volume} (base64): ").strip().encode()
    except (EOFError, UnicodeError):  # the text of a UnicodeError has what was typed
        raise Denied(f"no key of volume {asking.volume} was typed", hint="44 characters of base64, and Enter") from None


def shown(argument: str) -> str:
    """Whoever pastes the line types it."""
    return "cat"

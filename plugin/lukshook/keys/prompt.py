"""`prompt`: typed on the terminal, which has to be there; never on standard input."""

from __future__ import annotations

import getpass
from pathlib import Path

from lukshook.errors import Denied
from lukshook.keys.key_sources import Asking, no_argument

check = no_argument
store = staged = replace = by_hand = None


def obtain(argument: str, asking: Asking) -> bytes:
    """Ask on /dev/tty without echo."""
    try:
        with Path("/dev/tty").open():
            pass
    except OSError as error:
        raise Denied(
            f"cannot prompt for the key of volume {asking.volume}: there is no terminal",
            hint="unattended jobs need a different key source",
        ) from error
    try:
        return getpass.getpass(f"Key of volume {asking.volume} (base64): ").strip().encode()
    except (EOFError, UnicodeError):  # the text of a UnicodeError has what was typed
        raise Denied(
            f"no key of volume {asking.volume} was entered", hint="44 characters of base64, and Enter"
        ) from None


def shown(argument: str) -> str:
    """The person who pastes the line types it."""
    return "cat"

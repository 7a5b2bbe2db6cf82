"""`stdin`: what is piped into us."""

from __future__ import annotations

import os

from lukshook.errors import Denied
from lukshook.keys.key_sources import Asking, drain, no_argument

check = no_argument
store = staged = replace = by_hand = None


def obtain(argument: str, asking: Asking) -> bytearray:
    """Read standard input to its end; a terminal is refused, because what is typed there would be shown."""
    if os.isatty(0):
        raise Denied(
            'key = "stdin" expects piped input, but stdin is a terminal', hint='pipe the key in, or use key = "prompt"'
        )
    return drain(0, "stdin")


def shown(argument: str) -> str:
    """cat."""
    return "cat"

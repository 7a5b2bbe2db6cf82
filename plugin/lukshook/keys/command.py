"""`command:ARGV`: what a command prints, such as `pass show backup/offsite`."""

from __future__ import annotations

import shlex

from lukshook.keys.key_sources import MOST_BYTES, Asking
from lukshook.system.command import output_of

store = staged = replace = by_hand = None
#: Seconds for a password manager, which may have to ask its owner.
_SECONDS = 300.0


def check(argument: str) -> str:
    """It has to be splittable as a shell splits words; no shell is started."""
    try:
        return "" if shlex.split(argument) else "the command is missing"
    except ValueError as error:
        return str(error).lower()


def obtain(argument: str, asking: Asking) -> bytearray:
    """Run it with the caller's environment and take its standard output."""
    return output_of(shlex.split(argument), asking.environment, _SECONDS, MOST_BYTES)


def shown(argument: str) -> str:
    """The command itself."""
    return argument

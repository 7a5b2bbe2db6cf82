"""`fd:N`: a descriptor the caller opened for us."""

from __future__ import annotations

import re

from lukshook.keys.key_sources import Asking, drain

store = staged = replace = by_hand = None


def check(argument: str) -> str:
    """A number above standard error."""
    return "" if re.fullmatch("[0-9]{1,7}", argument) and int(argument) > 2 else "it has to be a number of 3 or more"


def obtain(argument: str, asking: Asking) -> bytearray:
    """Read to its end."""
    return drain(int(argument), f"fd:{argument}")


def shown(argument: str) -> str:
    """cat from that descriptor."""
    return f"cat <&{argument}"

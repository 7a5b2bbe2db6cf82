"""`env:NAME`: an environment variable. Every child of the host has it too, so this warns."""

from __future__ import annotations

import re

from lukshook.errors import Unavailable
from lukshook.keys.key_sources import Asking

store = staged = replace = by_hand = None


def check(argument: str) -> str:
    """A name a shell takes."""
    return "" if re.fullmatch(r"[A-Za-z_]\w*", argument) else "it is not the name of an environment variable"


def obtain(argument: str, asking: Asking) -> bytes:
    """The variable's value."""
    value = asking.environment.get(argument)
    if value is None:
        raise Unavailable(
            f"the environment variable {argument} is not set", hint="the program that starts lukshook must pass it on"
        )
    asking.warn(f"the key comes from the environment variable {argument}, which every process of the host inherits")
    return value.encode(errors="surrogateescape")


def shown(argument: str) -> str:
    """printenv."""
    return f"printenv {argument}"

"""The kinds of snapshot, by the name that the configuration uses. Each is imported when it is used."""

from __future__ import annotations

import importlib
from typing import cast

from lukshook.errors import BadConfiguration
from lukshook.snapshots.kind import Kind
from lukshook.system.text import is_one_line

KINDS = ("btrfs", "zfs", "lvm", "rbd", "command")


def named(name: str) -> Kind:
    """The kind of that name. Raises `BadConfiguration` where there is none."""
    if name not in KINDS:
        raise BadConfiguration(f"{name!a} is not a kind of snapshot", hint="one of: " + ", ".join(forms()))
    return cast(Kind, importlib.import_module(f"lukshook.snapshots.{name}"))


def forms() -> tuple[str, ...]:
    """How each kind is written."""
    found = ((name, named(name).ARGUMENT) for name in KINDS)
    return tuple(f"{name}:{argument}" if argument else name for name, argument in found)


def parse(text: str) -> tuple[str, str]:
    """The kind and argument of "btrfs", "command:/usr/local/bin/snap" and the like. Raises ValueError: what fits."""
    name, colon, argument = text.partition(":")
    if name not in KINDS or bool(colon) != bool(named(name).ARGUMENT) or not is_one_line(argument):
        raise ValueError("one of " + ", ".join(f'"{form}"' for form in forms()))
    fault = named(name).check(argument)
    if fault:
        raise ValueError(f"a kind of snapshot with its command: {fault}")
    return name, argument

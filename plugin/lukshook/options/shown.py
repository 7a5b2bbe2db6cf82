"""What a configuration says and leaves out: each option with its value and where that comes from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from lukshook.keys import key_sources
from lukshook.options.table import FILE_OPTIONS, OPTIONS, Option

#: A name within tables, such as ("volumes", "offsite", "image").
Address = tuple[str, ...]
#: Options of a channel that are a secret, unless they say where it is.
_SECRET = ("url", "token")
_SOURCE = re.compile(rf"({'|'.join(key_sources.SOURCES)}):(?!//)")


@frozen
class Shown:
    """One option: *value* as it is written, or as it could be; None for none. *line*: 0 where none is known.

    *origin*: "file" or "default".
    """

    value: Any
    origin: str
    line: int = 0


def of_file(table: Mapping[str, Any], lines: Mapping[Address, int]) -> dict[str, Shown]:
    """The options of the whole file in *table*."""
    return _shown(FILE_OPTIONS, table, (), lines)


def of_volume(name: str, table: Mapping[str, Any], lines: Mapping[Address, int]) -> dict[str, Shown]:
    """The options of the volume *name* in *table*, of which `config.parse` found nothing wrong."""
    return _shown(OPTIONS, table["volumes"][name], ("volumes", name), lines)


def of_channel(name: str, table: Mapping[str, Any], lines: Mapping[Address, int]) -> dict[str, Shown]:
    """What *table* says of a channel of `notify`; a channel has no other options than those of its kind."""
    at = ("notify", name)
    given = table["notify"][name]
    return {option: Shown(_safe(option, value), "file", lines.get((*at, option), 0)) for option, value in given.items()}


def _shown(
    options: Mapping[str, Option], table: Mapping[str, Any], at: Address, lines: Mapping[Address, int]
) -> dict[str, Shown]:
    return {
        name: Shown(_safe(name, table[name]), "file", lines.get((*at, name), 0))
        if name in table
        else Shown(option.default, "default")
        for name, option in options.items()
    }


def _safe(name: str, value: Any) -> Any:
    """*value* without what could be a secret: the arguments of a command that gives a key, and a URL or token."""
    if isinstance(value, dict):
        return {inner: _safe(inner, part) for inner, part in value.items()}
    if name in _SECRET:
        return _without_arguments(value) if _SOURCE.match(value) else "(not shown)"
    if name != "key":
        return value
    return [_without_arguments(one) for one in value] if isinstance(value, list) else _without_arguments(value)


def _without_arguments(source: str) -> str:
    """A key source as it may be shown."""
    command, blank, _ = source.partition(" ")
    return f"{command} ..." if blank and source.startswith("command:") else source


def lines(text: str) -> dict[Address, int]:
    """The line, from 1, at which each value in a TOML text begins, and the tables around it with their first value."""
    found: dict[Address, int] = {}
    header = ""
    for number, statement in _statements(text):
        if statement.lstrip(" \t").startswith("["):
            header = statement
        for address in _addresses(_parsed(f"{header}\n{statement}" if statement != header else statement) or {}):
            found.setdefault(address, number)
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of a TOML text with its first line: the least number of lines that is TOML by itself."""
    begun: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        begun.append(line)
        if _parsed("\n".join(begun)) is not None:
            yield number - len(begun) + 1, "\n".join(begun)
            begun = []


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except ValueError:
        return None


def _addresses(table: Mapping[str, Any], at: Address = ()) -> Iterator[Address]:
    for name, value in table.items():
        yield (*at, name)
        if isinstance(value, dict):
            yield from _addresses(value, (*at, name))

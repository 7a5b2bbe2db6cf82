"""Which plugins are installed: the entry points of our group, read without importlib.metadata.

Its import alone takes a third of a hook's time, and it stops at the first distribution on the way that is broken, one
that has nothing to do with us.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from attrs import frozen

from lukshook.errors import BadConfiguration
from lukshook.system import files
from lukshook.system.text import clipped

GROUP = "lukshook"
#: "module:attribute [extras]" (packaging.python.org, entry points specification).
_VALUE = re.compile(r"([\w.]+)\s*(?::\s*([\w.]+)\s*)?(?:\[.*\])?")
_MOST = 100
#: Bytes of a list of entry points.
_MOST_BYTES = 1 << 20


@frozen(repr=False)
class Plugin:
    """An entry point: *name*, and *value*, which says what to import. *distribution* is the one that has it."""

    name: str
    value: str
    distribution: str

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return clipped(self.name, _MOST)

    def load(self) -> Any:
        """Import it. Raises `BadConfiguration`, and whatever its code raises."""
        found = _VALUE.fullmatch(self.value)
        if found is None:
            what = clipped(self.value, _MOST)
            raise BadConfiguration(f'"{what}" does not name a module', hint=f"of the distribution {self.distribution}")
        module, attributes = found.groups()
        return reduce(getattr, attributes.split(".") if attributes else (), importlib.import_module(module))


def plugins(warn: Callable[[str], None]) -> tuple[Plugin, ...]:
    """All entry points in our group; of two distributions of the same name the first on `sys.path` counts.

    A list that cannot be read may have one of ours in it or not; that is a warning.
    """
    found: dict[str, tuple[Plugin, ...]] = {}
    for file in _lists(warn):
        distribution = re.sub(r"[-_.]+", "-", file.parent.stem.partition("-")[0]).lower()
        if distribution in found:
            continue
        try:
            text = files.read(file, _MOST_BYTES).decode(errors="replace")
        except OSError as error:
            warn(f"plugins may be missing: {clipped(str(file), 300)}: {error.strerror}")
            continue
        if f"[{GROUP}]" in text:
            found[distribution] = tuple(_of_group(text, clipped(distribution, _MOST)))
    return tuple(plugin for group in found.values() for plugin in group)


def _lists(warn: Callable[[str], None]) -> Iterator[Path]:
    for folder in sys.path:
        try:
            yield from list(Path(folder).glob("*.*-info/entry_points.txt"))
        except OSError as error:
            warn(f"plugins may be missing: {clipped(folder, 300)}: {error.strerror}")


def _of_group(text: str, distribution: str) -> Iterator[Plugin]:
    """The entry points of our group in a list; a line without "=" is one that names nothing."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1]
        elif group == GROUP and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield Plugin(name.strip(), value.strip(), distribution)

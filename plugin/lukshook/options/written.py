"""A new configuration as text: commented, and with the line that names its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lukshook.options.table import OPTIONS
from lukshook.system import documentation, installed


def schema_file() -> Path | None:
    """The schema that is installed with this lukshook."""
    folder = installed.find("docs", "share/lukshook")
    file = folder / "config.schema.json" if folder else None
    return file if file and file.is_file() else None


def whole(block: str) -> str:
    """A configuration with nothing but the *block* of a volume."""
    found = schema_file()
    first = [f"#:schema {found}"] if found else []
    about = [
        "# Written by lukshook init; change it as you like, and then run: lukshook check",
        documentation.located("# Every option is described in docs/configuration.md"),
        "# Every option with its value: lukshook config show",
    ]
    return "\n".join([*first, *about, "", block])


def block(name: str, values: Mapping[str, Any], left_out: Mapping[str, Any]) -> str:
    """The table of the volume *name*, each value below a line about it; those *left_out* as comments."""
    given = (line for option, value in values.items() for line in _lines(option, value, ""))
    others = (line for option, value in left_out.items() for line in _lines(option, value, "# "))
    return "\n".join([f"[volumes.{_string(name)}]" if "." in name else f"[volumes.{name}]", *given, *others, ""])


def _lines(option: str, value: Any, mark: str) -> Iterator[str]:
    yield f"# {OPTIONS[option].about}"
    yield f"{mark}{option} = {_string(value)}"


def _string(value: Any) -> str:
    """A text or truth value as TOML has it; for what is on one line that is as in JSON (RFC 8259, TOML 1.0)."""
    return json.dumps(value, ensure_ascii=False)

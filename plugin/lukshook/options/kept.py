"""What a configuration file says, as TOML; of a large one, what was read is kept, so that it is not read again.

For thousands of volumes, tomllib takes longer than all else (docs/internals/measurements.md). What is kept begins with
the text that it was made of, so it is never that of another text, and cannot be outdated.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from lukshook.errors import LukshookError
from lukshook.system import files, ownership

#: Characters of a text that is worth it: some hundred volumes.
_LARGE = 1 << 16
#: Bytes of what is kept; a configuration has 4 MiB at most.
_MOST_BYTES = 1 << 24
#: No volume has such a name, and what another Python has kept is not taken.
_NAME = f".configuration.{sys.implementation.cache_tag}"
#: Stands in no TOML.
_END = b"\0"


def table_of(text: str, folder: Path) -> dict[str, Any]:
    """The table that *text* is; what was read is kept in *folder*. Raises ValueError and RecursionError as tomllib."""
    if len(text) < _LARGE:
        return tomllib.loads(text)
    begin = text.encode() + _END
    kept = _kept(begin, folder / _NAME)
    if kept is None:
        kept = tomllib.loads(text)
        _keep(begin, kept, folder)
    return kept


def _kept(begin: bytes, file: Path) -> dict[str, Any] | None:
    """What was read of the same text, None where nothing is kept, or another user could have written it."""
    with suppress(OSError, ValueError, RecursionError), ownership.reached(file, os.geteuid()) as found:
        content = b"" if found.faults else files.read_found(found.descriptor, _MOST_BYTES)
        if content.startswith(begin):
            table = json.loads(content[len(begin) :])
            return table if isinstance(table, dict) else None
    return None


def _keep(begin: bytes, table: dict[str, Any], folder: Path) -> None:
    """JSON has all that TOML has, but dates and numbers that are none: a text with these is read each time."""
    with suppress(OSError, LukshookError, TypeError, ValueError, RecursionError):
        content = json.dumps(table, allow_nan=False).encode()
        ownership.private_folder(folder)
        files.write_whole(folder / _NAME, begin + content, durable=False)

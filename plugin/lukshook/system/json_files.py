"""Small JSON files of ours. They can be damaged, or be something else than a file: each is read with a limit and typed.

One place for the record of what is open, the known state and an unfinished resize.
"""

from __future__ import annotations

import json
import os
import types
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from attrs import fields

from lukshook.system import files

_Kind = TypeVar("_Kind")
#: Bytes; the largest file that we write ourselves has a few thousand.
_LIMIT = 1 << 20


class Damaged(ValueError):
    """The file is not what we wrote; the text says why."""


def read(file: Path) -> bytes:
    """All of a regular file, at most 1 MiB. Never waits, and never follows a link.

    Raises `FileNotFoundError`, `PermissionError`, `Damaged`.
    """
    try:
        found = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return files.read_found(found, _LIMIT)
        finally:
            os.close(found)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:  # a folder, a link, a store that fails, too large
        raise Damaged(error.strerror or str(error)) from error


def load(file: Path) -> dict[str, Any]:
    """The JSON object in *file*. Raises as `read` does."""
    try:
        data = json.loads(read(file), parse_constant=_refuse)
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged("it is not valid JSON") from error
    if not isinstance(data, dict):
        raise Damaged("it is not a JSON object")
    return data


def build(kind: type[_Kind], data: object, **made: Any) -> _Kind:
    """The attrs class *kind* from the JSON object *data*; fields in *made* are complete already.

    Raises `Damaged` for a field that is missing, unknown or of another type.
    """
    if not isinstance(data, dict):
        raise Damaged("an object is missing")
    hints = _hints(kind)  # type: ignore[arg-type]  # mypy does not see that a class has a hash
    for name, value in data.items():
        if name not in made and (name not in hints or not _fits(value, hints[name])):
            raise Damaged(f"{name!a} is unknown or has a wrong value")
    try:
        return kind(**{**data, **made})
    except TypeError as error:
        raise Damaged("a field is missing") from error


def objects(data: dict[str, Any], name: str) -> list[Any]:
    """The list *name* in *data*. Raises `Damaged`."""
    found = data.get(name)
    if not isinstance(found, list):
        raise Damaged(f"the list {name} is missing")
    return found


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from JSON has the type *hint*. Numbers have to fit into 64 bits, texts into a system call."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is int:
        return type(value) is int and 0 <= value < 2**64
    if hint is str:
        return isinstance(value, str) and _is_text(value)
    return isinstance(value, get_origin(hint) or hint)


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

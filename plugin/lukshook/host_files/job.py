"""What a reader finds in the configuration of a backup tool."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

#: What reads the text of another file that the first one names; "" where there is none.
Read = Callable[[Path], str]


@frozen
class Job:
    """A backup that a file describes. *name*: what it is called there, "" for the only one.

    *targets*: the local folders with its repositories. *before*, *after*: the commands that run around it. *skips*: the
    actions for which those do not run. *root*: the tool wants the mount point itself. *faults*: what else is wrong.
    """

    targets: tuple[Path, ...] = ()
    before: str = ""
    after: str = ""
    skips: tuple[str, ...] = ()
    name: str = ""
    root: bool = False
    faults: tuple[str, ...] = ()


@frozen
class File:
    """A file of a tool that is read: where it is, its text, and how those that it includes are read."""

    path: Path
    text: str
    read: Read


#: What reads the files of one tool.
Jobs = Callable[[File], Iterable[Job]]


#: Characters of a line; nobody writes a longer one, and patterns take long for it.
_LONGEST = 4096


def lines_of(text: str, comment: str = "#") -> list[str]:
    """The lines of *text* without comments, which begin with one of the characters *comment*."""
    lines = (line for line in text.split("\n") if len(line) <= _LONGEST)
    return [line for line in lines if not line.lstrip(" \t").startswith(tuple(comment))]


def calls(commands: str, words: str, volume: str) -> bool:
    """Whether *commands* have a line that calls lukshook with one of *words* (a pattern) for *volume*."""
    name = rf"(?<![\w.-]){re.escape(volume)}(?![\w.-])"
    pattern = re.compile(rf"(?<![\w-])({words})(?![\w-]).*{name}")
    return any(pattern.search(line.partition("lukshook")[2]) for line in lines_of(commands))


def local(text: Any) -> tuple[Path, ...]:
    """The folder that a repository's name means, as borg and restic write it; none for one elsewhere."""
    if not isinstance(text, str):
        return ()
    path = re.sub(r"\A(local:|file://)", "", text)
    return (Path(os.path.normpath(path)),) if path.startswith("/") else ()


def commands(*found: Any) -> str:
    """One line for each command, however a list or a single one is written."""
    return "\n".join(_each(found))


def _each(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):  # rustic: command and args
        yield " ".join([str(found.get("command", "")), *map(str, found.get("args", []))])
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _each(each)


def tables(found: Any) -> dict[str, Any]:
    """*found*, if it is a table; an empty one for all else."""
    return found if isinstance(found, dict) else {}


def items(found: Any) -> list[Any]:
    """*found*, if it is a list; an empty one for all else."""
    return found if isinstance(found, list) else []

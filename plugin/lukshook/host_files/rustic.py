"""The profiles of rustic."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from lukshook.host_files.job import File, Job, commands, local, tables

_LATE = ("repository", "backup")


def jobs(file: File) -> Iterator[Job]:
    """The one job that the file describes. Only global hooks run before the repository is opened."""
    found = tomllib.loads(file.text)
    hooks = tables(tables(found.get("global")).get("hooks"))
    late = [tables(tables(found.get(name)).get("hooks")) for name in _LATE]
    too_late = "lukshook" in commands(*(each.get("run-before") for each in late))
    yield Job(
        targets=local(tables(found.get("repository")).get("repository")),
        before=commands(hooks.get("run-before")),
        after=commands(*(hooks.get(key) for key in ("run-after", "run-failed", "run-finally"))),
        faults=("only [global.hooks] run before rustic opens the repository",) if too_late else (),
    )

"""The locations and backends of autorestic."""

from __future__ import annotations

from collections.abc import Iterator

from lukshook.host_files import yaml_file
from lukshook.host_files.job import File, Job, commands, items, local, tables

_BEFORE = ("prevalidate", "before")
_AFTER = ("after", "success", "failure")


def jobs(file: File) -> Iterator[Job]:
    """One for each location."""
    found = tables(yaml_file.load(file))
    backends = tables(found.get("backends"))
    for name, described in tables(found.get("locations")).items():
        location = tables(described)
        hooks = tables(location.get("hooks"))
        targets = location.get("to")
        chosen = [tables(backends.get(str(each))) for each in (items(targets) or [targets])]
        yield Job(
            targets=tuple(path for each in chosen if each.get("type") == "local" for path in local(each.get("path"))),
            before=commands(*(hooks.get(key) for key in _BEFORE)),
            after=commands(*(hooks.get(key) for key in _AFTER)),
            skips=("forget", "check", "exec"),
            name=str(name),
        )

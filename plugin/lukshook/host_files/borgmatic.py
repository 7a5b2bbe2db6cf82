"""borgmatic's files, with the options of 2.x, of 1.8 and in the sections of 1.7."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lukshook.host_files import yaml_file
from lukshook.host_files.job import File, Job, commands, items, local, tables

_SECTIONS = ("location", "storage", "retention", "consistency", "hooks")
_BEFORE = ("before_everything", "before_actions", "before_backup")
_AFTER = ("after_everything", "on_error", "after_actions", "after_backup")
#: Actions that touch a repository, and that a hook with `when:` may leave out.
_ACTIONS = ("create", "prune", "compact", "check")


def jobs(file: File) -> Iterator[Job]:
    """One for each file: its repositories are worked on one after the other."""
    found = tables(yaml_file.load(file))
    options = {**found, **{key: value for name in _SECTIONS for key, value in tables(found.get(name)).items()}}
    repositories = [tables(each).get("path", each) for each in items(options.get("repositories"))]
    hooks = [tables(each) for each in items(options.get("commands"))]
    opening = [hook for hook in hooks if "before" in hook]
    yield Job(
        targets=tuple(path for each in repositories for path in local(each)),
        before=commands(*(hook.get("run") for hook in opening), *(options.get(name) for name in _BEFORE)),
        after=commands(
            *(hook.get("run") for hook in hooks if "after" in hook), *(options.get(name) for name in _AFTER)
        ),
        skips=_skipped(opening),
    )


def _skipped(opening: list[dict[str, Any]]) -> tuple[str, ...]:
    """The actions for which no hook opens the volume."""
    ours = [hook for hook in opening if "lukshook" in commands(hook.get("run"))]
    if not ours or not all(hook.get("when") for hook in ours):
        return ()
    named = {action for hook in ours for action in items(hook.get("when"))}
    return tuple(action for action in _ACTIONS if action not in named)

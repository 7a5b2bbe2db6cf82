"""The profiles of resticprofile, as TOML, JSON or YAML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from lukshook.host_files import yaml_file
from lukshook.host_files.job import File, Job, commands, local, tables

_AFTER = ("run-after", "run-after-fail", "run-finally")
_NO_PROFILES = ("global", "groups", "includes", "version", "mixins")


def jobs(file: File) -> Iterator[Job]:
    """One for each profile."""
    found = _loaded(file)
    profiles = tables(found.get("profiles")) or {name: each for name, each in found.items() if name not in _NO_PROFILES}
    for name, profile in profiles.items():
        if isinstance(profile, dict):
            yield _job(name, _inherited(profile, profiles))


def _loaded(file: File) -> dict[str, Any]:
    if file.path.suffix == ".toml":
        return tomllib.loads(file.text)
    return tables(json.loads(file.text) if file.path.suffix == ".json" else yaml_file.load(file))


def _inherited(profile: dict[str, Any], profiles: dict[str, Any]) -> dict[str, Any]:
    """*profile* with what it inherits, from one step up."""
    return {**tables(profiles.get(str(profile.get("inherit", "")))), **profile}


def _job(name: str, profile: dict[str, Any]) -> Job:
    """The hooks of the profile itself run for every command, those of a section for its own."""
    sections = {key: each for key, each in profile.items() if isinstance(each, dict) and "run-before" in each}
    before = commands(profile.get("run-before"))
    within = commands(*(section["run-before"] for section in sections.values()))
    only = "lukshook" in within and "lukshook" not in before
    closing = [profile, *sections.values()]
    return Job(
        targets=local(profile.get("repository")),
        before=within if only else before,
        after=commands(*(each.get(key) for each in closing for key in _AFTER)),
        skips=tuple(action for action in ("forget", "prune", "check") if only and action not in sections),
        name=name,
    )

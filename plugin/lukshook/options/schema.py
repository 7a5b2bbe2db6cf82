"""A JSON schema of the configuration, for editors and other programs: what can be said of it without this machine."""

from __future__ import annotations

from collections.abc import Mapping

from lukshook.filesystems.kinds import KINDS
from lukshook.options import reader
from lukshook.options.reader import Schema
from lukshook.options.table import FILE_OPTIONS, NEEDED, OF_SNAPSHOTS, OPTIONS, Option, has_mmp

#: What taplo 0.9 reads.
_DRAFT = "http://json-schema.org/draft-07/schema#"


def schema(others: Mapping[str, Schema]) -> Schema:
    """The whole file, with *others* as further tables.

    It takes all that lukshook takes; `lukshook check` looks at more, such as paths and sizes.
    """
    volumes = {"description": "Each volume by its name.", **reader.by_name(_volume())}
    whole = _tables(FILE_OPTIONS, {"volumes": volumes, **others})
    return {"$schema": _DRAFT, "title": "Configuration of lukshook", **whole}


def _tables(options: Mapping[str, Option], others: Mapping[str, Schema]) -> Schema:
    described = {name: _described(option) for name, option in options.items()}
    return {"type": "object", "properties": {**others, **described}, "additionalProperties": False}


def _described(option: Option) -> Schema:
    known = {} if option.default is None else {"default": option.default}
    return {"description": option.about, **known, **option.read.shape()}


def _volume() -> Schema:
    return {**_tables(OPTIONS, {}), "required": list(NEEDED), "dependencies": _dependencies()}


def _dependencies() -> Schema:
    """What an option needs of others; the same as `config.parse` says of them."""
    kinds = [kind for kind in KINDS if has_mmp(kind)]
    snapshots = {name: ["snapshot"] for name in OF_SNAPSHOTS}
    return {
        **snapshots,
        "prune_command": {"required": ["snapshot"], "properties": {"snapshot": {"pattern": "^command:"}}},
        "copies": {"required": ["ledger"], "properties": {"ledger": {"const": True}}},
        "mmp": {"anyOf": [{"properties": {"mmp": {"const": False}}}, {"properties": {"filesystem": {"enum": kinds}}}]},
    }

"""What can be configured, and what is: `config`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
from attrs import asdict

from lukshook import config
from lukshook.cli.main import App, Summaries, guarded, names_argument, pass_app, say
from lukshook.options import shown
from lukshook.options.shown import Shown

#: Changes only where a program that reads the JSON could break: a field goes, or means something else.
SCHEMA = 1


@click.group("config", cls=Summaries)
def config_command() -> None:
    """Describe the configuration: what can be in it, and what is."""


@config_command.command("schema")
def schema_command() -> None:
    """Print a JSON schema (draft-07) of the configuration file, for editors and TOML tools.

    Write it to a file, and name that in the first line of the configuration: #:schema ./config.schema.json
    """
    click.echo(json.dumps(config.schema(), indent=2))


@config_command.command("show")
@names_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: one object for the file and its volumes.")
@pass_app
def show_command(app: App, names: tuple[str, ...], as_json: bool) -> int:
    """Show every option with its value, and where that comes from: a line of the file, or the default.

    Reads no key; the arguments of a command that gives a key, and URLs and tokens of messages, are left out.
    """
    return guarded(lambda: _show(app, names, as_json=as_json))


def _show(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    source = app.places.config
    text = config.text_of(source)
    table = config.table_of(text, source)
    known = config.parse(table, source, app.places.mounts)
    chosen = [known.volume(name).name for name in names] if names else list(known.volumes)
    lines = shown.lines(text)
    whole = shown.of_file(table, lines)
    volumes = {name: shown.of_volume(name, table, lines) for name in chosen}
    channels = {channel.name: shown.of_channel(channel.name, table, lines) for channel in known.notify}
    if as_json:
        click.echo(json.dumps(_object(str(source), whole, volumes, channels), indent=2))
        return 0
    parts = volumes if names else {**volumes, **{f"notify.{name}": channel for name, channel in channels.items()}}
    for line in _text(str(source), {} if names else whole, parts):
        say(line)
    return 0


#: The options of volumes or channels, by name.
_Parts = Mapping[str, Mapping[str, Shown]]


def _object(source: str, whole: Mapping[str, Shown], volumes: _Parts, channels: _Parts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": source,
        "options": _fields(whole),
        "volumes": [{"name": name, "options": _fields(options)} for name, options in volumes.items()],
        "notify": [{"name": name, "options": _fields(options)} for name, options in channels.items()],
    }


def _fields(options: Mapping[str, Shown]) -> dict[str, Any]:
    return {name: {**asdict(option), "line": option.line or None} for name, option in options.items()}


def _text(source: str, whole: Mapping[str, Shown], parts: _Parts) -> Iterator[str]:
    yield source
    yield from _lines(whole)
    for name, options in parts.items():
        yield f"{name}:"
        yield from _lines(options)


def _lines(options: Mapping[str, Shown]) -> Iterator[str]:
    for name, option in options.items():
        value = "-" if option.value is None else json.dumps(option.value, ensure_ascii=False, default=str)
        yield f"  {name:<17} {value}  ({f'line {option.line}' if option.line else option.origin})"

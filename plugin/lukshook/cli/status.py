"""What is open, by whom, how full; needs no key."""

from __future__ import annotations

import json
import math
import os
import sys
import time

import click
from attrs import asdict

from lukshook import size
from lukshook.cli import table
from lukshook.cli.main import App, guarded, names_argument, pass_app
from lukshook.config import Volume
from lukshook.errors import Usage
from lukshook.report import status
from lukshook.report.copies import CopyStatus
from lukshook.report.status import VolumeStatus
from lukshook.system import clock, signals
from lukshook.system.one_look import one_look
from lukshook.system.text import one_line

#: Seconds between two looks of `--watch`.
_PERIOD = 2.0
_CLEAR, _HOME, _REST_OF_LINE, _REST = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"


@click.command("status")
@names_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with one object per volume.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@pass_app
def status_command(app: App, names: tuple[str, ...], as_json: bool, watch: bool) -> int:
    """Show what is open, by whom, sizes, the last close and the header backup.

    Of several volumes, show a table: age of the last good backup, fill level, last verification, last drill.
    """
    return guarded(lambda: _watch(app, names, as_json=as_json) if watch else _status(app, names, as_json=as_json))


def _status(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps([asdict(fact) for _, fact in _facts(app, names)], indent=2))
        return 0
    colours = table.has_colours(os.environ)
    click.echo("\n".join(_lines(app, names, colours=colours)), color=colours)
    return 0


def _watch(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    """Show it again and again on the same screen (console_codes(4)); a signal ends it, and that is no failure."""
    if as_json or not sys.stdout.isatty():
        raise Usage("--watch is for a terminal", hint="for programs: lukshook status --json")
    colours, begin = table.has_colours(os.environ), _CLEAR
    try:
        while True:
            with signals.allowed():
                lines = _lines(app, names, colours=colours)[: table.terminal_rows() - 1]
                shown = "".join(f"{line}{_REST_OF_LINE}\n" for line in lines)
                click.echo(begin + _HOME + shown + _REST, nl=False, color=True)
                begin = ""
                time.sleep(_PERIOD)
    except signals.Interrupted:
        return 0


def _facts(app: App, names: tuple[str, ...]) -> list[tuple[Volume, VolumeStatus]]:
    volumes = [app.configured(name) for name in names] if names else list(app.configuration.volumes.values())
    site = app.site()
    with one_look():
        return [(volume, status.of(volume, site)) for volume in volumes]


def _lines(app: App, names: tuple[str, ...], *, colours: bool) -> list[str]:
    """What is shown, each on a line of its own that has nothing of others in it that a terminal would obey."""
    facts = _facts(app, names)
    if not facts:
        return [one_line(f"no volume is configured in {app.places.config}")]
    if len(facts) > 1:
        return table.lines(facts, colours=colours)
    return [one_line(line) for line in _paragraph(facts[0][1])]


def _paragraph(fact: VolumeStatus) -> list[str]:
    lines = [f"{fact.name}: {fact.state}"]
    if fact.users:
        lines[0] += " for " + ", ".join(fact.users)
    if fact.problem:
        lines.append(f"  PROBLEM       {fact.problem}")
    lines.append(f"  image         {fact.image} ({_sizes(fact)})")
    lines.append(f"  mount point   {fact.mountpoint}{_filled(fact)}")
    lines.append(f"  engine        {fact.engine}")
    lines.append(f"  last backup   {_when(fact.last_success)}; last close {_when(fact.last_close)}")
    if fact.last_snapshot is not None:
        lines.append(f"  last snapshot {_when(fact.last_snapshot)}")
    if fact.last_result not in (None, "done"):
        lines.append(f"  LAST RESULT   {fact.last_result}")
    lines.append(f"  header backup {fact.header_backup or 'none'}")
    if fact.ledger is not None:
        lines.append(f"  verified      {_verified(fact)}")
    lines += [f"  copy          {copy.target}: {_copy(copy)}" for copy in fact.copies]
    if fact.unclean:
        lines.append(f"  recoveries    {fact.unclean} (after interrupted runs)")
    if fact.drill_result is not None:
        last = f"last good one {_when(fact.last_drill)}"
        lines.append(f"  drill         {fact.drill_result}, {fact.drill_files or 0} files read; {last}")
    for other in fact.open_copies:
        lines.append(f"  open copy     {other.state} at {other.mountpoint}: {other.image or 'not opened yet'}")
    return lines


def _copy(copy: CopyStatus) -> str:
    if copy.last_copy is None:
        return "not made yet"
    behind = "" if not copy.behind else f", {copy.behind} {'close' if copy.behind == 1 else 'closes'} behind"
    return f"{_when(copy.last_copy)}{behind}" + (", INTERRUPTED: the next copy completes it" if copy.changing else "")


def _sizes(fact: VolumeStatus) -> str:
    if fact.connected is False:
        return "remote, not connected"
    if fact.size is None or fact.allocated is None:
        return "not there" if fact.store_answers else "not seen"
    own = f"{size.show(fact.size)}, {size.show(fact.allocated)} allocated"
    return own if fact.store_free is None else f"{own}, {size.show(fact.store_free)} free on the store"


def _filled(fact: VolumeStatus) -> str:
    if fact.used is None or fact.capacity is None:
        return ""
    return f" ({size.show(fact.used)} of {size.show(fact.capacity)} used)"


def _verified(fact: VolumeStatus) -> str:
    parts = [f"the whole image {_when(fact.last_full_verify)}"]
    if fact.verified_share is not None:
        parts.append(f"{math.floor(fact.verified_share * 100)} % of it within 30 days")
    if fact.unknown_pieces:
        parts.append(f"unknown pieces: {fact.unknown_pieces}")
    if fact.ledger == status.WRITING and fact.state == "closed":
        parts.append("the last close was not clean")
    return "; ".join(parts)


def _when(moment: float | None) -> str:
    return "never" if moment is None else clock.show(moment, "%Y-%m-%d %H:%M:%S")

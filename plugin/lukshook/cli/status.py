"""What is open, by whom, how full; needs no key."""

from __future__ import annotations

import json
import math

import click
from attrs import asdict

from lukshook import size
from lukshook.cli.main import App, guarded, names_argument, pass_app, say
from lukshook.report import status
from lukshook.report.copies import CopyStatus
from lukshook.report.status import VolumeStatus
from lukshook.system import clock


@click.command("status")
@names_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with one object per volume.")
@pass_app
def status_command(app: App, names: tuple[str, ...], as_json: bool) -> int:
    """Show what is open, by whom, sizes, the last close and the header backup."""
    return guarded(lambda: _status(app, names, as_json=as_json))


def _status(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    volumes = [app.configured(name) for name in names] if names else list(app.configuration.volumes.values())
    facts = [status.of(volume, app.site()) for volume in volumes]
    if as_json:
        click.echo(json.dumps([asdict(fact) for fact in facts], indent=2))
        return 0
    if not facts:
        say(f"no volume is configured in {app.places.config}")
    for fact in facts:
        for line in _paragraph(fact):
            say(line)
    return 0


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

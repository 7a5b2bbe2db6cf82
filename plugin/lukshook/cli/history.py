"""What became of past backups: `history`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import click
from attrs import asdict, fields

from lukshook import size
from lukshook.cli.main import App, guarded, name_argument, pass_app, say
from lukshook.errors import Usage
from lukshook.report import growth
from lukshook.report.growth import Growth
from lukshook.system import clock
from lukshook.volume import history
from lukshook.volume.history import Run

#: Changes only where a program that reads the JSON could break: a field goes, or means something else.
SCHEMA = 1
_WIDTH, _HEIGHT = 60, 6


@click.command("history")
@name_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: one object with all backups.")
@click.option("--csv", "as_csv", is_flag=True, help="For a spreadsheet: one line for each backup.")
@click.option("--svg", "as_svg", is_flag=True, help="For a report: one page in black on white.")
@pass_app
def history_command(app: App, name: str, as_json: bool, as_csv: bool, as_svg: bool) -> int:
    """Show past backups of volume NAME: fill level, duration and bytes written, and when it will be full.

    Each column of a plot is a backup, or the highest of several. Needs no key and changes nothing.
    """
    forms = {"--json": as_json, "--csv": as_csv, "--svg": as_svg}
    return guarded(lambda: _history(app, name, tuple(form for form, chosen in forms.items() if chosen)))


def _history(app: App, name: str, forms: tuple[str, ...]) -> int:
    if len(forms) > 1:
        raise Usage(f"{' and '.join(forms)} cannot be combined", hint="choose one of them")
    volume = app.configured(name)
    runs = history.read(app.site().state(volume))
    found = growth.of(runs)
    if "--json" in forms:
        click.echo(json.dumps(_object(name, runs, found), indent=2))
    elif "--csv" in forms:
        _write_csv(runs)
    elif "--svg" in forms:
        from lukshook.report import plot  # noqa: PLC0415 - for a page only

        click.echo(plot.svg(name, runs, _forecast(found)), nl=False)
    else:
        for line in _text(name, runs, found):
            say(line)
    return 0


def _object(name: str, runs: Sequence[Run], found: Growth | None) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "name": name,
        "per_day": found.per_day if found else None,
        "full_at": found.full_at if found else None,
        "runs": [asdict(run) for run in runs],
    }


def _write_csv(runs: Sequence[Run]) -> None:
    """RFC 4180, with times as ISO 8601 has them."""
    out = csv.writer(sys.stdout)
    out.writerow(field.name for field in fields(Run))
    for run in runs:
        out.writerow({**asdict(run), "ended": _iso(run.ended)}.values())
    sys.stdout.flush()


def _iso(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # no calendar has it
        return f"{moment:.0f}"


def _text(name: str, runs: Sequence[Run], found: Growth | None) -> list[str]:
    if not runs:
        return [f"{name}: no backup is noted yet"]
    bad = sum(run.result != "done" for run in runs)
    span = f"{clock.show(runs[0].ended)} to {clock.show(runs[-1].ended)}"
    fill = [100 * run.used / run.capacity if run.used is not None and run.capacity else None for run in runs]
    duration, written = [run.duration for run in runs], [run.written for run in runs]
    return [
        f"{name}: {len(runs)} backup{'s' * (len(runs) > 1)}, {span}{f', {bad} of them not good' if bad else ''}",
        *_plot("fill level", fill, 100.0, f"{_last(fill):.0f} % now, the top is 100 %"),
        *_plot("duration", duration, None, f"the longest took {clock.span(_most(duration))}"),
        *_plot("written", written, None, f"the most was {size.show(int(_most(written)))}"),
        "",
        _forecast(found),
    ]


def _last(values: Sequence[float | None]) -> float:
    return next((value for value in reversed(values) if value is not None), 0.0)


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _plot(title: str, values: Sequence[float | None], top: float | None, remark: str) -> list[str]:
    """A plot of what is known, from the first backup to the last; nothing where nothing is known."""
    if all(value is None for value in values):
        return []
    highest = top or _most(values) or 1.0
    columns = [_HEIGHT * (value or 0.0) / highest for value in _columns(values)]
    rows = ["".join("#" if column > row else " " for column in columns) for row in reversed(range(_HEIGHT))]
    return ["", f"  {title}: {remark}", *(f"  |{row}".rstrip(" ") for row in rows), f"  +{'-' * len(columns)}"]


def _columns(values: Sequence[float | None]) -> list[float | None]:
    """As many as fit; each the highest of its share of *values*."""
    count = min(len(values), _WIDTH)
    ends = [number * len(values) // count for number in range(count + 1)]
    shares = (values[begin:end] for begin, end in pairwise(ends))
    return [max((value for value in share if value is not None), default=None) for share in shares]


def _forecast(found: Growth | None) -> str:
    if found is None:
        return "too few backups for a forecast"
    week = size.show(int(abs(found.per_day) * 7))
    if found.full_at is None:
        return f"not full within ten years; it {'grows' if found.per_day > 0 else 'shrinks'} by {week} a week"
    return f"full about {clock.show(found.full_at, '%Y-%m-%d')}; it grows by {week} a week"

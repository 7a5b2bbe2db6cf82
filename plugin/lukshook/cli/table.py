"""Several volumes at a glance: a line for each, aligned, in colours where a terminal shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence

import click
from attrs import frozen

from lukshook.config import Volume
from lukshook.report import status
from lukshook.report.status import VolumeStatus
from lukshook.system import clock
from lukshook.system.text import one_line

_HEAD = ("VOLUME", "STATE", "LAST BACKUP", "FULL", "VERIFIED", "DRILL")
#: Percent of a volume from which on it is nearly full.
_NEARLY_FULL = 90
_BAD, _DOUBTFUL = "red", "yellow"


@frozen
class Cell:
    """What stands in one place, and its colour, "" for none."""

    text: str
    colour: str = ""


#: For what a volume does not have, or what is not known.
_NOTHING = Cell("-")


def has_colours(environment: Mapping[str, str]) -> bool:
    """Whether standard output shows colours and its user wants them (no-color.org)."""
    return sys.stdout.isatty() and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"


def lines(facts: Iterable[tuple[Volume, VolumeStatus]], *, colours: bool) -> list[str]:
    """The table, and below it what is wrong, a line for each volume that has a problem."""
    pairs = list(facts)
    rows = [[Cell(title) for title in _HEAD], *(_row(volume, fact) for volume, fact in pairs)]
    widths = [max(len(row[column].text) for row in rows) for column in range(len(_HEAD))]
    problems = [Cell(one_line(f"{fact.name}: {fact.problem}"), _BAD) for _, fact in pairs if fact.problem]
    return [
        *(_line(row, widths, colours=colours) for row in rows),
        *(_painted(problem, 0, colours=colours) for problem in problems),
    ]


def _line(row: Sequence[Cell], widths: Sequence[int], *, colours: bool) -> str:
    *inner, last = zip(row, widths, strict=True)
    painted = [_painted(cell, width, colours=colours) for cell, width in inner]
    return "  ".join([*painted, _painted(last[0], 0, colours=colours)])


def _painted(cell: Cell, width: int, *, colours: bool) -> str:
    text = click.style(cell.text, fg=cell.colour) if colours and cell.colour else cell.text
    return text + " " * (width - len(cell.text))


def _row(volume: Volume, fact: VolumeStatus) -> list[Cell]:
    state = Cell(fact.state, _BAD if fact.state == "half open" else "")
    name = Cell(fact.name, _BAD if fact.problem else "")
    return [name, state, _backup(volume, fact), _filled(fact), _verified(fact), _drill(fact)]


def _age(moment: float | None, limit: float | None = None) -> Cell:
    """How long ago; older than *limit* seconds is bad."""
    if moment is None:
        return Cell("never", _DOUBTFUL)
    passed = clock.age(moment)
    if passed is None:
        return Cell("in the future", _BAD)
    return Cell(f"{clock.span(passed)} ago", _BAD if limit is not None and passed > limit else "")


def _backup(volume: Volume, fact: VolumeStatus) -> Cell:
    age = _age(fact.last_success, volume.stale_after)
    if fact.last_result in (None, "done"):
        return age
    return Cell(f"{age.text}, then {fact.last_result}", _BAD)


def _filled(fact: VolumeStatus) -> Cell:
    if fact.used is None or not fact.capacity:
        return _NOTHING
    percent = 100 * fact.used // fact.capacity
    return Cell(f"{percent} %", _DOUBTFUL if percent >= _NEARLY_FULL else "")


def _verified(fact: VolumeStatus) -> Cell:
    if fact.ledger is None:
        return _NOTHING
    if fact.ledger == status.DAMAGED:
        return Cell("ledger damaged", _BAD)
    if fact.bad_pieces or fact.last_verify not in (None, "intact"):
        return Cell("damaged", _BAD)
    return _age(fact.last_full_verify)


def _drill(fact: VolumeStatus) -> Cell:
    if fact.drill_result is None:
        return _NOTHING
    return _age(fact.last_drill) if fact.drill_result == "passed" else Cell(fact.drill_result, _BAD)


def terminal_rows() -> int:
    """Rows of the terminal on standard output."""
    return os.get_terminal_size(sys.stdout.fileno()).lines or 24

"""Past backups of a volume as one page of SVG, in black on white: what was kept of them, over time."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

from lukshook import size
from lukshook.system import clock
from lukshook.volume.history import Run

#: A4 in points, upright; what is drawn fits a page of US Letter too.
_WIDTH, _HEIGHT = 595, 842
_LEFT, _RIGHT, _TOP = 80, 555, 110
_PLOT, _GAP = 160, 55
_LINES = 4
_HEAD = f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm" viewBox="0 0 {_WIDTH} {_HEIGHT}"
 font-family="Helvetica, Arial, 'Liberation Sans', sans-serif">"""


@frozen
class _Curve:
    """What is drawn of each backup: *values* (None where it is not known), up to *top*, and how one is *shown*."""

    title: str
    values: Sequence[float | None]
    top: float
    shown: Callable[[float], str]


def svg(name: str, runs: Sequence[Run], forecast: str) -> str:
    """The page: fill level, duration and bytes written of *runs*, each with a cross where the backup was not good."""
    parts = [
        _HEAD,
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT - 40, 50, f"Backups to volume {name}", height=16),
        *(_text(_LEFT - 40, 70 + 14 * number, line) for number, line in enumerate(_summary(runs, forecast))),
        *(part for number, curve in enumerate(_curves(runs)) for part in _drawn(curve, runs, number)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _summary(runs: Sequence[Run], forecast: str) -> Iterator[str]:
    if not runs:
        yield "no backup is noted yet"
        return
    bad = sum(run.result != "done" for run in runs)
    first, last = (clock.show(run.ended, "%Y-%m-%d %H:%M") for run in (runs[0], runs[-1]))
    yield f"{len(runs)} backups, {first} to {last}; not good (crosses): {bad}"
    yield forecast


def _curves(runs: Sequence[Run]) -> Iterator[_Curve]:
    """The three of them, without those of which nothing is known."""
    fill = [100 * run.used / run.capacity if run.used is not None and run.capacity else None for run in runs]
    duration, written = [run.duration for run in runs], [run.written for run in runs]
    found = (
        _Curve("Fill level", fill, 100.0, lambda value: f"{value:.0f} %"),
        _Curve("Duration", duration, _round_time(_most(duration)), clock.span),
        _Curve("Bytes written", written, _round_bytes(_most(written)), lambda value: size.show(int(value))),
    )
    return (curve for curve in found if any(value is not None for value in curve.values))


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0) or 1.0


def _round_time(seconds: float) -> float:
    """The least that is not less and has a whole number of its unit at each line."""
    unit = next(unit for unit in (86400, 3600, 60, 1) if unit == 1 or seconds > 2 * _LINES * unit)
    return math.ceil(seconds / unit / _LINES) * _LINES * unit


def _round_bytes(count: float) -> float:
    """The same, for units that are powers of two."""
    return max(2.0 ** math.ceil(math.log2(count)), _LINES)


def _drawn(curve: _Curve, runs: Sequence[Run], number: int) -> Iterator[str]:
    """*curve* as the plot with that *number* from above."""
    top = _TOP + 25 + number * (_PLOT + _GAP)
    bottom = top + _PLOT
    yield _text(_LEFT, top - 10, curve.title, height=11)
    for line in range(_LINES + 1):
        y = bottom - _PLOT * line / _LINES
        width = 0.2 if line else 0.8
        yield f'<path d="M{_LEFT} {y:g}H{_RIGHT}" stroke="black" stroke-width="{width}"/>'
        yield _text(_LEFT - 5, y + 3, curve.shown(curve.top * line / _LINES), anchor="end")
    yield _text(_LEFT, bottom + 13, clock.show(runs[0].ended, "%Y-%m-%d"))
    yield _text(_RIGHT, bottom + 13, clock.show(runs[-1].ended, "%Y-%m-%d"), anchor="end")
    points = [
        (_across(run.ended, runs), bottom - _PLOT * min(max(value / curve.top, 0.0), 1.0))
        for run, value in zip(runs, curve.values, strict=True)
        if value is not None
    ]
    shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{shape}" fill="none" stroke="black" stroke-width="0.8"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5"/>' for x, y in points)
    for run in runs:
        if run.result != "done":
            x = _across(run.ended, runs)
            yield f'<path d="M{x - 3:.1f} {bottom - 3}l6 6m0 -6l-6 6" stroke="black" stroke-width="1"/>'


def _across(ended: float, runs: Sequence[Run]) -> float:
    """Where a moment is, from left to right; a clock that was set back draws nothing outside."""
    first, last = runs[0].ended, runs[-1].ended
    share = (ended - first) / (last - first) if last > first else 0.5
    return _LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0)


def _text(x: float, y: float, text: str, *, height: int = 9, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{height}" text-anchor="{anchor}">{html.escape(text)}</text>'

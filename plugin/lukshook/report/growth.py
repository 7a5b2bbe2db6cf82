"""How fast a volume fills, and when it will be full, as far as its past backups say."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from lukshook.volume.history import Run

_DAY = 86400.0
#: Days before the last backup that count: what grew long ago says little of what comes.
_LOOK_BACK = 90.0
#: The least that is no chance: backups, and days between the first and the last of them.
_LEAST_RUNS, _LEAST_DAYS = 3, 1.0
#: Days that are worth a forecast.
_AHEAD = 3650.0


@frozen
class Growth:
    """*per_day*: bytes by which the volume grows, negative where it shrinks.

    *full_at*: when it is full, in seconds since the epoch; None for not within ten years.
    """

    per_day: float
    full_at: float | None


def of(runs: Sequence[Run]) -> Growth | None:
    """The straight line that fits best (least squares) through what was used; None where too little is known."""
    known = [run for run in runs if run.used is not None and run.capacity]
    recent = [run for run in known if run.ended > known[-1].ended - _LOOK_BACK * _DAY]
    points = [(run.ended / _DAY, float(run.used or 0)) for run in recent]
    days = [day for day, _ in points]
    if len(points) < _LEAST_RUNS or max(days) - min(days) < _LEAST_DAYS:
        return None
    slope = _slope(points)
    last = known[-1]
    left = max((last.capacity or 0) - (last.used or 0), 0)
    if slope <= 0 or left / slope > _AHEAD:
        return Growth(slope, None)
    return Growth(slope, last.ended + left / slope * _DAY)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    count = len(points)
    middle_x, middle_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / sum((x - middle_x) ** 2 for x, _ in points)

"""How long opening and closing takes, what unlocking needs in memory, and what it leaves changed in the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from measure import Sample, blocks, changed, in_turns, peak_of_both, ratios, run
from rows import Curve, Row
from ways import MIB, Lukshook, Recipe, Tomb, Tuned, Way, available

#: As large as a tomb that is made in bearable time; what is measured does not depend on it.
IMAGE_MIB = 100


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """All rows about opening and closing."""
    ways = available(
        [Recipe(folder, IMAGE_MIB), Tomb(folder, IMAGE_MIB), Tuned(folder, IMAGE_MIB), Lukshook(folder, IMAGE_MIB)]
    )
    for way in ways:
        way.make()
        run(way.open)
        run(way.close)
    before = {way.name: blocks(way.image) for way in ways}
    peaks: dict[str, list[float]] = {way.name: [] for way in ways}
    times = in_turns(_steps(ways, peaks), rounds)
    changes = {way.name: _empty_cycle(way, before[way.name]) for way in ways}
    rows = [*_time_rows(times, where), *_other_rows(ways, peaks, changes, where)]
    curves = [
        Curve(what, "s", where, tuple((way.name, times[f"{what} {way.name}"]) for way in ways))
        for what in ("open", "close")
    ]
    return rows, curves


def _steps(ways: Sequence[Way], peaks: dict[str, list[float]]) -> dict[str, Callable[[], float]]:
    def opening(way: Way) -> Callable[[], float]:
        def step() -> float:
            done = run(way.open)
            peaks[way.name].append(done.peak)
            return done.seconds

        return step

    def closing(way: Way) -> Callable[[], float]:
        return lambda: run(way.close).seconds

    steps = {f"open {way.name}": opening(way) for way in ways}
    return steps | {f"close {way.name}": closing(way) for way in ways}


def _empty_cycle(way: Way, before: Sequence[bytes]) -> Sample:
    """Bytes changed by a cycle in which nobody wrote; *before* is from before several cycles, so it starts anew."""
    found = []
    for _ in range(3):
        before = blocks(way.image)
        run(way.open)
        run(way.close)
        found.append(float(changed(before, blocks(way.image))))
    return Sample(tuple(found))


def _time_rows(times: dict[str, Sample], where: str) -> list[Row]:
    bounds = [("open", "recipe", 0.25), ("open", "tomb", 0.10), ("open", "tuned shell", 2.0), ("close", "tomb", 0.5)]
    bounds += [("close", "recipe", 0.0), ("close", "tuned shell", 0.0)]
    names = {"open": "before-backup, all safety included", "close": "after-backup"}
    return [
        Row(
            names[what],
            f"{other}, {what}",
            ratios(times[f"{what} lukshook"], times[f"{what} {other}"]),
            bound or None,
            where,
            f"{times[f'{what} lukshook'].show('s', 2)} against {times[f'{what} {other}'].show('s', 2)}",
        )
        for what, other, bound in bounds
        if f"{what} {other}" in times
    ]


def _other_rows(
    ways: Sequence[Way], peaks: dict[str, list[float]], changes: dict[str, Sample], where: str
) -> list[Row]:
    ours = next(way for way in ways if isinstance(way, Lukshook))
    peak = peak_of_both(ours.call("before-backup"))
    run(ours.close)
    recipe = max(peaks["recipe"])
    rows = [
        Row(
            "peak memory of unlock", "recipe", Sample((peak / recipe,)), 0.1, where,
            f"{peak / 1024:.0f} MiB (lukshook plus its largest child) against {recipe / 1024:.0f} MiB",
        )
    ]  # fmt: skip
    for other in ("tomb", "recipe", "tuned shell"):
        if other in changes:
            rows.append(
                Row(
                    "bytes changed in the image by an empty open/close", other,
                    ratios(changes["lukshook"], changes[other]), 0.5 if other == "tomb" else None, where,
                    f"{changes['lukshook'].median / 1024:.0f} KiB against {changes[other].median / 1024:.0f} KiB",
                )
            )  # fmt: skip
    rows.append(_read_only(ours, where))
    return rows


def _read_only(ours: Lukshook, where: str) -> Row:
    before = blocks(ours.image)
    run(ours.call("open", "--read-only"))
    run(ours.call("close"))
    count = changed(before, blocks(ours.image))
    return Row(
        "bytes changed in the image by a read-only open/close", "none", Sample((float(count),)), 0.0, where,
        f"{count} bytes of {IMAGE_MIB} MiB = {IMAGE_MIB * MIB} bytes",
    )  # fmt: skip

"""How long opening and closing takes, what unlocking needs in memory, and what it leaves changed in the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from measure import Sample, blocks, changed, in_turns, peak_of_both, ratios, run
from rows import Curve, Row
from ways import MIB, Lukshook, Recipe, Step, Tomb, Tuned, TunedUserspace, Way, available

#: As large as a tomb that is made in bearable time; what is measured does not depend on it.
IMAGE_MIB = 100


@dataclass
class Watched:
    """A way, and what was seen of it while its times were taken."""

    way: Way
    digests: list[bytes] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        """Make it, and open and close it once: the first mount of a file system writes more than any other."""
        self.way.make()
        run(self.way.open)
        run(self.way.close)
        self.digests = blocks(self.way.image)

    def open(self) -> float:
        """Seconds of an opening; notes its peak of memory in KiB."""
        done = run(self.way.open)
        self.peaks.append(done.peak)
        return done.seconds

    def close(self) -> float:
        """Seconds of a closing; notes the bytes changed since the last, while nobody wrote anything."""
        seconds = run(self.way.close).seconds
        now = blocks(self.way.image)
        self.changes.append(changed(self.digests, now))
        self.digests = now
        return seconds


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """All rows about opening and closing."""
    sides: list[Way] = [
        Recipe(folder, IMAGE_MIB),
        Tomb(folder, IMAGE_MIB),
        Tuned(folder, IMAGE_MIB),
        Lukshook(folder, IMAGE_MIB),
    ]
    watched = {way.name: Watched(way) for way in available(sides)}
    for side in watched.values():
        side.prepare()
    times = in_turns(
        {f"open {name}": side.open for name, side in watched.items()}
        | {f"close {name}": side.close for name, side in watched.items()},
        rounds,
    )
    slow = {name: sample for name, sample in times.items() if not name.endswith("tuned shell")}
    rows = [*_time_rows(slow, where), _peak_row(watched, where), *_change_rows(watched, where)]
    curves = [
        Curve(what, "s", where, tuple((name, times[f"{what} {name}"]) for name in watched))
        for what in ("open", "close")
    ]
    return rows, curves


def floor(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """lukshook against the tuned shell alone: both are quick, so there can be many rounds."""
    watched = [Watched(way) for way in (Tuned(folder, IMAGE_MIB), Lukshook(folder, IMAGE_MIB))]
    for side in watched:
        side.prepare()
    steps = {f"open {side.way.name}": side.way.open for side in watched}
    steps |= {f"close {side.way.name}": side.way.close for side in watched}
    return _time_rows(in_turns({name: _seconds(step) for name, step in steps.items()}, rounds), where), []


def hook(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """The hooks with the userspace engine, which needs no device-mapper: what they cost where a page fault is cheap."""
    ours = Lukshook(folder, IMAGE_MIB, options='engine = "userspace"')
    sides: list[Way] = [*available([TunedUserspace(folder, IMAGE_MIB)]), ours]
    for way in sides:
        way.make()
    steps = {f"open {way.name}": way.open for way in sides} | {f"close {way.name}": way.close for way in sides}
    times = in_turns({name: _seconds(step) for name, step in steps.items()}, rounds)
    curves = [
        Curve(f"{what}, userspace engine", "s", where, tuple((way.name, times[f"{what} {way.name}"]) for way in sides))
        for what in ("open", "close")
    ]
    return [*_time_rows(times, where), *_above_rows(times, where)], curves


def _above_rows(times: Mapping[str, Sample], where: str) -> list[Row]:
    """What a hook takes more than its tools alone."""
    tools = "tuned shell with qemu"
    if f"open {tools}" not in times:
        return []
    opening, closing = (_above(times[f"{what} lukshook"], times[f"{what} {tools}"]) for what in ("open", "close"))
    return [
        Row("before-backup, ms above its tools", tools, opening, 60.0, where, opening.show("ms", 0)),
        Row("after-backup, ms above its tools", tools, closing, 80.0, where, closing.show("ms", 0)),
    ]


def _above(one: Sample, other: Sample) -> Sample:
    """Milliseconds between two sides, round by round."""
    return Sample(tuple((a - b) * 1000 for a, b in zip(one.values, other.values, strict=True)))


def _seconds(step: Step) -> Callable[[], float]:
    return lambda: run(step).seconds


def _time_rows(times: dict[str, Sample], where: str) -> list[Row]:
    bounds = [("open", "recipe", 0.25), ("open", "tomb", 0.10), ("open", "tuned shell", 2.0), ("close", "tomb", 0.5)]
    bounds += [("close", "recipe", 0.0), ("close", "tuned shell", 2.0)]
    bounds += [("open", "tuned shell with qemu", 0.0), ("close", "tuned shell with qemu", 0.0)]
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


def _peak_row(watched: Mapping[str, Watched], where: str) -> Row:
    ours = watched["lukshook"].way
    assert isinstance(ours, Lukshook)
    peak = peak_of_both(ours.call("before-backup"))
    run(ours.close)
    recipe = max(watched["recipe"].peaks)
    detail = f"{peak / 1024:.0f} MiB (lukshook plus its largest child) against {recipe / 1024:.0f} MiB"
    return Row("peak memory of unlock", "recipe", Sample((peak / recipe,)), 0.1, where, detail)


def _change_rows(watched: Mapping[str, Watched], where: str) -> list[Row]:
    ours = watched["lukshook"]
    rows = [_read_only(ours.way, where)]
    for other in (side for side in watched.values() if side is not ours):
        mine, theirs = Sample(tuple(ours.changes)), Sample(tuple(other.changes))
        rows.append(
            Row(
                "bytes changed in the image by an empty open/close",
                other.way.name,
                ratios(mine, theirs),
                0.5 if other.way.name == "tomb" else None,
                where,
                f"{mine.median / 1024:.0f} KiB against {theirs.median / 1024:.0f} KiB",
            )
        )
    return rows


def _read_only(ours: Way, where: str) -> Row:
    assert isinstance(ours, Lukshook)
    before = blocks(ours.image)
    run(ours.call("open", "--read-only"))
    run(ours.call("close"))
    count = changed(before, blocks(ours.image))
    return Row(
        "bytes changed in the image by a read-only open/close", "none", Sample((float(count),)), 0.0, where,
        f"{count} bytes of {IMAGE_MIB} MiB = {IMAGE_MIB * MIB} bytes",
    )  # fmt: skip

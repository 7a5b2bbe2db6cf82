"""How fast data goes through the mount: one large file, and many small ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Sample, drop_caches, in_turns, ratios, run
from rows import Curve, Row
from ways import Lukshook, Recipe, Tuned, Way

IMAGE_MIB = 512


@dataclass(frozen=True)
class Load:
    """What is written and read: MiB of one large file, and a number of files of 4 KiB."""

    mib: int
    files: int


#: For the test kernel, which has one CPU and no AES instructions.
LOAD = Load(192, 400)
_NO_QUEUES = "--perf-no_read_workqueue --perf-no_write_workqueue"


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """One large file; every way is open all the time."""
    bounds = {"tuned shell": 0.97, "recipe": 1.0}
    return compare(_kernel_ways(folder), bounds, rounds, where, kinds=LARGE), []


def small_files(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Many small files."""
    return compare(_kernel_ways(folder), {}, rounds, where, kinds=SMALL), []


def _kernel_ways(folder: Path) -> list[Way]:
    return [Lukshook(folder, IMAGE_MIB), Tuned(folder, IMAGE_MIB), Recipe(folder, IMAGE_MIB)]


def choices(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """What each parameter of ours gains: the tuned shell, which has them all, against one with a single other."""
    ways = [
        Tuned(folder, IMAGE_MIB),
        Tuned(folder, IMAGE_MIB, "sector size 512", "sector", sector=512),
        Tuned(folder, IMAGE_MIB, "loop without direct I/O", "buffered", direct_io="off"),
        Tuned(folder, IMAGE_MIB, "no dm-crypt work queues", "noqueue", crypt=_NO_QUEUES),
        Tuned(folder, IMAGE_MIB, "read-ahead 4 MiB", "ahead", then="blockdev --setra 8192 /dev/mapper/ahead_crypt"),
        Tuned(folder, IMAGE_MIB, "atime, lazytime", "lazy", mount="nodev,nosuid,noexec,lazytime,noinit_itable"),
    ]
    return compare(ways, {}, rounds, where), []


def compare(
    ways: Sequence[Way],
    bounds: Mapping[str, float],
    rounds: int,
    where: str,
    load: Load = LOAD,
    kinds: Mapping[str, Work] | None = None,
) -> list[Row]:
    """The first of *ways* against each other one, kind by kind of work that this user can measure."""
    wanted = KINDS if kinds is None else kinds
    measurable = {kind: work for kind, work in wanted.items() if "read" not in kind or can_drop_caches()}
    for way in ways:
        way.make()
        run(way.open)
    try:
        speeds = _speeds(ways, measurable, load, rounds)
    finally:
        for way in ways:
            run(way.close)
    return [
        _row(kind, ways[0].name, other.name, speeds, bounds.get(other.name), where)
        for kind in measurable
        for other in ways[1:]
    ]


def _speeds(ways: Sequence[Way], kinds: Mapping[str, Work], load: Load, rounds: int) -> dict[str, Sample]:
    steps = {f"{kind} {way.name}": _bound(work, way, load) for kind, work in kinds.items() for way in ways}
    for step in steps.values():
        step()  # the first time blocks of the image are taken: not measured
    return in_turns(steps, rounds, mirrored=True)


def _row(kind: str, us: str, other: str, speeds: Mapping[str, Sample], bound: float | None, where: str) -> Row:
    ours, theirs = speeds[f"{kind} {us}"], speeds[f"{kind} {other}"]
    unit = "files/s" if "small" in kind else "MiB/s"
    detail = f"{ours.median:.0f} against {theirs.median:.0f} {unit}"
    kept = None if "small" in kind else bound
    return Row(f"{kind}, {us}", other, ratios(ours, theirs), kept, where, detail, least=True)


def _bound(work: Work, way: Way, load: Load) -> Callable[[], float]:
    return lambda: work(way.mountpoint, load)


def can_drop_caches() -> bool:
    """Whether reading can be made to come from the store; else it is the page cache that is measured."""
    return os.geteuid() == 0


def _settle() -> None:
    """Begin with nothing left to write from what was before, and nothing to read in memory."""
    if can_drop_caches():
        drop_caches()
    else:
        os.sync()


def _write(place: Path, load: Load) -> float:
    _settle()
    line = f"dd if=/dev/zero of={place}/large bs=1M count={load.mib} conv=fsync,notrunc"
    return load.mib / run(line).seconds


def _read(place: Path, load: Load) -> float:
    _settle()
    return load.mib / run(f"dd if={place}/large of=/dev/null bs=1M").seconds


def _write_small(place: Path, load: Load) -> float:
    run(f"rm -rf {place}/small && mkdir {place}/small")
    _settle()
    # One process, so that starting processes is not what is measured.
    line = f"head -c {load.files * 4096} /dev/zero | split -b 4096 -a 4 - {place}/small/f && sync -f {place}/small"
    return load.files / run(line).seconds


def _read_small(place: Path, load: Load) -> float:
    _settle()
    return load.files / run(f"tar -cf - -C {place} small | cat >/dev/null").seconds


Work = Callable[[Path, Load], float]
LARGE: dict[str, Work] = {"sequential write": _write, "sequential read": _read}
SMALL: dict[str, Work] = {"write of small files": _write_small, "read of small files": _read_small}
KINDS = LARGE | SMALL

"""How fast data goes through the mount: one large file, and many small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from measure import Sample, drop_caches, in_turns, ratios, run
from rows import Curve, Row
from ways import Cryfs, Gocryptfs, Lukshook, Recipe, Tuned, Way, available

IMAGE_MIB = 512
LARGE_MIB = 192
SMALL_FILES = 400
#: What is measured, by the name of the work, in MiB or files a second.
Kinds = dict[str, Callable[[Path], float]]
_NO_QUEUES = "--perf-no_read_workqueue --perf-no_write_workqueue"


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """One large file; every way is open all the time."""
    bounds = {"tuned shell": 0.97, "recipe": 1.0}
    return _compare(_kernel_ways(folder), bounds, rounds, where, LARGE), []


def small_files(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Many small files."""
    return _compare(_kernel_ways(folder), {}, rounds, where, SMALL), []


def _kernel_ways(folder: Path) -> list[Way]:
    return [Lukshook(folder, IMAGE_MIB), Tuned(folder, IMAGE_MIB), Recipe(folder, IMAGE_MIB)]


def userspace(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """The engine without device-mapper beside the other ways that need none."""
    ours = Lukshook(folder, IMAGE_MIB, options='engine = "userspace"')
    ways: list[Way] = [ours, *available([Gocryptfs(folder), Cryfs(folder)])]
    rows = _compare(ways, {"gocryptfs": 1.2}, rounds, where)
    return [replace(row, bound=None) if "read" in row.what else row for row in rows], []


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
    return _compare(ways, {}, rounds, where), []


def _compare(
    ways: Sequence[Way], bounds: Mapping[str, float], rounds: int, where: str, kinds: Kinds | None = None
) -> list[Row]:
    """The first of *ways* against each other one, in all kinds of work or in some."""
    kinds = kinds or LARGE | SMALL
    for way in ways:
        way.make()
        run(way.open)
    try:
        speeds = _speeds(ways, rounds, kinds)
    finally:
        for way in ways:
            run(way.close)
    return [
        _row(kind, ways[0].name, other.name, speeds, bounds.get(other.name), where)
        for kind in kinds
        for other in ways[1:]
    ]


def _speeds(ways: Sequence[Way], rounds: int, kinds: Kinds) -> dict[str, Sample]:
    steps = {f"{kind} {way.name}": _bound(work, way) for kind, work in kinds.items() for way in ways}
    for step in steps.values():
        step()  # the first time blocks of the image are taken: not measured
    return in_turns(steps, rounds, mirrored=True)


def _row(kind: str, us: str, other: str, speeds: Mapping[str, Sample], bound: float | None, where: str) -> Row:
    ours, theirs = speeds[f"{kind} {us}"], speeds[f"{kind} {other}"]
    unit = "files/s" if "small" in kind else "MiB/s"
    detail = f"{ours.median:.0f} against {theirs.median:.0f} {unit}"
    kept = None if "small" in kind else bound
    return Row(f"{kind}, {us}", other, ratios(ours, theirs), kept, where, detail, least=True)


def _bound(work: Callable[[Path], float], way: Way) -> Callable[[], float]:
    return lambda: work(way.mountpoint)


def _write(place: Path) -> float:
    drop_caches()
    line = f"dd if=/dev/zero of={place}/large bs=1M count={LARGE_MIB} conv=fsync,notrunc"
    return LARGE_MIB / run(line).seconds


def _read(place: Path) -> float:
    drop_caches()
    return LARGE_MIB / run(f"dd if={place}/large of=/dev/null bs=1M").seconds


def _write_small(place: Path) -> float:
    run(f"rm -rf {place}/small && mkdir {place}/small")
    drop_caches()
    # One process, so that starting processes is not what is measured.
    line = f"head -c {SMALL_FILES * 4096} /dev/zero | split -b 4096 -a 4 - {place}/small/f && sync -f {place}/small"
    return SMALL_FILES / run(line).seconds


def _read_small(place: Path) -> float:
    drop_caches()
    return SMALL_FILES / run(f"tar -cf - -C {place} small | cat >/dev/null").seconds


LARGE: Kinds = {"sequential write": _write, "sequential read": _read}
SMALL: Kinds = {"write of small files": _write_small, "read of small files": _read_small}

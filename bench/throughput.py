"""How fast data goes through the mount: one large file, and many small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from measure import drop_caches, in_turns, ratios, run
from rows import Curve, Row
from ways import Lukshook, Recipe, Tuned, Way

IMAGE_MIB = 512
LARGE_MIB = 192
SMALL_FILES = 400


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """All rows about throughput; every way is open all the time."""
    ways: list[Way] = [Recipe(folder, IMAGE_MIB), Tuned(folder, IMAGE_MIB), Lukshook(folder, IMAGE_MIB)]
    for way in ways:
        way.make()
        run(way.open)
    try:
        return _compare(ways, rounds, where)
    finally:
        for way in ways:
            run(way.close)


def _compare(ways: Sequence[Way], rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    kinds = {"write": _write, "read": _read, "write small files": _write_small, "read small files": _read_small}
    steps: dict[str, Callable[[], float]] = {}
    for kind, work in kinds.items():
        steps |= {f"{kind} {way.name}": _bound(work, way) for way in ways}
    for step in steps.values():
        step()  # the first time blocks of the image are taken: not measured
    speeds = in_turns(steps, rounds)
    rows = []
    for kind in kinds:
        bounds = (0.97, 1.0) if kind in ("write", "read") else (None, None)
        for other, bound in zip(("tuned shell", "recipe"), bounds, strict=True):
            ours, theirs = speeds[f"{kind} lukshook"], speeds[f"{kind} {other}"]
            name = f"sequential {kind} through the mount" if bound else f"{kind} through the mount"
            detail = f"{ours.median:.0f} against {theirs.median:.0f} {'MiB/s' if bound else 'files/s'}"
            rows.append(Row(name, other, ratios(ours, theirs), bound, where, detail, least=True))
    return rows, []


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

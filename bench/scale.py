"""What size costs: of the image, of the configuration, of the number of open volumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from measure import Sample, in_turns, peak_of_both, ratios, run
from rows import Curve, Row
from ways import Lukshook, lukshook

SPARSE = 'fill = "sparse"\nspace = "warn"\nengine = "kernel"'
GIB_IN_MIB = 1024
TIB_IN_MIB = 1024 * GIB_IN_MIB


def command_start(rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Starting the command, and `status` of many volumes; needs neither root nor device-mapper."""
    bare = [sys.executable, "-c", "pass"]
    times = in_turns({"bare": lambda: run(bare).seconds, "version": lambda: run(lukshook("--version")).seconds}, rounds)
    above = Sample(tuple((a - b) * 1000 for a, b in zip(times["version"].values, times["bare"].values, strict=True)))
    detail = f"{times['version'].show('s')} against {times['bare'].show('s')}"
    return [
        Row("lukshook --version", "python3 -c pass", ratios(times["version"], times["bare"]), 4.0, where, detail),
        Row("lukshook --version, ms above", "python3 -c pass", above, 80.0, where, detail),
    ], []


def status(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """`status` with 1 to 10,000 volumes configured, of all and of one."""
    counts = (1, 10, 100, 1000, 10000)
    files = {count: _many(folder, count) for count in counts}
    times = in_turns({str(n): _status(files[n]) for n in counts}, rounds)
    named = in_turns({str(n): _status(files[n], "v0") for n in (1, 10000)}, rounds)
    return [
        _against("status of 1,000 volumes", "status of 1", times["1000"], times["1"], 4.0, where),
        Row("status of 10,000 volumes, s", "", times["10000"], 1.5, where, times["10000"].show("s")),
        _against("status of one of 10,000 volumes", "of one of 1", named["10000"], named["1"], 1.2, where),
    ], [Curve("status, volumes configured", "s", where, tuple(times.items()))]


def _against(what: str, against: str, ours: Sample, other: Sample, bound: float, where: str) -> Row:
    return Row(what, against, ratios(ours, other), bound, where, f"{ours.show('s')} against {other.show('s')}")


def _status(config: Path, *names: str) -> Callable[[], float]:
    return lambda: run(lukshook("-c", str(config), "status", *names)).seconds


def _many(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{count}.toml"
    config.write_text(
        "".join(
            f'[volumes.v{n}]\nimage = "/srv/v{n}.img"\nmountpoint = "/mnt/v{n}"\nkey = "file:/root/v{n}.key"\n'
            for n in range(count)
        )
    )
    return config


def images(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Making and opening sparse images of 1 GiB to 16 TiB."""
    sizes = {"1 GiB": GIB_IN_MIB, "32 GiB": 32 * GIB_IN_MIB, "1 TiB": TIB_IN_MIB, "16 TiB": 16 * TIB_IN_MIB - 1}
    ways = {label: Lukshook(folder, mib, volume=label.replace(" ", ""), options=SPARSE) for label, mib in sizes.items()}
    made = in_turns({label: _making(way) for label, way in ways.items()}, rounds)
    opened = in_turns({label: _cycle(way) for label, way in ways.items()}, rounds)
    return [
        Row(
            "create 1 TiB sparse", "create 1 GiB", ratios(made["1 TiB"], made["1 GiB"]), 2.0, where,
            f"{made['1 TiB'].show('s', 2)} against {made['1 GiB'].show('s', 2)}",
        ),
        _memory("before-backup, 16 TiB", "1 GiB", [_peak(ways[at]) for at in ("16 TiB", "1 GiB")], where),
        _memory("create 1 TiB sparse", "create 1 GiB", [_peak_made(ways[at]) for at in ("1 TiB", "1 GiB")], where),
    ], [
        Curve("create, sparse image of", "s", where, tuple(made.items())),
        Curve("before-backup, sparse image of", "s", where, tuple(opened.items())),
    ]  # fmt: skip


def _making(way: Lukshook) -> Callable[[], float]:
    def step() -> float:
        way.forget()
        way.configure()
        return run(way.call("create")).seconds

    return step


def _cycle(way: Lukshook) -> Callable[[], float]:
    def step() -> float:
        seconds = run(way.open).seconds
        run(way.close)
        return seconds

    return step


def _peak(way: Lukshook) -> int:
    peak = peak_of_both(way.call("before-backup"))
    run(way.close)
    return peak


def _peak_made(way: Lukshook) -> int:
    way.forget()
    return peak_of_both(way.call("create"))


def _memory(what: str, against: str, peaks: list[int], where: str) -> Row:
    detail = f"{peaks[0] / 1024:.1f} MiB against {peaks[1] / 1024:.1f} MiB"
    return Row(f"memory of {what}", against, Sample((peaks[0] / peaks[1],)), 1.05, where, detail)


def growing(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Growing a closed sparse image by its own size."""
    sides = {"1 TiB": (TIB_IN_MIB, "2TiB"), "1 GiB": (GIB_IN_MIB, "2GiB")}
    ways = {at: Lukshook(folder, mib, volume=f"grow{mib}", options=SPARSE) for at, (mib, _) in sides.items()}

    times = in_turns({at: _growing(ways[at], to) for at, (_, to) in sides.items()}, rounds)
    detail = f"{times['1 TiB'].show('s', 2)} against {times['1 GiB'].show('s', 2)}"
    row = Row(
        "grow 1 TiB to 2 TiB, sparse", "1 GiB to 2 GiB", ratios(times["1 TiB"], times["1 GiB"]), 2.0, where, detail
    )
    return [row], []


def _growing(way: Lukshook, to: str) -> Callable[[], float]:
    def step() -> float:
        _making(way)()
        os.sync()
        return run([*way.call("resize"), to]).seconds

    return step


def store(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Opening an image that lies in one folder with up to 30,000 other files."""
    way = Lukshook(folder, 64, options=SPARSE)
    way.make()
    _cycle(way)()
    times: dict[str, Sample] = {}
    for count in (0, 300, 3000, 30000):
        for number in range(len(list(folder.iterdir())), count):
            (folder / f"other{number}").touch()
        os.sync()
        times[f"{count:,}"] = in_turns({"": _cycle(way)}, rounds)[""]
    few, many = times["0"], times["30,000"]
    detail = f"{many.show('s', 2)} against {few.show('s', 2)}"
    row = Row("before-backup beside 30,000 files", "beside none", ratios(many, few), None, where, detail)
    return [row], [Curve("before-backup, other files in the image's folder", "s", where, tuple(times.items()))]


def many_open(folder: Path, where: str) -> tuple[list[Row], list[Curve]]:
    """Opening one more volume while up to 49 are open."""
    first = Lukshook(folder, 64, volume="v0", options=SPARSE)
    first.make()
    ways = [first, *(replace(first, volume=f"v{n}") for n in range(1, 50))]
    for way in ways[1:]:
        way.copy(first)
    os.sync()
    times = [run(way.open).seconds for way in ways]
    for way in ways:
        run(way.close)
    points = tuple((str(n), Sample(tuple(times[max(0, n - 5) : n]))) for n in (5, 10, 25, 50))
    ratio = Sample((points[-1][1].median / points[0][1].median,))
    detail = f"{points[-1][1].show('s', 2)} against {points[0][1].show('s', 2)}"
    return [Row("before-backup, the 46th to 50th volume open at once", "the 1st to 5th", ratio, None, where, detail)], [
        Curve("before-backup, volumes open at once", "s", where, points)
    ]

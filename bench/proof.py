"""What a ledger costs: a verification beside a plain reading, and a backup with a ledger beside one without."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from measure import Sample, in_turns, ratios, run
from rows import Curve, Row
from ways import MIB, Lukshook, lukshook

from support.configuration import configuration

#: MiB of the image that is read; starting the command takes as long as reading some hundred.
READ_MIB = 3072
#: MiB that a backup writes, and of its image.
WRITTEN_MIB, IMAGE_MIB = 1024, 1536
GIB, TIB = 1024 * MIB, 1024 * 1024 * MIB
#: What the threads of a verification do with each piece, without reading it.
_DIGESTS = """
import os, sys, threading
from lukshook.ledger.digests import digest
from lukshook.ledger.pieces import PIECE
mib, workers = int(sys.argv[1]), len(os.sched_getaffinity(0))
def work():
    content = memoryview(os.urandom(PIECE))
    for _ in range(mib * (1 << 20) // PIECE // workers):
        digest(bytes(32), content)
threads = [threading.Thread(target=work) for _ in range(workers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def verify(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """`verify` against reading alone, and against what its digests take; it needs no LUKS in the image."""
    image = folder / "full.img"
    folder.mkdir(parents=True)
    run(f"head -c {READ_MIB * MIB} /dev/urandom >{image}")
    full = _configured(folder, image)
    run(full())  # begins the ledger
    speeds = in_turns(
        {
            "verify": lambda: READ_MIB / run(full("--restart")).seconds,
            "dd": lambda: READ_MIB / run(f"dd if={image} of=/dev/null bs=1M iflag=direct").seconds,
            "digests": lambda: READ_MIB / run([sys.executable, "-c", _DIGESTS, str(READ_MIB)]).seconds,
        },
        rounds,
    )
    image.unlink()
    slower = Sample(tuple(map(min, speeds["dd"].values, speeds["digests"].values)))
    detail = " against ".join(f"{speeds[name].median:.0f} MiB/s ({name})" for name in ("verify", "dd", "digests"))
    reading = Row("verify", "dd or its digests", ratios(speeds["verify"], slower), 0.9, where, detail, least=True)
    return [reading, *_large(folder, rounds, where)], []


def _configured(folder: Path, image: Path) -> Callable[..., list[str]]:
    """What gives the command that verifies *image*."""
    name = image.stem
    config = folder / f"{name}.toml"
    text = configuration(name, image=image, mountpoint=folder / name, key="prompt", ledger=True)
    config.write_text(text)
    return lambda *options: lukshook("--config", str(config), "verify", *options, name)


def _large(folder: Path, rounds: int, where: str) -> list[Row]:
    """Memory, and what `status` takes, by the size of the image: both are sparse."""
    calls = {}
    for name, length in (("small", GIB), ("large", 4 * TIB)):
        image = folder / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(length)
        calls[name] = _configured(folder, image)
    peaks = {name: Sample((float(run(call()).peak),)) for name, call in calls.items()}
    steps = {name: _status(folder / f"{name}.toml") for name in calls}
    times = in_turns(steps, 2 * rounds + 1)
    return [
        Row(
            "memory of verify, 4 TiB", "1 GiB", ratios(peaks["large"], peaks["small"]), 1.2, where,
            " against ".join(peaks[name].show("KiB", 0) for name in ("large", "small")),
        ),
        Row(
            "status, ledger of 4 TiB", "of 1 GiB", ratios(times["large"], times["small"]), None, where,
            " against ".join(times[name].show("s") for name in ("large", "small")),
        ),
    ]  # fmt: skip


def _status(config: Path) -> Callable[[], float]:
    return lambda: run(lukshook("--config", str(config), "status")).seconds


def backup_with_kernel(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """The kernel engine."""
    return _backup(folder, 'engine = "kernel"', rounds, where), []


def backup_in_userspace(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """The userspace engine."""
    return _backup(folder, 'engine = "userspace"\nold_fuse2fs = true', rounds, where), []


def _backup(folder: Path, options: str, rounds: int, where: str) -> list[Row]:
    """A backup of 1 GiB, from the opening until it is closed."""
    plain = Lukshook(folder, IMAGE_MIB, "without", volume="without", options=options)
    kept = Lukshook(folder, IMAGE_MIB, "with", volume="with", options=f"{options}\nledger = true")
    steps = {way.name: _cycle(way) for way in (plain, kept)}
    for way in (plain, kept):
        way.make()
        steps[way.name]()  # the first one takes new blocks of the image
    times = in_turns(steps, rounds, mirrored=True)
    engine = options.partition('"')[2].partition('"')[0]
    what = f"backup of 1 GiB with a ledger, {engine} engine"
    detail = f"{times['with'].show('s', 1)} against {times['without'].show('s', 1)}"
    return [Row(what, "without", ratios(times["with"], times["without"]), 1.05, where, detail)]


def _cycle(way: Lukshook) -> Callable[[], float]:
    large = way.mountpoint / "data/large"
    write = f"dd if=/dev/zero of={large} bs=1M count={WRITTEN_MIB} conv=notrunc"

    def step() -> float:
        return run(way.open).seconds + run(write).seconds + run(way.close).seconds

    return step

"""What a ledger costs and gives: a verification, a backup with a ledger, and a copy, each beside what others do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from measure import Run, Sample, StepFailed, in_turns, ratios, run
from rows import Curve, Row
from ways import MIB, Lukshook, lukshook

from lukshook import size
from support.configuration import configuration

#: MiB of the image that is read; starting the command takes as long as reading some hundred.
READ_MIB = 3072
#: MiB that a backup writes, and of its image.
WRITTEN_MIB, IMAGE_MIB = 1024, 1536
#: MiB of the image of which little is copied.
LARGE_MIB = 8192
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
    beside = _restic(folder, image, speeds["verify"], rounds, where)
    image.unlink()
    slower = Sample(tuple(map(min, speeds["dd"].values, speeds["digests"].values)))
    detail = " against ".join(f"{speeds[name].median:.0f} MiB/s ({name})" for name in ("verify", "dd", "digests"))
    reading = Row("verify", "dd or its digests", ratios(speeds["verify"], slower), 0.9, where, detail, least=True)
    return [reading, *beside, *_large(folder, rounds, where)], []


def _restic(folder: Path, image: Path, ours: Sample, rounds: int, where: str) -> list[Row]:
    """`restic check --read-data` of as much, in the same turn of the machine's day, not of each round."""
    if not shutil.which("restic"):
        print("restic is not installed: left out", file=sys.stderr, flush=True)
        return []
    restic = f"RESTIC_PASSWORD=x restic --quiet --no-cache --repo {folder}/restic"
    run(f"{restic} init && {restic} backup {image}")
    theirs = in_turns({"r": lambda: READ_MIB / run(f"{restic} check --read-data").seconds}, rounds)["r"]
    shutil.rmtree(folder / "restic")
    detail = f"{ours.median:.0f} against {theirs.median:.0f} MiB/s"
    return [Row("verify", "restic check --read-data", ratios(ours, theirs), None, where, detail, least=True)]


def copy(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """Bringing a copy up to date after a backup, against rsync, which compares the whole image.

    A large backup of a small image, and a small one of a large image, for which the bounds are.
    """
    much = _copied(folder / "much", IMAGE_MIB, 32, rounds, where)
    little, read, written = _copied(folder / "little", LARGE_MIB, 1, rounds, where)
    bounds = ((little, 0.05), (read, 10.0), (written, 6.0))
    return [*much, *(replace(row, bound=bound) for row, bound in bounds)], []


def _copied(folder: Path, mib: int, new: int, rounds: int, where: str) -> list[Row]:
    """An image of *mib* MiB, and a backup of *new* MiB."""
    options = 'engine = "userspace"\nold_fuse2fs = true\nledger = true\nfill = "sparse"\nspace = "warn"'
    way = Lukshook(folder, mib, volume=folder.name, options=options)
    way.make()
    theirs = folder / "rsync.img"
    commands = {
        "copy": lukshook("--config", str(way.config), "copy", way.volume, str(folder / "copy.img")),
        "rsync": ["rsync", "--inplace", "--no-whole-file", str(way.image), str(theirs)],
    }
    done: dict[str, list[Run]] = {name: [] for name in commands}
    steps = {name: _updating(way, new, command, done[name]) for name, command in commands.items()}
    for step in steps.values():
        step()  # the first time everything is sent
    done["copy"].clear()
    times = in_turns(steps, rounds, mirrored=True)
    what = f"copy of {size.show(mib * MIB)} after a backup of {new} MiB"
    detail = f"{times['copy'].show('s', 1)} against {times['rsync'].show('s', 1)}"
    read, written = (Sample(tuple(getattr(one, way) / MIB for one in done["copy"])) for way in ("read", "written"))
    return [
        Row(what, "rsync --inplace", ratios(times["copy"], times["rsync"]), None, where, detail),
        Row(f"{what}: MiB read", "", read, None, where, read.show("MiB", 1)),
        Row(f"{what}: MiB written, its journal too", "", written, None, where, written.show("MiB", 1)),
    ]


def _updating(way: Lukshook, new: int, command: list[str], done: list[Run]) -> Callable[[], float]:
    """A backup, which is not measured, and then the copy, with nothing of both images in memory."""
    write = f"dd if=/dev/urandom of={way.mountpoint}/data/part bs=1M count={new} conv=notrunc"

    def step() -> float:
        for one in (way.open, write, way.close):
            run(one)
        os.sync()
        for file in (way.image, command[-1]):
            run(f"test ! -e {file} || dd if={file} iflag=nocache count=0")  # drops all of it (dd(1))
        done.append(run(command))
        return done[-1].seconds

    return step


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
    closings: dict[str, list[Run]] = {way.name: [] for way in (plain, kept)}
    steps = {way.name: _cycle(way, closings[way.name]) for way in (plain, kept)}
    for way in (plain, kept):
        way.make()
        steps[way.name]()  # the first one takes new blocks of the image
        closings[way.name].clear()
    times = in_turns(steps, rounds, mirrored=True)
    engine = options.partition('"')[2].partition('"')[0]
    what = f"backup of 1 GiB with a ledger, {engine} engine"
    detail = f"{times['with'].show('s', 1)} against {times['without'].show('s', 1)}"
    return [
        Row(what, "without", ratios(times["with"], times["without"]), 1.05, where, detail),
        _read_back(engine, closings["with"], closings["without"], where),
    ]


def _read_back(engine: str, kept: Sequence[Run], plain: Sequence[Run], where: str) -> Row:
    """How much a close reads again, against what was written, and the processors' time that it takes more.

    Raises `StepFailed` where a close has not read all of it: then the row beside this one would say nothing.
    """
    shares = Sample(tuple(run.read / (WRITTEN_MIB * MIB) for run in kept))
    if min(shares.values) < 1:
        raise StepFailed(f"a close with a ledger has read {min(shares.values):.0%} of what was written: {kept}")
    more = Sample(tuple(one.cpu - other.cpu for one, other in zip(kept, plain, strict=True)))
    return Row(
        f"read by a close with a ledger, {engine} engine", "1 GiB written", shares, 1.05, where,
        f"{more.show('s', 1)} of processors' time more than without",
    )  # fmt: skip


def _cycle(way: Lukshook, closings: list[Run]) -> Callable[[], float]:
    large = way.mountpoint / "data/large"
    write = f"dd if=/dev/zero of={large} bs=1M count={WRITTEN_MIB} conv=notrunc"

    def step() -> float:
        opening, writing, closing = run(way.open), run(write), run(way.close)
        closings.append(closing)
        return opening.seconds + writing.seconds + closing.seconds

    return step

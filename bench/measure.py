"""Times, peaks of memory and changed bytes, taken in turns so that what disturbs one side disturbs the other."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BLOCK = 4096


@dataclass(frozen=True)
class Sample:
    """Measured values in one unit: seconds, MiB/s, KiB or bytes."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"median": self.median}

    def show(self, unit: str, digits: int = 3) -> str:
        """Median and spread, for a table."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


#: The share of all processors' time that others may use while is measured, and the seconds of a look at that.
QUIET, _LOOK = 0.1, 2.0


def used_by_others() -> float:
    """The share of all processors' time that is used, or stolen by a host, while nothing is measured (proc(5))."""
    before = _processors()
    time.sleep(_LOOK)
    spent = [b - a for a, b in zip(before, _processors(), strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))


def _processors() -> list[int]:
    """Ticks of user, nice, system, idle, iowait, irq, softirq and steal, of all processors together."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


class StepFailed(Exception):
    """A step that was to be measured failed: there is no figure."""


@dataclass(frozen=True)
class Run:
    """One finished command: seconds, and the most KiB any process of it had in memory.

    *cpu*: seconds of processors' time; *read* and *written*: bytes that came from disks and go there. All of it and the
    children it waited for.
    """

    seconds: float
    peak: int
    cpu: float = 0.0
    read: int = 0
    written: int = 0


def run(command: Sequence[str] | str) -> Run:
    """Run a list, or a line of shell, to its end. Raises `StepFailed` with its last words."""
    argv = ["/bin/sh", "-ec", command] if isinstance(command, str) else list(command)
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-600:]
            raise StepFailed(f"{command}: status {process.returncode}: {words}")
    cpu, read, written = usage.ru_utime + usage.ru_stime, usage.ru_inblock * 512, usage.ru_oublock * 512
    return Run(seconds, usage.ru_maxrss, cpu, read, written)


def peak_of_both(argv: Sequence[str]) -> int:
    """KiB of memory of a Python command at its peak, plus that of its largest child: more than it ever had at once."""
    program = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    report = (
        "import atexit, os, resource; "
        "atexit.register(lambda: os.write(1, b'%d' % sum(resource.getrusage(w).ru_maxrss for w in (0, -1)))); "
    )
    result = subprocess.run(
        [sys.executable, "-c", report + program, *argv], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise StepFailed(f"{argv}: {result.stderr[-600:]}")
    return int(result.stdout.split()[-1].rpartition("\n")[2])


def in_turns(steps: Mapping[str, Callable[[], float]], rounds: int, *, mirrored: bool = False) -> dict[str, Sample]:
    """Values of each step: one after the other, round by round: A B A B, or A B B A where it is *mirrored*.

    Each begins with nothing left to write out of what was before: else who flushes waits for that, and others do not.
    """
    values: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        back = -1 if mirrored and number % 2 else 1
        for name in list(steps)[::back]:
            os.sync()
            values[name].append(steps[name]())
    return {name: Sample(tuple(found)) for name, found in values.items()}


def ratios(one: Sample, other: Sample) -> Sample:
    """One side by the other, round by round."""
    return Sample(tuple(a / b for a, b in zip(one.values, other.values, strict=True)))


def drop_caches() -> None:
    """Make the next read come from the store."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def blocks(image: Path) -> list[bytes]:
    """A digest of each 4 KiB of an image."""
    with image.open("rb") as file:
        return [hashlib.blake2b(block, digest_size=8).digest() for block in iter(lambda: file.read(BLOCK), b"")]


def changed(before: Sequence[bytes], after: Sequence[bytes]) -> int:
    """Bytes in 4 KiB blocks that differ: what a tool that syncs by blocks has to send again."""
    return BLOCK * sum(a != b for a, b in zip(before, after, strict=True))

"""What became of past backups: one line for each in the state folder, at next to no cost, and never a failed backup."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from attrs import asdict, frozen

from lukshook.errors import Unavailable
from lukshook.system import clock, files, json_files
from lukshook.volume.known_state import Known, KnownState

#: Bytes of the file; when it has more, the older half goes. A line has about 130, so 800 backups at least are kept.
_MOST_BYTES = 256 * 1024
_MOST_OF_A_LINE = 1024
#: The result of a backup whose data did not all reach the store.
NOT_SAFE = "not safe"
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@frozen(kw_only=True, repr=False)
class Run:
    """A backup. *ended*: when, in seconds since the epoch; *result*: "done", "failed" or "not safe".

    *duration* in seconds; *written*, *used* and *capacity* in bytes, the last two of the file system in the volume.
    None is for what is not known.
    """

    ended: float
    result: str
    duration: float | None = None
    written: int | None = None
    used: int | None = None
    capacity: int | None = None


def add(state: KnownState, known: Known, warn: Callable[[str], None]) -> None:
    """Note the backup that *known* says has just ended, unless it is the last one noted: a kill may come in between.

    What hinders that is a warning; the volume's lock is held.
    """
    measured = known.last_result != NOT_SAFE  # else those are numbers of the backup before
    run = Run(
        ended=clock.now() if known.last_end is None else known.last_end,
        result=known.last_result,
        duration=known.duration if measured else None,
        written=known.last_written if measured else None,
        used=known.used,
        capacity=known.capacity,
    )
    try:
        _append(state.history, run)
    except OSError as error:
        warn(f"the history of volume {state.volume} is not written: {error.strerror}")


def _append(file: Path, run: Run) -> None:
    """One write, so that no reader sees half of it. The line ends what a power cut may have left before it."""
    descriptor = os.open(file, _APPEND, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is not a regular file")
        last = _run(os.pread(descriptor, _MOST_OF_A_LINE, max(found.st_size - _MOST_OF_A_LINE, 0)).rpartition(b"\n")[2])
        if last is None or last.ended != run.ended:
            os.write(descriptor, b"\n" + json.dumps(asdict(run)).encode())
    finally:
        os.close(descriptor)
    if found.st_size > _MOST_BYTES:
        _halve(file)


def _halve(file: Path) -> None:
    """Keep the newer half; a kill leaves the old file or the new one, and what it leaves beside goes the next time."""
    kept = files.read(file, 2 * _MOST_BYTES)[-_MOST_BYTES // 2 :]
    files.write_whole(file, kept[kept.find(b"\n") :], durable=True)


def read(state: KnownState) -> list[Run]:
    """The backups that are noted, the oldest first. A line that is damaged is left out. Raises `Unavailable`."""
    try:
        lines = files.read(state.history, 2 * _MOST_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(
            f"the history of volume {state.volume} cannot be read: {error.strerror}",
            hint=f"run as the user who opens the volume; if the file is damaged, remove {state.history}",
        ) from error
    return [run for run in map(_run, lines) if run is not None]


def _run(line: bytes) -> Run | None:
    try:
        return json_files.build(Run, json.loads(line))
    except (ValueError, RecursionError):  # Damaged, no JSON, no text
        return None

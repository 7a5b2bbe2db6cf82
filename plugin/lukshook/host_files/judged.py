"""What will go wrong with a volume, by the configuration of the backup tools on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from lukshook import hosts
from lukshook.errors import LukshookError
from lukshook.host_files.job import File, Job, calls
from lukshook.host_files.kinds import KINDS, SCRIPT_FILES, SCRIPTS
from lukshook.system import files

#: Bytes of a file of another tool; a longer one is not looked at.
_MOST_BYTES = 256 * 1024
#: Files that one file includes, and those in turn; the rest counts as empty.
_MOST_INCLUDED = 100
_OPENS = "before-backup|run|open"
_CLOSES = "after-backup|run|close"


@frozen
class Target:
    """The volume that the tools are asked about, and the home folder in which they may have files."""

    volume: str
    mountpoint: Path
    home: Path | None

    @property
    def data(self) -> Path:
        """Where backups belong."""
        return self.mountpoint / "data"

    def is_named(self, text: str) -> bool:
        """Whether *text* may be about the volume."""
        return "lukshook" in text or str(self.mountpoint) in text


def warnings(target: Target) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do. A file that is odd is a warning, and never an error."""
    opening = (file for file in _files(SCRIPTS, target) if calls(file.text, _OPENS, target.volume))
    wrappers = "\n".join(f"{file.path}\n{file.text}" for file in opening)
    for kind in KINDS:
        for file in _files(kind, target):
            if target.is_named(file.text):
                wrapped = any(_is_word(word, wrappers) for word in (kind, file.path.name))
                for text, hint in _of_file(kind, file, target, wrapped=wrapped):
                    yield f"{file.path}: {text}", hint


def _is_word(word: str, text: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text))


def _files(kind: str, target: Target) -> Iterator[File]:
    places = SCRIPT_FILES if kind == SCRIPTS else hosts.about(kind).files
    for path in hosts.found_at(places, target.home):
        text = _text(path)
        if text:
            yield File(path, text, _Reader())


class _Reader:
    """Reads what one file includes. A file that includes itself many times must not take for ever."""

    def __init__(self) -> None:
        self._left = _MOST_INCLUDED

    def __call__(self, path: Path) -> str:
        self._left -= 1
        return _text(path) if self._left >= 0 else ""


def _text(path: Path) -> str:
    try:
        return files.read(path, _MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _of_file(kind: str, file: File, target: Target, *, wrapped: bool) -> Iterator[tuple[str, str]]:
    try:
        jobs = tuple(KINDS[kind](file))
    except LukshookError as error:
        yield error.message, error.hint
        return
    except Exception as error:  # whatever another tool takes for its configuration
        yield (
            f"lukshook does not understand this file ({type(error).__name__})",
            f"lukshook hooks {kind} {target.volume} prints the lines",
        )
        return
    for job in jobs:
        for text, hint in _of_job(kind, job, target, wrapped=wrapped):
            yield f"{job.name}: {text}" if job.name else text, hint


def _of_job(kind: str, job: Job, target: Target, *, wrapped: bool) -> Iterator[tuple[str, str]]:
    lines = f"lukshook hooks {kind} {target.volume} prints the lines"
    inside = [path for path in job.targets if path == target.mountpoint or target.mountpoint in path.parents]
    opened = calls(job.before, _OPENS, target.volume)
    if inside and not opened and not wrapped:
        yield f"it writes to {inside[0]}, and nothing in it opens volume {target.volume}", lines
    if inside or opened:
        yield from ((fault, lines) for fault in job.faults)
    if not job.root:
        yield from _places(job, inside, target, opened=opened)
    if opened and not calls(job.after, _CLOSES, target.volume):
        yield f"it opens volume {target.volume}, and nothing in it closes the volume", lines
    if opened and job.skips and not wrapped:
        skipped = ", ".join(job.skips)
        yield (
            f"its hooks do not open volume {target.volume} for: {skipped}",
            (f"{lines}; or start it by lukshook run {target.volume} -- ..."),
        )


def _places(job: Job, inside: list[Path], target: Target, *, opened: bool) -> Iterator[tuple[str, str]]:
    """Repositories that are not in the data folder."""
    where = f"put it into {target.data}/, which exists only while the volume is open"
    for path in inside:
        if target.data != path and target.data not in path.parents:
            yield f"{path} is in the mount point of volume {target.volume}, but not in its folder data", where
    if opened and job.targets and not inside:
        yield f"it opens volume {target.volume}, but writes to {job.targets[0]}", where

"""What is asked for, how to talk to whoever asks, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve, frozen

from lukshook.errors import Refused
from lukshook.resize.plan import Measured, is_relative, wanted
from lukshook.store.allocation import Progress
from lukshook.store.room import Room
from lukshook.system import json_files


@frozen
class Talk:
    """How to talk to whoever asked: progress of writing, a question that takes a yes, a line for people."""

    progress: Progress
    consent: Callable[[str], bool]
    say: Callable[[str], None]


@frozen
class Resized:
    """Bytes of the image before and after, and bytes of the file system now; *online*: it was open all the time."""

    before: int
    after: int
    filesystem: int | None
    online: bool


@frozen
class Intent:
    """A change of size that has begun: as it was asked for, the length it counts from, the length it leads to."""

    text: str
    base: int
    target: int


def unfinished(file: Path) -> Intent | None:
    """The change of size that *file* says has begun, or None.

    Raises `Refused` when it is damaged: a relative size, asked for again, would then be applied twice.
    """
    try:
        return json_files.build(Intent, json_files.load(file))
    except FileNotFoundError:
        return None
    except (PermissionError, json_files.Damaged) as error:
        raise Refused(
            f"{file} cannot be read: {error}",
            hint="look at the size with: lukshook status; then remove that file, and ask for an absolute size",
        ) from error


def intend(text: str, store: Room, unfinished: Intent | None) -> Intent:
    """What is asked for now. The same relative size again, after one that was cut off, means the same end.

    An image whose length is not on that way has got another size since.
    """
    if unfinished is not None and store.length not in _way(unfinished):
        unfinished = None
    if unfinished is not None and unfinished.text == text and is_relative(text):
        return unfinished
    base = unfinished.base if unfinished is not None and is_relative(text) else store.length
    return Intent(text, base, wanted(text, base, store))


def _way(intent: Intent) -> range:
    """The lengths an image can have while its size is changed."""
    return range(min(intent.base, intent.target), max(intent.base, intent.target) + 1)


def as_device(measured: Measured, intent: Intent, store: Room) -> Measured:
    """A block device has its length from elsewhere, so the image itself is no step."""
    return evolve(measured, file=intent.target) if store.block else measured

"""What is asked for, how to talk to the user, and the result."""

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
class Interaction:
    """How to talk to the user: progress of writing, a question that takes a yes, a line for people."""

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
            hint="check the size with: lukshook status; then remove that file, and use an absolute size",
        ) from error


def intend(text: str, store: Room, unfinished: Intent | None) -> Intent:
    """What is asked for now. The same relative size again, after an interruption, means the same target.

    An image whose length is not between the two has got a new size since.
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
    """A block device has its length from elsewhere, so resizing the image itself is not a step."""
    return evolve(measured, file=intent.target) if store.block else measured

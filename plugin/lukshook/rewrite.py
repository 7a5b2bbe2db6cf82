"""Changing the header of an image: on a copy of ours, then written down, then carried over to the store.

cryptsetup never works on the header that lies on the store: the store could exchange it between our look and
cryptsetup's. It works on a private copy of what was judged, and what came out is kept in the state folder before the
first byte of the image changes. So whoever finds the work cut off, at whatever point, just carries it over again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from lukshook import header, header_file, state
from lukshook.errors import Refused
from lukshook.header import Copy, Header
from lukshook.journal import private_folder
from lukshook.layers.base import Trust, open_image


@frozen
class Seen:
    """A header as it was read once, and what it says; *size* is the image's in bytes."""

    copy: Copy
    header: Header
    size: int


def look(image: Path, trust: Trust) -> Seen:
    """The header of *image*, judged by *trust*. Raises `Refused`, `Unavailable`, `Denied`."""
    descriptor = open_image(image, writable=False)
    try:
        copy, size = header.copy(descriptor), os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    return Seen(copy, trust.judge(copy, size), size)


def change(image: Path, folder: Path, volume: str, seen: Seen, work: Callable[[Path], None]) -> Seen:
    """Let *work* change a copy of *seen* in the file it is given, and carry what comes out over to *image*.

    Known state, header backup and image say the same afterwards. Raises what *work* raises (nothing is changed
    then), `Refused` (what came out is not sane), `NotSafe` (the store failed; the next command goes on).
    """
    private_folder(folder)
    _check_places(folder, volume)
    draft = folder / f"{volume}.header.draft"
    header_file.write(seen.copy, draft)
    try:
        work(draft)
        copy = header_file.load(draft)
    finally:
        draft.unlink(missing_ok=True)
    judged = header.judge(copy, seen.size)
    if judged.type == "luks2":
        copy = header_file.renumber(copy, judged, header_file.sequence(seen.copy) + 1)
    header_file.write(copy, state.header_next(folder, volume))
    finish(image, folder, volume)
    return Seen(copy, judged, seen.size)


def _check_places(folder: Path, volume: str) -> None:
    for file in (state.header_next(folder, volume), state.header_backup(folder, volume)):
        header_file.check_place(file)


def pending(folder: Path, volume: str) -> dict[str, Any] | None:
    """The pins of a header whose writing was cut off, or None."""
    file = state.header_next(folder, volume)
    header_file.check_place(file)
    if not header_file.is_there(file):
        return None
    copy = header_file.load(file)
    return header.pins(header.judge(copy, copy.size * 2))


def finish(image: Path, folder: Path, volume: str, *, broken: bool = False) -> bool:
    """Carry a header that was decided on over to *image*; whether there was one.

    *broken*: write it also where the image shows no sign of being this volume's. Raises `Refused` else, `NotSafe`,
    `Unavailable`.
    """
    file = state.header_next(folder, volume)
    _check_places(folder, volume)
    if not header_file.is_there(file):
        return False
    copy = header_file.load(file)
    descriptor = open_image(image, writable=True)
    try:
        judged = header.judge(copy, os.lseek(descriptor, 0, os.SEEK_END))
        if not broken and not header_file.bears(descriptor, copy):
            raise Refused(
                f"the image of volume {volume} is another one than that whose header was being changed",
                hint=f"the right one, but broken? lukshook header restore {volume}; else remove {file}",
            )
        known = state.load(folder, volume)
        header_file.install(copy, judged, descriptor)
        header_file.wipe(descriptor, _left(known.pins, judged), copy)
    finally:
        os.close(descriptor)
    state.save(folder, volume, evolve(known, pins=header.pins(judged)))
    header_file.replace(file, state.header_backup(folder, volume))
    return True


def _left(before: dict[str, Any] | None, now: Header) -> list[tuple[int, int]]:
    """The areas of key slots that were there before, of the same header, and are not any more."""
    if before is None or before["uuid"] != now.uuid:
        return []
    kept = {slot.area_offset for slot in now.slots}
    areas = [(slot["area_offset"], slot["area_size"]) for slot in before["slots"].values()]
    return [area for area in areas if area[0] not in kept]

"""Changing the header of an image: on a copy of ours, then written down, then carried over to the store.

cryptsetup never works on the header on the store: the store could replace it between our look and
cryptsetup's. It works on a private copy of what was judged, and what came out is kept in the state folder before the
first byte of the image changes. So an interrupted change can be completed at any point by writing it out again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from lukshook.errors import Refused, Unavailable
from lukshook.layers.base import Trust
from lukshook.luks import header, header_file
from lukshook.luks.header import Copy, Header
from lukshook.store.image_file import ImageFile
from lukshook.system import files
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import KnownState


@frozen(eq=False, repr=False)
class Seen:
    """A header as it was read once, what it says, the open image it was read from, and bytes of that then."""

    copy: Copy
    header: Header
    image: ImageFile
    size: int


def look(image: ImageFile, trust: Trust) -> Seen:
    """The header of *image*, judged by *trust*. Raises `Refused`, `Unavailable`."""
    copy, size = header.copy(image.descriptor), image.size
    return Seen(copy, trust.judge(copy, size), image, size)


def change(seen: Seen, state: KnownState, work: Callable[[Path], None]) -> Seen:
    """Let *work* change a copy of *seen* in the file it is given, and carry what comes out over to its image.

    The image has to be open for writing. Known state, header backup and image say the same afterwards. Raises what
    *work* raises (nothing is changed then), `Refused` (what came out is not sane; the image was replaced meanwhile),
    `NotSafe` (the store failed; the next command continues).
    """
    state.make_folder()
    _check_places(state)
    draft = state.header_draft
    header_file.write(seen.copy, draft)
    try:
        work(draft)
        copy = header_file.load(draft)
    finally:
        draft.unlink(missing_ok=True)
    judged = header.judge(copy, seen.size)
    if judged.type == "luks2":
        copy = header_file.renumber(copy, judged, header_file.sequence(seen.copy) + 1)
    header_file.write(copy, state.header_next)
    carry_over(seen.image, state)
    return evolve(seen, copy=copy, header=judged)


def _check_places(state: KnownState) -> None:
    for file in (state.header_next, state.header_backup):
        header_file.check_place(file)


def pending(state: KnownState) -> dict[str, Any] | None:
    """The pins of a header whose writing was interrupted, or None."""
    file = state.header_next
    header_file.check_place(file)
    if not header_file.is_there(file):
        return None
    copy = header_file.load(file)
    return header.pins(header.judge(copy, copy.size * 2))


def is_settled(state: KnownState) -> bool:
    """Whether the volume key is not being replaced; until that is complete, no header on the store counts."""
    return not header_file.is_there(state.rekeying)


def check_settled(state: KnownState) -> None:
    """Check `is_settled`. Raises `Unavailable`."""
    if not is_settled(state):
        raise Unavailable(
            f"the replacement of the volume key of volume {state.volume} is not complete",
            hint=f"to complete it: lukshook key rekey {state.volume}",
        )


def trust_of(state: KnownState) -> Pinned:
    """What this host knows of the volume, with a change of the header that was interrupted. Raises `Unavailable`."""
    check_settled(state)
    return Pinned(state.volume, state.known, pending(state))


def is_interrupted(state: KnownState) -> bool:
    """Whether a change of the header was interrupted. Raises `Refused` where something else lies in its place."""
    _check_places(state)
    return header_file.is_there(state.header_next)


def complete(image: ImageFile, state: KnownState, warn: Callable[[str], None]) -> None:
    """Complete a change of the header that an earlier command was interrupted in, and report it.

    *image* is open for writing. Raises as `finish`.
    """
    done = finish(image, state)
    if done is not None:
        slots = header.slots_in_words(slot.number for slot in done.slots)
        warn(
            f"an earlier change of the header of volume {state.volume} was interrupted; "
            f"it is complete now: {slots} in use"
        )


def finish(image: ImageFile, state: KnownState) -> Header | None:
    """Carry a header that was decided on over to *image*, which is open for writing; None where there was none.

    Raises `Refused` where the image shows no sign of being this volume's, `NotSafe`.
    """
    if not is_interrupted(state):
        return None
    file = state.header_next
    waiting = header_file.load(file)
    if not header_file.bears(image.descriptor, waiting):
        raise Refused(
            f"this is not the image whose header change was interrupted (volume {state.volume})",
            hint=f"is it the right image, but damaged? lukshook header restore {state.volume}; otherwise remove {file}",
        )
    return carry_over(image, state)


def carry_over(image: ImageFile, state: KnownState) -> Header:
    """Write the header that was decided on to *image*, and note that it is the known one; the header.

    Raises `NotSafe`, and `Refused` where another image lies at its path by then.
    """
    copy = header_file.load(state.header_next)
    judged = header.judge(copy, image.size)
    known = state.known
    with _noted(image, state, judged.offset):
        header_file.install(copy, judged, image.descriptor)
        header_file.wipe(image.descriptor, _left(known.pins, judged), copy)
    state.save(evolve(known, pins=header.pins(judged)))
    files.rename(state.header_next, state.header_backup)
    if not image.is_named(image.path.name):
        raise Refused(
            f"the image {image.path} was replaced while its header was being changed",
            hint="the change is in the image that was there before; who else can write to its folder?",
        )
    return judged


def _noted(image: ImageFile, state: KnownState, length: int) -> AbstractContextManager[None]:
    """The ledger, where there is one, learns that the first *length* bytes change."""
    if not state.ledger.is_dir():
        return nullcontext()
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    return ledger_keeping.header_changing(state, image, length)


def _left(before: dict[str, Any] | None, now: Header) -> list[tuple[int, int]]:
    """The areas of key slots that were there before, of the same header, and no longer are."""
    if before is None or before["uuid"] != now.uuid:
        return []
    kept = {slot.area_offset for slot in now.slots}
    areas = [(slot["area_offset"], slot["area_size"]) for slot in before["slots"].values()]
    return [area for area in areas if area[0] not in kept]

"""The facts of `status`: from the record, the kernel and what is known; no key, no lock, nothing changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import LukshookError, Refused, Unavailable
from lukshook.luks import header_file
from lukshook.report.copies import CopyStatus, copies_of
from lukshook.store.image_file import look_at
from lukshook.store.room import Room
from lukshook.system import clock, json_files
from lukshook.system.text import one_line
from lukshook.volume import engine_choice, header_change, overdue, records, remote, unrecorded
from lukshook.volume.context import Site
from lukshook.volume.judgement import check_known_length
from lukshook.volume.known_state import Known, KnownState

if TYPE_CHECKING:
    from lukshook.ledger.summary import Summary

#: Changes only where a program that reads the JSON could break: a field goes, or means something else.
SCHEMA = 1


@frozen(kw_only=True)
class OpenCopy:
    """Another copy of a volume that is open, or half open, beside it."""

    state: str
    image: str | None
    mountpoint: str
    since: float
    users: tuple[str, ...]


@frozen(kw_only=True)
class VolumeStatus:
    """One volume as `status`, its JSON and the metrics show it; docs/status-json.md describes each field.

    Sizes are in bytes, times in seconds since the epoch, durations in seconds. None is for what is not known.
    """

    schema: int = SCHEMA
    name: str
    problem: str | None
    state: str
    read_only: bool
    since: float | None
    users: tuple[str, ...]
    engine: str | None
    image: str
    mountpoint: str
    data: str
    store_answers: bool
    connected: bool | None
    size: int | None
    allocated: int | None
    store_free: int | None
    capacity: int | None
    used: int | None
    last_open: float | None
    last_close: float | None
    last_success: float | None
    last_result: str | None
    duration: float | None
    last_written: int | None
    last_snapshot: float | None
    unclean: int
    trusted: bool
    header_backup: str | None
    ledger: str | None
    last_full_verify: float | None
    last_verify: str | None
    verified_share: float | None
    bad_pieces: int | None
    unknown_pieces: int | None
    last_drill: float | None
    drill_result: str | None
    drill_keys: int | None
    drill_files: int | None
    drill_compared: int | None
    drill_bytes: int | None
    open_copies: tuple[OpenCopy, ...]
    copies: tuple[CopyStatus, ...]

    @property
    def oldest_copy(self) -> float | None:
        """When the copy that is furthest behind was brought up to date."""
        return min((copy.last_copy for copy in self.copies if copy.last_copy is not None), default=None)

    @property
    def copies_behind(self) -> int | None:
        """How many copies lack what a close has stored; None where there are no copies."""
        return sum(copy.behind != 0 for copy in self.copies) if self.copies else None


#: What `VolumeStatus.ledger` says.
UP_TO_DATE, WRITING, DAMAGED = "up to date", "writing", "damaged"


def of(volume: Volume, site: Site) -> VolumeStatus:
    """Everything about one volume."""
    record, unreadable = records.look(site.run_folder, volume.name)
    state = site.state(volume)
    known, damaged = _known(state)
    silent = _silent(volume, site)
    seen = None if record is not None and record.layers else unrecorded.of(volume)
    condition = "half open" if seen else _state(record, silent=bool(silent))
    backup = state.header_backup
    found, short = (None, "") if silent else _image(volume, site, known)
    numbers, torn = _ledger(state)
    copies, damaged_copies = copies_of(volume, state)
    problems = (
        silent,
        damaged,
        damaged_copies,
        unreadable,
        unrecorded.line(volume, seen) if seen else "",
        _from_the_future(known),
        short,
        header_file.misplaced(backup),
        _unfinished(state),
        torn,
        _not_as_written(volume, numbers, found),
        overdue.line(volume, site),
    )
    return VolumeStatus(
        name=volume.name,
        problem=one_line("; ".join(filter(None, problems))) or None,
        state=condition,
        **_opened(volume, record),
        **_stored(volume, found, answers=not silent),
        **_filled(volume, known, mounted=not silent and condition not in ("closed", "half open")),
        **_noted(known),
        header_backup=os.fspath(backup) if header_file.is_there(backup) else None,
        **_verified(numbers, torn),
        open_copies=tuple(_open_copy(record) for record in records.copies(site.run_folder, volume.label_of_copies)),
        copies=copies,
    )


def _opened(volume: Volume, record: records.Record | None) -> dict[str, Any]:
    """The fields that are about where and how it is open, or would be."""
    return {
        "read_only": bool(record and record.read_only),
        "since": record.since if record else None,
        "users": tuple(one_line(user.who) for user in record.users if user.alive()) if record else (),
        "engine": record.engine if record else _engine(volume),
        "mountpoint": os.fspath(volume.mountpoint),
        "data": os.fspath(volume.data),
    }


def _stored(volume: Volume, found: Room | None, *, answers: bool) -> dict[str, Any]:
    """The fields that are about the image and its store."""
    return {
        "image": volume.image.shown,
        "store_answers": answers,
        "connected": None if volume.image.remote is None else found is not None,
        "size": found.length if found else None,
        "allocated": found.allocated if found else None,
        "store_free": found.free if found else None,
    }


def _filled(volume: Volume, known: Known, *, mounted: bool) -> dict[str, Any]:
    """The fields that are about the file system: as it is now, or as it was when it was *mounted* last."""
    capacity, used = _mounted(volume.mountpoint, known) if mounted else (known.capacity, known.used)
    return {"capacity": capacity, "used": used}


def _noted(known: Known) -> dict[str, Any]:
    """The fields that this host has noted of earlier backups and drills."""
    return {
        "last_open": known.last_open,
        "last_close": known.last_close,
        "last_success": known.last_success,
        "last_result": known.last_result or None,
        "duration": known.duration,
        "last_written": known.last_written,
        "last_snapshot": known.last_snapshot,
        "unclean": known.unclean,
        "trusted": known.pins is not None,
        "last_drill": known.last_drill,
        "drill_result": known.drill_result or None,
        "drill_keys": known.drill_keys,
        "drill_files": known.drill_files,
        "drill_compared": known.drill_compared,
        "drill_bytes": known.drill_bytes,
    }


def _open_copy(record: records.Record) -> OpenCopy:
    return OpenCopy(
        state="open read-only" if record.complete else "half open",
        image=record.layers[0][1].path if record.layers else None,
        mountpoint=record.place,
        since=record.since,
        users=tuple(one_line(user.who) for user in record.users if user.alive()),
    )


def _known(state: KnownState) -> tuple[Known, str | None]:
    """One damaged state file must not hide the other volumes."""
    try:
        return state.known, None
    except LukshookError as error:
        return Known(), error.message


def _ledger(state: KnownState) -> tuple[Summary | None, str]:
    """The numbers of the ledger, None where there is none, or it cannot be read: why, in words, else ""."""
    try:
        if not state.ledger.is_dir():
            return None, ""
        from lukshook.ledger import summary  # noqa: PLC0415 - most volumes have no ledger

        return summary.of(state.ledger), ""
    except OSError as error:
        return None, f"the ledger of volume {state.volume} cannot be read: {error.strerror}"
    except json_files.Damaged as error:
        return None, f"the ledger of volume {state.volume} is damaged: {error}; run: lukshook verify {state.volume}"


def _verified(numbers: Summary | None, torn: str) -> dict[str, Any]:
    """The fields that are about the ledger."""
    state = numbers.state if numbers else None
    standing = None if state is None else WRITING if state.writing else UP_TO_DATE
    return {
        "ledger": DAMAGED if torn else standing,
        "last_full_verify": state.verified if state else None,
        "last_verify": state.result or None if state else None,
        "verified_share": numbers.share if numbers else None,
        "bad_pieces": numbers.bad if numbers else None,
        "unknown_pieces": numbers.unknown if numbers else None,
    }


def _not_as_written(volume: Volume, numbers: Summary | None, found: Room | None) -> str:
    """That the image is not as this host wrote it, as far as that is known without reading it, or ""."""
    if numbers is None:
        return ""
    if numbers.bad:
        pieces = "1 piece of the image is" if numbers.bad == 1 else f"{numbers.bad} pieces of the image are"
        return f"{pieces} damaged; which files: lukshook verify --name-files {volume.name}"
    return numbers.state.wrong_length(found.length) if found else ""


def _from_the_future(known: Known) -> str:
    """A clock that was ahead once: what is decided by the age of a backup takes that one for none."""
    last = known.last_success
    if last is None or clock.age(last) is not None:
        return ""
    return f"the last good backup is dated {clock.show(last)}, in the future: the clock was wrong then, or is now"


def _unfinished(state: KnownState) -> str:
    """That the volume key is being replaced, or that this was interrupted, or ""."""
    try:
        header_change.check_settled(state)
    except Unavailable as error:
        return f"{error.message}: {error.hint}"
    return ""


def _short(volume: Volume, known: Known, length: int) -> str:
    """That the image, of *length* bytes, is too short for what this host knows to be in it, or ""."""
    try:
        check_known_length(volume.name, known, length)
    except Refused as error:
        return error.message
    return ""


def _engine(volume: Volume) -> str | None:
    try:
        return engine_choice.choose(volume)
    except LukshookError:
        return None


def _silent(volume: Volume, site: Site) -> str:
    """That the store does not answer, or "": then nothing is asked that hangs, and the other volumes are shown."""
    try:
        volume.image.probe(site.runner)
    except Unavailable as error:
        return error.message
    return ""


def _state(record: records.Record | None, *, silent: bool) -> str:
    if record is None or not record.layers:
        return "closed"
    sound = silent or all(handle.inspect() for name, handle in record.layers)
    if not record.complete or not sound:
        return "half open"
    return "open read-only" if record.read_only else "open"


def _image(volume: Volume, site: Site, known: Known) -> tuple[Room | None, str]:
    """Its room, None where it is not there, or not ours to look at; and that it is too short, or "".

    A remote one is there only while it is used.
    """
    short = ""
    try:
        with look_at(volume.image.image) as image:
            short = _short(volume, known, image.size)
            return remote.room_of(image, remote.attachment(volume, site)), short
    except (OSError, LukshookError):
        return None, short


def _mounted(mountpoint: Path, known: Known) -> tuple[int | None, int | None]:
    """Capacity and use of the file system, as the kernel has them."""
    try:
        found = os.statvfs(mountpoint)
    except OSError:  # closed, or its daemon killed, since we looked
        return known.capacity, known.used
    return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize

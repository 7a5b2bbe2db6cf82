"""Volumes that were opened by hand and forgotten: open for longer than `max_open` allows."""

from __future__ import annotations

from lukshook.config import Volume
from lukshook.system import clock
from lukshook.volume import records, users
from lukshook.volume.context import Site
from lukshook.volume.records import Record

#: What a person does about it.
HINT = "lukshook close NAME; for a timer: lukshook close --overdue"


def of(volume: Volume, site: Site) -> tuple[Record, ...]:
    """What is open of *volume* for too long: itself, or other copies of it. Takes no lock."""
    if volume.max_open is None:
        return ()
    record = records.peek(site.run_folder, volume.name)
    found = (*([record] if record else []), *records.copies(site.run_folder, volume.label_of_copies))
    return tuple(each for each in found if (_seconds(each) or 0.0) > volume.max_open)


def line(volume: Volume, site: Site) -> str:
    """The same in words, or ""."""
    return "; ".join(words(volume, record) for record in of(volume, site))


def words(volume: Volume, record: Record) -> str:
    """How long that has been open."""
    what = f"volume {volume.name}" if record.volume == volume.label else f"a copy of volume {volume.name}"
    allowed = clock.span(volume.max_open or 0.0)
    return f"{what} has been open by hand for {clock.span(_seconds(record) or 0.0)}, longer than max_open ({allowed})"


def _seconds(record: Record) -> float | None:
    """For how long a person has had it open, or nobody, as after a closing that failed; None while only jobs use it."""
    person = next((user for user in record.users if user == users.by_hand()), None)
    if person is not None:
        return clock.elapsed(person.since or record.began)
    return None if any(user.alive() for user in record.users) else clock.elapsed(record.began)

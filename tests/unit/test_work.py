"""A volume that is being worked on: what is read once, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import NotSafe
from lukshook.layers import mount
from lukshook.system import json_files, kernel
from lukshook.system.secret import Secret
from lukshook.volume import opening, recovery, stack, users
from lukshook.volume.backup_end import Closed
from lukshook.volume.context import Site
from lukshook.volume.history import NOT_SAFE
from lukshook.volume.known_state import KnownState
from lukshook.volume.records import Record, RecordFile
from lukshook.volume.work import work_on
from support.direct_volume import NAME, parsed, site_in


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_in(tmp_path, lambda volume: Secret(b""), print)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return parsed(tmp_path)


def test_record_and_state_are_read_once(site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record was read five times in one opening."""
    with work_on(volume, site) as work:
        work.record.save(Record(NAME, kernel.boot_id(), "kernel", False, 1.5))
        work.remember(evolve(work.state.known, unclean=2))
    read: list[str] = []
    load = json_files.load

    def noted(file: Path) -> dict[str, Any]:
        read.append(file.name)
        return load(file)

    monkeypatch.setattr(json_files, "load", noted)

    with work_on(volume, site) as work:
        for _ in range(3):
            assert work.record.load() is not None
            assert ("", 2) == (work.record.damaged, work.state.known.unclean)
            work.trust()

    assert [f"{NAME}.json"] * 2 == read


def test_a_failed_backup_does_not_end_well_because_somebody_else_closes(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own closing did not come to its end; the volume is still open when a person opens it, and closes it."""
    volume.image.image.write_bytes(bytes(1 << 20))
    left = Record(NAME, kernel.boot_id(), "kernel", False, 1.5, complete=True, to_be_noted=True, failed=True)
    with work_on(volume, site) as work:
        work.record.save(left)
    monkeypatch.setattr(opening, "recovered", lambda work: work.record.load())

    opening.open_volume(volume, users.by_hand(), site)

    with work_on(volume, site) as work:
        record, known = work.record.load(), work.state.known
    assert ("failed", None) == (known.last_result, known.last_success)
    assert record is not None
    assert ((users.by_hand(),), False) == (record.users, record.to_be_noted)


def test_a_backup_whose_volume_somebody_has_unmounted_has_not_ended_well(site: Site, volume: Volume) -> None:
    """Its closing was killed before it had written anything out; umount(8) says nothing of what is lost."""
    volume.image.image.write_bytes(bytes(1 << 20))
    record = Record(NAME, kernel.boot_id(), "kernel", False, 1.5, complete=True, to_be_noted=True).push(
        "mount", mount.Handle(str(volume.mountpoint), "/dev/mapper/lukshook-none", "254:99", "")
    )
    with work_on(volume, site) as work:
        work.record.save(record)
        assert recovery.recovered(work) is None
        assert (NOT_SAFE, None) == (work.state.known.last_result, work.state.known.last_success)


def test_a_loss_is_noted_though_the_run_folder_is_full(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `status` shows the result of the backup before."""

    def full(book: RecordFile, record: Record) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordFile, "save", full)
    record = Record(NAME, kernel.boot_id(), "kernel", False, 1.5, settled=True, lost="some of it")
    with work_on(volume, site) as work:
        stack._follow(work, record, Closed(work), NotSafe("some of it"))
        assert (NOT_SAFE, 1) == (work.state.known.last_result, work.state.known.unclean)


def test_what_an_opening_shows_takes_back_nothing_else(site: Site, volume: Volume) -> None:
    """A resize judged the image before it closed what an interrupted run had left: the count of that went back."""
    with work_on(volume, site) as work:
        trust = work.trust()
        trust.known = evolve(trust.known, filesystem="its-uuid", extent=7)
        work.remember(evolve(work.state.known, unclean=1, written=3))
        work.learn(trust, None)

    found = KnownState(site.state_folder, NAME).known
    assert (1, "its-uuid", 7, 3) == (found.unclean, found.filesystem, found.extent, found.written)

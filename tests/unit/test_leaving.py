"""A user that is done with a volume while others still use it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import NotSafe
from lukshook.layers import mount
from lukshook.system import clock, kernel, libc
from lukshook.system.secret import Secret
from lukshook.volume import closing, known_state, opening, records, users
from lukshook.volume.context import Site
from lukshook.volume.known_state import Known
from lukshook.volume.records import Record
from lukshook.volume.work import work_on
from support.fake_runner import FakeRunner

LOST = "Input/output error"
FIRST, SECOND = users.ourselves("first"), users.by_hand()


@frozen
class Shared:
    """A volume that two have open."""

    volume: Volume
    site: Site

    def leave(self, *, failed: bool = False) -> int:
        """The first goes; how many are left."""
        return len(closing.close_volume(self.volume, FIRST, self.site, failed=failed))

    @property
    def record(self) -> Record:
        found = records.peek(self.site.run_folder, self.volume.name)
        assert found is not None
        return found

    @property
    def known(self) -> Known:
        return known_state.KnownState(self.site.state_folder, self.volume.name).known

    @property
    def result(self) -> str:
        return self.known.last_result

    def change(self, **changes: Any) -> None:
        """Change the record."""
        with records.locked(self.site.run_folder, "v") as book:
            book.save(evolve(self.record, **changes))


@pytest.fixture(name="shared")
def _shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """Open for two, as far as the record and the kernel's answers go."""
    place = tmp_path / "mount"
    place.mkdir()
    table = {"image": str(tmp_path / "image"), "mountpoint": str(place), "key": f"file:{tmp_path}/key"}
    volume = config.parse({"volumes": {"v": {**table, "engine": "kernel"}}}, tmp_path / "config.toml").volumes["v"]
    site = Site(tmp_path / "run", tmp_path / "state", FakeRunner(), lambda volume: Secret(b""), print)
    layers = (("mount", mount.Handle(str(place), "", "0:0", str(tmp_path / "private"))),)
    record = Record("v", kernel.boot_id(), "kernel", False, records.now(), (FIRST, SECOND), layers, complete=True)
    with records.locked(site.run_folder, "v") as book:
        book.save(record)
    here = kernel.Mount("0:0", "/", str(place), "ext4", "", frozenset(), id=libc.mount_id(os.open(place, os.O_PATH)))
    monkeypatch.setattr(kernel, "mount_at", lambda path: here)
    monkeypatch.setattr(mount.Handle, "inspect", lambda handle: True)
    monkeypatch.setattr(mount, "flush", lambda descriptor: "")
    return Shared(volume, site)


def test_what_it_wrote_is_written_out_first(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backup is over, so it is safe now and not only when the last one closes."""
    flushed: list[int] = []

    def flush(descriptor: int) -> str:
        flushed.append(os.fstat(descriptor).st_ino)
        return ""

    monkeypatch.setattr(mount, "flush", flush)

    assert 1 == shared.leave()

    assert [shared.volume.mountpoint.stat().st_ino] == flushed
    assert ((SECOND,), "", "done") == (shared.record.users, shared.record.lost, shared.result)


def test_a_lost_write_is_told_to_it_and_to_those_that_stay(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once; it stays written down for the one who closes."""
    answers = iter([LOST])
    monkeypatch.setattr(mount, "flush", lambda descriptor: next(answers, ""))

    with pytest.raises(NotSafe, match=LOST):
        shared.leave()

    assert (SECOND,) == shared.record.users
    assert LOST in shared.record.lost
    assert "not safe" == shared.result
    with pytest.raises(NotSafe, match=LOST):
        shared.leave()


def test_a_volume_that_is_no_longer_mounted_is_not_safe(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody unmounted it, or the kernel stopped writing: nothing is there to ask."""
    monkeypatch.setattr(mount.Handle, "inspect", lambda handle: False)

    with pytest.raises(NotSafe, match="no longer open"):
        shared.leave()


def test_its_failure_is_kept(shared: Shared) -> None:
    """Status shows it while the volume is still open for others."""
    shared.leave(failed=True)

    assert "failed" == shared.result


def test_its_success_is_kept_with_its_own_duration(shared: Shared) -> None:
    """The volume is open since long, and stays so: `last_close` is of another time."""
    began, before = clock.uptime() - 100, records.now()
    shared.change(began=began - 5000, users=(evolve(FIRST, since=began), SECOND))

    shared.leave()

    known = shared.known
    assert known.last_success is not None and known.duration is not None
    assert before <= known.last_success <= records.now()
    assert 100 <= known.duration < 200
    assert (None, None) == (known.last_close, known.last_written)


def test_a_duration_that_nobody_knows_is_none(shared: Shared) -> None:
    """A record of an earlier version: since when the job uses the volume was not noted."""
    shared.leave()

    assert shared.known.last_success is not None
    assert shared.known.duration is None


def test_one_that_was_no_user_has_no_backup_that_ends(shared: Shared) -> None:
    """A second `after-backup` is no second backup."""
    shared.leave()
    first = shared.known

    shared.leave()

    assert first.last_success is not None
    assert first == shared.known


@pytest.mark.parametrize("change", [{"lost": "a file"}, {"complete": False}], ids=str)
def test_nothing_is_a_success_where_something_may_be_lost(shared: Shared, change: dict[str, Any]) -> None:
    """Also what was lost before it came, and what nobody could write out."""
    shared.leave()
    good = shared.known.last_success
    assert good is not None
    shared.change(users=(FIRST, SECOND), **change)

    with suppress(NotSafe):
        shared.leave()

    assert good == shared.known.last_success


def test_a_second_user_has_a_time_of_its_own(shared: Shared) -> None:
    """And it makes the volume one that is shared; when it comes twice, the first time counts."""
    shared.change(users=(SECOND,))
    with work_on(shared.volume, shared.site) as work:
        opening._join(shared.record, FIRST, work, read_only=False)
        joined = shared.record
        opening._join(joined, FIRST, work, read_only=False)

    assert joined == shared.record
    assert [one.since for one in joined.users] == [one.since for one in shared.record.users]
    assert (True, FIRST) == (joined.shared, joined.users[1])
    assert clock.uptime() - 60 < joined.users[1].since <= clock.uptime()


def test_a_read_only_user_has_nothing_to_lose(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written out, and what it did was no backup."""
    monkeypatch.setattr(mount, "flush", lambda descriptor: LOST)
    with records.locked(shared.site.run_folder, "v") as book:
        book.save(evolve(shared.record, read_only=True))

    assert 1 == shared.leave(failed=True)

    assert "" == shared.result


def test_a_lost_write_is_reported_also_where_the_state_is_damaged(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged state was reported instead (65): the kernel reports the loss only once, to this job."""
    monkeypatch.setattr(mount, "flush", lambda descriptor: LOST)
    shared.site.state_folder.mkdir(mode=0o700)
    (shared.site.state_folder / "v.json").write_text("{")

    with pytest.raises(NotSafe, match=LOST):
        shared.leave()

    assert LOST in shared.record.lost

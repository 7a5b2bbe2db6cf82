"""A user that is done with a volume while others still use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve, frozen

from fakes import FakeRunner
from lukshook import config, journal, kernel, session, state, users
from lukshook.config import Volume
from lukshook.errors import NotSafe
from lukshook.journal import Record
from lukshook.layers import mount
from lukshook.secret import Secret
from lukshook.site import Site

LOST = "Input/output error"
FIRST, SECOND = users.ourselves("first"), users.by_hand()


@frozen
class Shared:
    """A volume that two have open."""

    volume: Volume
    site: Site

    def leave(self, *, failed: bool = False) -> int:
        """The first goes; how many are left."""
        return len(session.close_volume(self.volume, FIRST, self.site, failed=failed))

    @property
    def record(self) -> Record:
        found = journal.peek(self.site.run_folder, self.volume.name)
        assert found is not None
        return found

    @property
    def result(self) -> str:
        return state.load(self.site.state_folder, self.volume.name).last_result


@pytest.fixture(name="shared")
def _shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """Open for two, as far as the record and the kernel's answers go."""
    place = tmp_path / "mount"
    place.mkdir()
    table = {"image": str(tmp_path / "image"), "mountpoint": str(place), "key": f"file:{tmp_path}/key"}
    volume = config.parse({"volumes": {"v": {**table, "engine": "kernel"}}}, tmp_path / "config.toml").volumes["v"]
    site = Site(tmp_path / "run", tmp_path / "state", FakeRunner(), lambda volume: Secret(b""), print)
    layers = (("mount", mount.Handle(str(place), "", "0:0", str(tmp_path / "private"))),)
    record = Record("v", kernel.boot_id(), "kernel", False, journal.now(), (FIRST, SECOND), layers, complete=True)
    with journal.locked(site.run_folder, "v") as book:
        book.save(record)
    monkeypatch.setattr(mount, "inspect", lambda handle: True)
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
    assert ((SECOND,), "", "") == (shared.record.users, shared.record.lost, shared.result)


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
    monkeypatch.setattr(mount, "inspect", lambda handle: False)

    with pytest.raises(NotSafe, match="not open any more"):
        shared.leave()


def test_its_failure_is_kept(shared: Shared) -> None:
    """Status shows it while the volume is still open for others."""
    shared.leave(failed=True)

    assert "failed" == shared.result


def test_a_read_only_user_has_nothing_to_lose(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written out, and what it did was no backup."""
    monkeypatch.setattr(mount, "flush", lambda descriptor: LOST)
    with journal.locked(shared.site.run_folder, "v") as book:
        book.save(evolve(shared.record, read_only=True))

    assert 1 == shared.leave(failed=True)

    assert "" == shared.result

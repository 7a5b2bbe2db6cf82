"""A clock that was ahead once, or is set back: nothing that is decided goes by it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lukshook.cli.status import _paragraph
from lukshook.config import Volume, parse
from lukshook.report import metrics, status
from lukshook.system import clock, kernel
from lukshook.system.secret import Secret
from lukshook.volume import backup_end, closing, known_state, stack, users
from lukshook.volume.context import Site
from lukshook.volume.known_state import Known
from lukshook.volume.records import Record
from lukshook.volume.work import work_on
from support.fake_runner import FakeRunner
from support.volume import NAME, CliVolume

DAY = 86400.0
YEAR = 365 * DAY


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "run", tmp_path / "state", FakeRunner(), lambda volume: Secret(b""), print)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    table = {"image": f"{tmp_path}/b.img", "mountpoint": f"{tmp_path}/mnt", "key": "prompt", "engine": "kernel"}
    return parse({"volumes": {NAME: table}}, tmp_path / "c.toml").volumes[NAME]


@pytest.mark.parametrize(
    ("age", "code"), [(DAY, 75), (0, 75), (-600, 75), (YEAR, 69), (-2 * DAY, 69), (-YEAR, 69), (-1e12, 69)]
)
def test_a_quiet_skip_needs_a_good_backup_that_is_not_of_the_future(tmp_path: Path, age: float, code: int) -> None:
    """After one backup dated next year, `--soft` skipped quietly for as long."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    known_state.KnownState(made.state_folder, NAME).save(Known(last_success=time.time() - age))

    assert code == made.lukshook("before-backup", NAME, "--soft").returncode
    made.remove()


@pytest.mark.parametrize("jump", [-YEAR, -DAY, 0, DAY, YEAR])
def test_how_long_a_backup_took_does_not_go_by_the_clock(
    site: Site, volume: Volume, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock was set to while the volume was open; it was the difference of two times of day."""
    monkeypatch.setattr(closing, "leftovers", lambda *_: (("mount", None),))
    monkeypatch.setattr(stack, "standing_with", lambda _: ("kernel", ()))
    monkeypatch.setattr(backup_end.Closed, "_prove_bare", lambda _: None)
    with work_on(volume, site) as work:
        record = Record(NAME, kernel.boot_id(), "kernel", False, time.time() + jump, complete=True)
        for began, least, most in ((clock.uptime() - 60, 60.0, 120.0), (clock.uptime() + 60, None, None)):
            unnoted = backup_end.to_be_noted(evolve(record, began=began), began, failed=False)
            work.record.save(unnoted)
            closing._close_last(work, unnoted)

            found = known_state.KnownState(site.state_folder, NAME).known
            assert found.last_result == "done"
            assert found.duration is None if least is None else least <= (found.duration or 0) < (most or 0)


def test_a_record_of_an_earlier_version_gives_no_duration(site: Site, volume: Volume) -> None:
    """It says only when, by the clock."""
    assert clock.elapsed(None) is None
    assert users.by_hand().alive()
    known_state.KnownState(site.state_folder, NAME).save(Known())
    file = known_state.KnownState(site.state_folder, NAME).file
    file.write_text(file.read_text().replace('"duration": null', '"duration": -108432001'))

    assert status.of(volume, site).duration is None


@pytest.mark.parametrize(("ahead", "wrong"), [(-DAY, False), (600, False), (DAY, True), (YEAR, True)])
def test_a_good_backup_of_the_future_is_a_problem(
    site: Site, volume: Volume, tmp_path: Path, ahead: float, wrong: bool
) -> None:
    """It is shown, with the problem, in `status` and for the monitoring: alone it would look good for long."""
    known_state.KnownState(site.state_folder, NAME).save(Known(last_success=time.time() + ahead))

    fact = status.of(volume, site)
    metrics.write(tmp_path / "x.prom", volume, site, failed=False)

    assert wrong == ("in the future" in (fact.problem or ""))
    assert wrong == any("PROBLEM" in line for line in _paragraph(fact))
    assert f'lukshook_problem{{volume="{NAME}"}} {int(wrong)}' in (tmp_path / "x.prom").read_text().splitlines()


@given(st.floats(-(2.0**63), 2.0**63))
def test_every_time_can_be_shown(moment: float) -> None:
    """Also one that no calendar has."""
    assert clock.show(moment)


@given(st.floats(-(2.0**63), 2.0**63))
def test_an_age_is_never_negative(moment: float) -> None:
    assert (clock.age(moment) or 0) >= 0

"""The plugin with a systemctl that the test makes: it keeps a file for each service that runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pluggy
import pytest
from lukshook.errors import BadConfiguration, Unavailable

VOLUME = SimpleNamespace(name="offsite", mountpoint=Path("/mnt/backupspace"))
OK = SimpleNamespace(failed=False, error=None)
FAKE = """#!/bin/sh
cd {folder} || exit 9
verb=$1; shift
echo "$verb $*" >> log
case $verb in
is-active) test -e "running/$2" ;;
stop) test ! -e stuck || {{ echo "Job for $1 failed." >&2; exit 1; }}; for unit; do rm "running/$unit"; done ;;
start) for unit; do touch "running/$unit"; done ;;
esac
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which two of three services run."""
    (tmp_path / "running").mkdir()
    for unit in ("paper.service", "sql.service"):
        (tmp_path / "running" / unit).touch()
    (tmp_path / "systemctl").write_text(FAKE.format(folder=tmp_path))
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "services.toml").write_text(
        '[volumes.offsite]\nunits = ["paper.service", "sql.service", "off.service"]\n'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LUKSHOOK_SERVICES", str(tmp_path / "services.toml"))
    monkeypatch.setenv("LUKSHOOK_SERVICES_RUN", str(tmp_path / "run"))
    return tmp_path


@pytest.fixture(name="call")
def _call() -> Callable[[str], None]:
    """Calls a hook as lukshook does, through pluggy."""
    (found,) = entry_points(group="lukshook", name="services")
    module = found.load()
    assert isinstance(module, ModuleType)
    manager = pluggy.PluginManager("lukshook")
    manager.register(module)

    def call(hook: str) -> None:
        getattr(manager.hook, hook)(volume=VOLUME, **({} if hook == "before_backup" else {"outcome": OK}))

    return call


def running(folder: Path) -> set[str]:
    """The services that run."""
    return {unit.name for unit in (folder / "running").iterdir()}


BOTH = {"paper.service", "sql.service"}


def test_services_stand_still_during_the_backup(folder: Path, call: Callable[[str], None]) -> None:
    """And only what ran before runs afterwards."""
    call("before_backup")
    assert set() == running(folder)

    call("after_backup")
    assert running(folder) == BOTH


def test_a_second_after_starts_nothing(folder: Path, call: Callable[[str], None]) -> None:
    """An administrator may have stopped one meanwhile."""
    call("before_backup")
    call("after_backup")
    (folder / "running/sql.service").unlink()

    call("after_backup")
    call("report")

    assert running(folder) == {"paper.service"}


def test_a_killed_backup_is_made_good_by_the_next_one(folder: Path, call: Callable[[str], None]) -> None:
    """The second "before" finds nothing that runs, and forgets nothing."""
    call("before_backup")
    call("before_backup")

    call("after_backup")

    assert running(folder) == BOTH


def test_another_plugin_that_says_no(folder: Path, call: Callable[[str], None]) -> None:
    """Then lukshook calls `report`, and no "after"."""
    call("before_backup")

    call("report")

    assert running(folder) == BOTH


def test_a_service_that_does_not_stop_is_no_backup(folder: Path, call: Callable[[str], None]) -> None:
    """Half of its files could be of before and half of after."""
    (folder / "stuck").touch()

    with pytest.raises(Unavailable, match=r"cannot stop paper\.service sql\.service: Job for paper\.service failed"):
        call("before_backup")

    assert running(folder) == BOTH
    assert "start paper.service sql.service" == (folder / "log").read_text().splitlines()[-1]


def test_a_volume_that_is_not_named_stops_nothing(folder: Path, call: Callable[[str], None]) -> None:
    (folder / "services.toml").unlink()

    call("before_backup")
    call("after_backup")

    assert not (folder / "log").exists()


@pytest.mark.parametrize(
    "units", ['["--force.service"]', '["paper"]', '"paper.service"', "[1]", '["a.service"]\nother = 1']
)
def test_a_wrong_file_stops_the_backup(folder: Path, call: Callable[[str], None], units: str) -> None:
    """Before anything is stopped."""
    (folder / "services.toml").write_text(f"[volumes.offsite]\nunits = {units}\n")

    with pytest.raises(BadConfiguration, match=r"services\.toml"):
        call("before_backup")

    assert running(folder) == BOTH

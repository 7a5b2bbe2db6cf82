"""The hook contract, on real pluggy."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from lukshook import config, hookimpl
from lukshook.errors import BadConfiguration, Busy, LukshookError, Unavailable
from lukshook.hookspecs import Hooks, Outcome
from lukshook.plugins import entry_points, manager
from lukshook.plugins import open_and_close as plugin
from lukshook.plugins.entry_points import Plugin
from lukshook.plugins.open_and_close import OpenAndClose
from lukshook.system.command import DryRunRunner
from lukshook.volume import users
from lukshook.volume.context import Site

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/third_party_plugin/src"
VOLUME = config.parse(
    {"volumes": {"offsite": {"image": "/srv/b.img", "mountpoint": "/mnt/b", "key": "prompt"}}}, Path("/c")
).volumes["offsite"]


class Other:
    """Another plugin; raises where it is told to."""

    def __init__(self, events: list[str], raises: dict[str, Exception] | None = None) -> None:
        self._events = events
        self._raises = raises or {}
        self.outcomes: list[Outcome] = []

    def _happen(self, what: str) -> None:
        self._events.append(what)
        if what in self._raises:
            raise self._raises[what]

    @hookimpl
    def before_backup(self, volume: config.Volume) -> None:
        """Note it."""
        self._happen("before")

    @hookimpl
    def after_backup(self, volume: config.Volume, outcome: Outcome) -> None:
        """Note it."""
        self._happen("after")

    @hookimpl
    def report(self, volume: config.Volume, outcome: Outcome) -> None:
        """Keep what is told."""
        self.outcomes.append(outcome)
        self._happen("report")


@pytest.fixture(name="events")
def _events() -> list[str]:
    return []


@pytest.fixture(name="ours")
def _ours(events: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OpenAndClose]:
    """Our plugin, with opening and closing only noted."""
    fake = SimpleNamespace(
        open_volume=lambda *a, **k: events.append("OPEN"), close_volume=lambda *a, **k: events.append("CLOSE")
    )
    monkeypatch.setattr(plugin, "opening", fake)
    monkeypatch.setattr(plugin, "closing", fake)
    warned: list[str] = []
    site = Site(tmp_path, tmp_path, DryRunRunner(), lambda _: pytest.fail("the key was asked for"), warned.append)
    yield OpenAndClose(site, users.ourselves("test"))
    events.extend(warned)


def install(monkeypatch: pytest.MonkeyPatch, *plugins: object) -> None:
    """Have *plugins* found as if they were installed."""

    found = [
        SimpleNamespace(name=f"p{i}", shown=f"p{i}", distribution="d", load=lambda p=p: p)
        for i, p in enumerate(plugins)
    ]
    monkeypatch.setattr(entry_points, "plugins", lambda warn: found)


@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_installed_plugins_are_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with an entry point in our group is seen wherever Python looks for distributions, once."""
    group = "[console_scripts]\na = b\n[lukshook]\n# no plugin = x\n webhook = webhook:plugin \n[other]\nc = d\n"
    for folder in ("first", "second"):
        listed = tmp_path / folder / f"Web_hook-1.0.{kind}" / "entry_points.txt"
        listed.parent.mkdir(parents=True)
        listed.write_text(group)
        group = group.replace("webhook", "shadowed")
    monkeypatch.setattr(sys, "path", [str(tmp_path / folder) for folder in ("nothing", "first", "second")])

    assert (Plugin("webhook", "webhook:plugin", "web-hook"),) == entry_points.plugins(pytest.fail)


def test_ours_encloses_the_others(ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume opens before and closes after every other plugin; reports come when it is closed."""
    install(monkeypatch, Other(events))

    manager.before(ours, VOLUME)
    manager.after(ours, VOLUME, failed=False)

    assert ["OPEN", "before", "after", "CLOSE", "report"] == events


def test_a_plugin_that_raises_before_stops_the_backup(
    ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume is closed again, and whoever reports is told."""
    other = Other(events, {"before": Unavailable("no")})
    install(monkeypatch, other)

    with pytest.raises(Unavailable):
        manager.before(ours, VOLUME)

    assert ["OPEN", "before", "CLOSE", "report"] == events
    assert other.outcomes[0].failed


def test_a_plugin_that_raises_after_does_not_keep_it_open(
    ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pluggy stops at the first that raises; ours is around them all."""
    install(monkeypatch, Other(events, {"after": LukshookError("no")}), Other(events))

    with pytest.raises(LukshookError):
        manager.after(ours, VOLUME, failed=False)

    assert "CLOSE" in events


def test_a_failed_close_is_reported_as_failed(
    ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor must not be told that all is well when the backup is not safely stored."""
    other = Other(events)
    install(monkeypatch, other)

    def close(*a: Any, **k: Any) -> None:
        raise Busy("in use")

    monkeypatch.setattr(plugin, "closing", SimpleNamespace(close_volume=close))

    with pytest.raises(Busy):
        manager.after(ours, VOLUME, failed=False)

    assert other.outcomes[0].failed
    assert isinstance(other.outcomes[0].error, Busy)


def test_the_example_plugin_stops_services_while_the_volume_is_open(
    ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own tests try the rest of it; a second "after" starts nothing."""
    monkeypatch.syspath_prepend(EXAMPLE)
    services = importlib.import_module("lukshook_services")
    (tmp_path / "services.toml").write_text('[volumes.offsite]\nunits = ["paper.service"]\n')
    monkeypatch.setenv("LUKSHOOK_SERVICES", str(tmp_path / "services.toml"))
    monkeypatch.setenv("LUKSHOOK_SERVICES_RUN", str(tmp_path / "stopped"))
    monkeypatch.setattr(services.units, "running", lambda units: units)
    monkeypatch.setattr(services.units, "systemctl", lambda verb, *units: events.append(f"{verb} {units}"))
    install(monkeypatch, services)

    manager.before(ours, VOLUME)
    manager.after(ours, VOLUME, failed=False)
    manager.after(ours, VOLUME, failed=False)

    assert ["OPEN", "stop ('paper.service',)", "start ('paper.service',)", "CLOSE", "CLOSE"] == events


def test_a_failing_report_is_only_a_warning(
    ours: OpenAndClose, events: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The backup is what it is by then."""
    install(monkeypatch, Other(events, {"report": ValueError("no network")}))

    manager.after(ours, VOLUME, failed=False)

    assert ["after", "CLOSE", "report"] == events


def test_a_misspelt_hook_is_an_error(ours: OpenAndClose, monkeypatch: pytest.MonkeyPatch) -> None:
    """pluggy alone would never call it, and never say so."""

    class Misspelt:
        @hookimpl
        def befor_backup(self, volume: config.Volume) -> None:
            """Never called."""

    install(monkeypatch, Misspelt())

    with pytest.raises(BadConfiguration) as caught:
        manager.before(ours, VOLUME)

    assert "befor_backup" in caught.value.message


def test_no_hook_is_given_the_key() -> None:
    """Plugins, and pluggy's own tracing, see every argument."""
    specs = pluggy.PluginManager("lukshook")
    specs.add_hookspecs(Hooks)
    arguments = {name for hook in vars(specs.hook).values() if hasattr(hook, "spec") for name in hook.spec.argnames}

    assert {"volume", "outcome"} == arguments
    assert not hasattr(Site, "key")


def test_a_list_of_entry_points_is_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe in the place of one is a warning, and so is a folder that cannot be read."""
    (tmp_path / "odd-1.0.dist-info").mkdir()
    os.mkfifo(tmp_path / "odd-1.0.dist-info/entry_points.txt")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    warnings: list[str] = []

    assert () == entry_points.plugins(warnings.append)

    assert 1 == len(warnings)
    assert "plugins may be missing" in warnings[0]

"""Plugins that fail, with a real volume: it is closed, and what keeps it open is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lukshook.volume.context import Site
from support import installed_plugins
from support.installed_plugins import IMPORT, code
from support.lukshook_process import Done
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


@pytest.fixture(name="plugins")
def _plugins(tmp_path: Path) -> Path:
    return tmp_path / "site-packages"


def lukshook(volume: CliVolume, plugins: Path, *arguments: str) -> Done:
    """Run it with what is installed in *plugins*."""
    return volume.start(*arguments, prepare=installed_plugins.on_path(plugins)).wait()


def shorter(volume: CliVolume, plugins: Path, *arguments: str) -> Done:
    """The same, with little patience for those who keep the volume open."""

    def prepare() -> None:
        installed_plugins.on_path(plugins)()
        defaults = list(Site.__init__.__defaults__ or ())
        defaults[defaults.index(30.0)] = 0.2
        Site.__init__.__defaults__ = tuple(defaults)

    return volume.start(*arguments, prepare=prepare).wait()


def test_a_plugin_that_breaks_during_the_backup(volume: CliVolume, plugins: Path) -> None:
    """An upgrade between "before" and "after": the volume is closed, and then it is told."""
    installed_plugins.install(plugins, code())
    assert 0 == lukshook(volume, plugins, "before-backup", NAME).returncode
    (volume.data / "file").write_text("content")
    installed_plugins.install(plugins, "import no_such_module")

    done = lukshook(volume, plugins, "after-backup", NAME)

    assert (78, True) == (done.returncode, volume.is_bare())
    assert "plugin bad cannot be loaded" in done.stderr
    assert "volume offsite is closed" in done.stderr
    assert 78 == lukshook(volume, plugins, "before-backup", NAME).returncode
    assert volume.is_bare()


@pytest.mark.parametrize("place", [IMPORT, "before_backup", "after_backup"])
def test_a_plugin_that_exits_never_makes_a_success(volume: CliVolume, plugins: Path, place: str) -> None:
    """Under `run`: nothing is left open, and the status is not that of the plugin."""
    installed_plugins.install(plugins, code(**{place: "sys.exit(0)"}))

    done = lukshook(volume, plugins, "run", NAME, "--", "false")

    assert (78, []) == (done.returncode, volume.standing()), done.stderr
    assert "plugin bad" in done.stderr


INSIDE = {
    "stands in it": "os.chdir(volume.mountpoint)",
    "fails with a file of it open": "file = open(volume.mountpoint / 'x', 'w')\nraise ValueError('no')",
    "forgets a file of it in a cycle": "cycle = [open(volume.mountpoint / 'x', 'w')]\ncycle.append(cycle)",
}


@pytest.mark.parametrize("place", ["before_backup", "after_backup"])
@pytest.mark.parametrize("what", INSIDE.values(), ids=INSIDE)
def test_a_plugin_that_is_in_the_volume_does_not_keep_it_open(
    volume: CliVolume, plugins: Path, place: str, what: str
) -> None:
    """It is closed at once, as if there were no plugin."""
    installed_plugins.install(plugins, code(**{place: what}))

    done = lukshook(volume, plugins, "run", NAME, "--", "true")

    assert (78 if "raise" in what else 0, True) == (done.returncode, volume.is_bare()), done.stderr


@pytest.mark.parametrize("keeps", ["sys.kept = open(file, 'w')", "os.dup2(os.open(file, os.O_CREAT | os.O_RDWR), 77)"])
def test_a_plugin_that_keeps_a_file_open_is_named(volume: CliVolume, plugins: Path, keeps: str) -> None:
    """We are the holder ourselves; it is let go of when we end."""
    installed_plugins.install(plugins, code(before_backup=f"file = volume.mountpoint / 'kept'\n{keeps}"), name="keeper")

    done = shorter(volume, plugins, "run", NAME, "--", "true")

    assert 71 == done.returncode
    assert f"by lukshook itself, a plugin (keeper) keeps {volume.mountpoint}/kept open" in done.stderr
    assert 0 == volume.lukshook("close", NAME).returncode
    assert volume.is_bare()


def test_a_file_that_a_thread_opens_later_is_named_without_the_plugin(volume: CliVolume, plugins: Path) -> None:
    """And a plugin in our own process is not ended with --kill-holders: we would end ourselves."""
    body = (
        "opened = threading.Event()\n"
        "def work():\n    go.wait()\n    sys.kept = open(volume.mountpoint / 'kept', 'w')\n    opened.set()\n"
        "go = threading.Event()\nthreading.Thread(target=work, daemon=True).start()\n"
        "globals().update(go=go, opened=opened)"
    )
    # The thread opens it while lukshook closes, after the last hook before that.
    later = "import lukshook.volume.closing as s\nclose = s.close_volume\n"
    later += "def closing(*a, **k):\n    go.set(); opened.wait(); return close(*a, **k)\ns.close_volume = closing"
    installed_plugins.install(plugins, code(after_backup=f"{body}\n{later}"))
    assert 0 == volume.lukshook("before-backup", NAME).returncode

    done = shorter(volume, plugins, "after-backup", NAME, "--kill-holders")

    assert 71 == done.returncode, done
    assert f"by lukshook itself, it keeps {volume.mountpoint}/kept open" in done.stderr
    assert 0 == volume.lukshook("close", NAME).returncode


@pytest.mark.parametrize("place", [IMPORT, "before_backup", "after_backup", "report"])
def test_a_plugin_that_ends_the_process(volume: CliVolume, plugins: Path, place: str) -> None:
    """os._exit cannot be caught. What stands is closed by the next run, with all that was written."""
    installed_plugins.install(plugins, code(**{place: "os._exit(0)"}))
    lukshook(volume, plugins, "run", NAME, "--", "sh", "-c", f"echo content > '{volume.data}/file'")
    installed_plugins.install(plugins, code())

    done = lukshook(volume, plugins, "run", NAME, "--", "ls", str(volume.data))

    assert (0, True) == (done.returncode, volume.is_bare()), done.stderr
    assert ("file" in done.stdout) == (place in ("after_backup", "report"))


def test_a_job_in_a_volume_that_is_open_by_hand_is_recorded(volume: CliVolume, tmp_path: Path) -> None:
    """In `status` and the metrics, with its own duration; `last_close` moves only when the volume closes."""
    volume.config.write_text(f'metrics = "{tmp_path}/metrics.prom"\n' + volume.config.read_text())
    volume.do("open", NAME)

    def facts() -> dict[str, object]:
        found: list[dict[str, object]] = json.loads(volume.do("status", NAME, "--json"))
        return found[0]

    before = facts()
    volume.do("run", NAME, "--", "sh", "-c", f"echo content > '{volume.data}/file'")
    first = facts()
    assert (None, before["last_close"]) == (before["last_success"], first["last_close"])
    assert ("done", None) == (first["last_result"], first["last_written"])
    assert isinstance(first["duration"], float)
    assert "last_success_timestamp_seconds" in (tmp_path / "metrics.prom").read_text()

    assert 3 == volume.lukshook("run", NAME, "--", "sh", "-c", "exit 3").returncode
    failed = facts()
    assert ("failed", first["last_success"]) == (failed["last_result"], failed["last_success"])

    volume.do("close", NAME)
    closed = facts()
    assert failed["last_success"] == closed["last_success"]
    assert before["last_close"] != closed["last_close"]
    assert os.path.exists(volume.image)

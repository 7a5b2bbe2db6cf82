"""`status` of several volumes: aligned, in colours on a terminal alone, and again and again with --watch."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.cli import table
from lukshook.config import Volume
from lukshook.report import status
from lukshook.report.status import VolumeStatus
from lukshook.system import clock
from lukshook.system.secret import Secret
from lukshook.volume.context import Site
from support.configuration import configuration
from support.fake_runner import FakeRunner
from support.volume import NAME, CliVolume

HOUR, DAY = 3600.0, 86400.0
RED, YELLOW = "\x1b[31m", "\x1b[33m"


def shown(folder: Path, *changes: dict[str, object], colours: bool = False) -> list[str]:
    """The lines of the table of volumes that are called a, ab, abc and so on, by what is known of each."""
    names = ["abcdefgh"[: number + 1] for number in range(len(changes))]
    tables = {
        name: {"image": f"{folder}/{name}.img", "mountpoint": f"{folder}/{name}", "key": "prompt"} for name in names
    }
    volumes = config.parse({"volumes": tables}, Path("/c")).volumes
    site = Site(folder / "run", folder / "state", FakeRunner(), lambda _: Secret(b""), print)
    pairs: list[tuple[Volume, VolumeStatus]] = [
        (volumes[name], evolve(status.of(volumes[name], site), **change))  # type: ignore[arg-type]
        for name, change in zip(names, changes, strict=True)
    ]
    return table.lines(pairs, colours=colours)


def test_every_column_is_aligned(tmp_path: Path) -> None:
    now = clock.now()
    good = {
        "last_success": now - 3 * HOUR,
        "last_result": "done",
        "used": 57,
        "capacity": 100,
        "ledger": status.UP_TO_DATE,
        "last_full_verify": now - 12 * DAY,
        "last_verify": "intact",
        "drill_result": "passed",
        "last_drill": now - 40 * DAY,
    }

    assert [
        "VOLUME  STATE   LAST BACKUP  FULL  VERIFIED  DRILL",
        "a       closed  3 h ago      57 %  12 d ago  40 d ago",
        "ab      closed  never        -     -         -",
    ] == shown(tmp_path, good, {})


@pytest.mark.parametrize(
    ("change", "cell", "colour"),
    [
        ({"last_success": -3 * HOUR}, "3 h ago", ""),
        ({"last_success": -8 * DAY}, "8 d ago", RED),
        ({"last_success": 30 * DAY}, "in the future", RED),
        ({"last_success": None}, "never", YELLOW),
        ({"last_success": -3 * HOUR, "last_result": "failed"}, "3 h ago, then failed", RED),
        ({"used": 89, "capacity": 100}, "89 %", ""),
        ({"used": 90, "capacity": 100}, "90 %", YELLOW),
        ({"state": "half open"}, "half open", RED),
        ({"ledger": status.UP_TO_DATE}, "never", YELLOW),
        ({"ledger": status.UP_TO_DATE, "last_verify": "damaged"}, "damaged", RED),
        ({"ledger": status.UP_TO_DATE, "bad_pieces": 1}, "damaged", RED),
        ({"ledger": status.DAMAGED}, "ledger damaged", RED),
        ({"drill_result": "failed"}, "failed", RED),
        ({"drill_result": "passed", "last_drill": -40 * DAY}, "40 d ago", ""),
    ],
)
def test_what_is_bad_is_red(tmp_path: Path, change: dict[str, object], cell: str, colour: str) -> None:
    """Moments are given by their distance from now."""
    moments = {
        name: value + clock.now() if name in ("last_success", "last_drill") and isinstance(value, float) else value
        for name, value in change.items()
    }
    good = {"last_success": clock.now(), "last_result": "done"}

    line = shown(tmp_path, good | moments, colours=True)[1]

    assert (f"{colour}{cell}\x1b[0m" if colour else cell) in line
    assert bool(colour) == ("\x1b" in line)
    assert re.sub(r"\x1b\[\d+m", "", line) == shown(tmp_path, good | moments)[1]


def test_a_problem_has_a_line_of_its_own(tmp_path: Path) -> None:
    """Whatever is in the name of a file."""
    assert "ab: it is \\x1b[2J gone" == shown(tmp_path, {}, {"problem": "it is \x1b[2J gone"})[-1]


# The command, on a terminal and in a pipe


@pytest.fixture(name="two")
def _two(tmp_path: Path) -> CliVolume:
    """Two volumes in a configuration; nothing was ever made."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    other = made.values(image=f"{tmp_path}/store/o.img", mountpoint=f"{tmp_path}/o")
    made.config.write_text(made.config.read_text() + configuration("other", **other))
    return made


class Terminal:
    """A lukshook on a terminal of its own."""

    def __init__(self, volume: CliVolume, *words: str, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        program = (
            "from lukshook.cli import status; status._PERIOD = 0.01; from lukshook.cli.main import lukshook; lukshook()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            env={**volume.environment, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )
        os.close(theirs)
        self.seen = b""

    def read(self) -> bool:
        """Take in what comes; False when it has ended."""
        if not select.select([self.ours], [], [], 240)[0]:
            raise TimeoutError(self.seen)
        try:
            self.seen += os.read(self.ours, 65536)
        except OSError:  # EIO: nobody has the other side open (pty(7))
            return False
        return True

    def end(self) -> tuple[int, str]:
        """Exit status and all that was shown."""
        while self.read():
            pass
        os.close(self.ours)
        return self.process.wait(), self.seen.decode()


def test_a_terminal_has_colours(two: CliVolume) -> None:
    status, seen = Terminal(two, "status").end()

    assert 0 == status
    assert f"{YELLOW}never\x1b[0m" in seen
    assert {NAME, "other", "VOLUME"} <= {line.split(" ")[0] for line in seen.splitlines()}


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_has_none(two: CliVolume, environment: dict[str, str]) -> None:
    assert "\x1b" not in Terminal(two, "status", **environment).end()[1]


def test_a_pipe_has_no_colours(two: CliVolume) -> None:
    assert "\x1b" not in two.do("status", TERM="xterm")
    assert two.do("status", NAME).startswith(f"{NAME}: closed\n  image ")


def test_watching_goes_on_until_it_is_stopped(two: CliVolume) -> None:
    """On one screen; that it was stopped is no failure."""
    terminal = Terminal(two, "status", "--watch")
    while terminal.seen.count(b"\x1b[HVOLUME") < 3:
        assert terminal.read()
    terminal.process.send_signal(signal.SIGINT)

    status, seen = terminal.end()

    assert 0 == status
    assert 1 == seen.count("\x1b[2J")


@pytest.mark.parametrize("words", [("--watch",), ("--watch", "--json")])
def test_watching_needs_a_terminal(two: CliVolume, words: tuple[str, ...]) -> None:
    assert "--watch is for a terminal" == two.refusal(64, "status", *words)


def test_a_volume_that_is_unknown_is_told_as_always(two: CliVolume) -> None:
    status, seen = Terminal(two, "status", "--watch", "none").end()

    assert (66, "") == (status, seen)

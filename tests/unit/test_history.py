"""What is kept of past backups, and what `history` makes of it."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve, fields

from lukshook.errors import Unavailable
from lukshook.report import growth
from lukshook.system import clock
from lukshook.volume import history
from lukshook.volume.history import Run
from lukshook.volume.known_state import Known, KnownState
from support.volume import NAME, CliVolume

DAY = 86400.0
GIB = 1 << 30
START = 1_790_000_000.0
KNOWN = Known(last_result="done", duration=61.5, last_written=5 << 20, used=3 * GIB, capacity=10 * GIB)


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> KnownState:
    made = KnownState(tmp_path / "state", NAME)
    made.make_folder()
    return made


def note(state: KnownState, known: Known = KNOWN) -> list[str]:
    """Note a backup; the warnings."""
    warnings: list[str] = []
    history.add(state, known, warnings.append)
    return warnings


def test_each_backup_is_kept(state: KnownState) -> None:
    before = clock.now()

    assert [] == note(state) + note(state, evolve(KNOWN, last_result="failed", duration=None))

    first, second = history.read(state)
    assert before <= first.ended <= second.ended <= clock.now()
    assert ("done", 61.5, 5 << 20, 3 * GIB, 10 * GIB) == (
        *(first.result, first.duration, first.written),
        *(first.used, first.capacity),
    )
    assert ("failed", None) == (second.result, second.duration)
    assert 0o600 == state.history.stat().st_mode & 0o777


def test_a_lost_backup_has_no_numbers_of_the_one_before(state: KnownState) -> None:
    note(state, evolve(KNOWN, last_result=history.NOT_SAFE))

    (run,) = history.read(state)
    assert (history.NOT_SAFE, None, None) == (run.result, run.duration, run.written)


def test_the_history_has_an_end(state: KnownState, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older half goes, in whole lines."""
    monkeypatch.setattr(history, "_MOST_BYTES", 2000)
    (state.folder / f"{NAME}.history.0123abcd.part").write_bytes(b"what a kill has left")
    for number in range(100):
        note(state, evolve(KNOWN, last_written=number))
        assert state.history.stat().st_size < 2500

    numbers = [run.written for run in history.read(state)]
    assert list(range(100 - len(numbers), 100)) == numbers
    assert len(numbers) >= 5
    assert [state.history] == list(state.folder.iterdir())


@pytest.mark.parametrize(
    "torn",
    [
        b'\n{"ended": 17',
        b"\n\x00\xff",
        b"\n[]",
        b'\n{"ended": "x"}',
        b"\n" + b"[" * 5000,
        b'\n{"ended": NaN, "result": ""}',
    ],
)
def test_a_torn_line_costs_no_other(state: KnownState, torn: bytes) -> None:
    """A power cut in the middle of it."""
    note(state)
    with state.history.open("ab") as file:
        file.write(torn)
    note(state)

    assert 2 == len(history.read(state))


def link(place: Path) -> None:
    (place.parent / "elsewhere").write_bytes(b"")
    place.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link], ids=["folder", "pipe", "link"])
def test_what_hinders_it_is_a_warning(state: KnownState, make: Callable[[Path], None]) -> None:
    """And never waits, nor writes elsewhere."""
    make(state.history)

    (warning,) = note(state)

    assert warning.startswith(f"the history of volume {NAME} is not written: ")
    if (state.folder / "elsewhere").exists():
        assert b"" == (state.folder / "elsewhere").read_bytes()


def test_a_history_that_is_no_file_is_an_error_of_history_alone(state: KnownState) -> None:
    state.history.mkdir()

    with pytest.raises(Unavailable, match="cannot be read"):
        history.read(state)


# The forecast


def runs(*used: float | None, every: float = DAY, capacity: int = 100 * GIB) -> list[Run]:
    """Backups at equal distances, by what was used in GiB."""
    return [
        Run(
            ended=START + number * every,
            result="done",
            used=None if gib is None else int(gib * GIB),
            capacity=None if gib is None else capacity,
        )
        for number, gib in enumerate(used)
    ]


def test_a_volume_that_grows_evenly_is_full_when_it_has_to_be() -> None:
    found = growth.of(runs(10, 12, 14, 16, 18, 20))

    assert found is not None
    assert pytest.approx(2 * GIB) == found.per_day
    assert found.full_at is not None
    assert pytest.approx(START + (5 + 40) * DAY, abs=60) == found.full_at


def test_one_large_backup_does_not_decide_alone() -> None:
    """The line goes through all of them; what is not known is left out."""
    found = growth.of(runs(10, None, 10, 10, 30, 10, 10))

    assert found is not None
    assert abs(found.per_day) < 2 * GIB


@pytest.mark.parametrize("used", [(10, 10, 10), (20, 15, 10), (10, 10.0001, 10.0002)])
def test_a_volume_that_does_not_grow_is_not_full_soon(used: tuple[float, ...]) -> None:
    found = growth.of(runs(*used))

    assert found is not None
    assert found.full_at is None


def test_what_was_long_ago_does_not_count() -> None:
    """It grew by 1 GiB a day for months, and stands still since."""
    found = growth.of(runs(*range(200), *[200] * 91, capacity=1000 * GIB))

    assert found is not None
    assert found.full_at is None


@pytest.mark.parametrize("few", [[], runs(1), runs(1, 2), runs(1, 2, 3, every=60), runs(None, None, None)])
def test_too_little_is_no_forecast(few: list[Run]) -> None:
    assert growth.of(few) is None


def test_a_clock_that_was_set_back_is_no_division_by_zero() -> None:
    assert growth.of([evolve(run, ended=START) for run in runs(1, 2, 3, 4)]) is None


# The command


@pytest.fixture(name="volume")
def _volume(tmp_path: Path) -> CliVolume:
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    return made


def keep(volume: CliVolume, found: list[Run]) -> None:
    """Have these in the history of *volume*."""
    state = KnownState(volume.state_folder, NAME)
    state.make_folder()
    lines = [json.dumps({field.name: getattr(run, field.name) for field in fields(Run)}) for run in found]
    state.history.write_text("\n" + "\n\n".join(lines))


def test_a_volume_without_backups_says_so(volume: CliVolume) -> None:
    assert f"{NAME}: no backup is noted yet\n" == volume.do("history", NAME)
    assert [] == json.loads(volume.do("history", NAME, "--json"))["runs"]


def test_the_plots_show_every_backup(volume: CliVolume) -> None:
    """Six rows high, a column for each, and the forecast below."""
    keep(volume, [evolve(run, duration=60.0 * n, written=n << 20) for n, run in enumerate(runs(25, 50, 75, 100), 1)])

    shown = volume.do("history", NAME)

    assert shown.startswith(f"{NAME}: 4 backups, ")
    assert (
        "  fill level: 100 % now, the top is 100 %\n  |   #\n  |  ##\n  |  ##\n  | ###\n  |####\n  |####\n  +----\n"
        in shown
    )
    assert "duration: the longest took 4 min" in shown
    assert "written: the most was 4" in shown
    assert re.search(r"\nfull about 20\d\d-\d\d-\d\d; it grows by 175GiB a week\n$", shown)


def test_many_backups_fit_on_a_terminal(volume: CliVolume) -> None:
    """The highest of several is shown."""
    keep(volume, runs(*[1] * 500, 90, *[1] * 499))

    shown = volume.do("history", NAME)

    assert max(map(len, shown.splitlines())) <= 80
    assert "  |" + " " * 30 + "#\n" in shown


def test_backups_that_failed_are_counted(volume: CliVolume) -> None:
    keep(volume, [*runs(1, 1, 1, 1), Run(ended=START + 9 * DAY, result="failed")])

    assert ", 1 of them not good\n" in volume.do("history", NAME)


def test_a_spreadsheet_gets_each_backup(volume: CliVolume) -> None:
    keep(volume, [*runs(1, 2), Run(ended=1e300, result="failed"), Run(ended=-9e15, result="failed")])

    header, first, *_, last = csv.reader(volume.do("history", NAME, "--csv").splitlines())

    assert [field.name for field in fields(Run)] == header
    assert ["2026-09-21T14:13:20+00:00", "done", "", "", str(GIB), str(100 * GIB)] == first
    assert "-9000000000000000" == last[0]


def test_a_program_gets_the_forecast_as_well(volume: CliVolume) -> None:
    """With the fields that docs/status-json.md describes."""
    keep(volume, runs(10, 20, 30))

    found = json.loads(volume.do("history", NAME, "--json"))

    page = (Path(__file__).parents[2] / "docs/status-json.md").read_text().partition("`lukshook history --json`\n")[2]
    described = re.findall(r"^\| (`.*?`) \|", page.partition("\n## ")[0], re.M)
    names = [name for cell in described for name in re.findall(r"`(\w+)`", cell)]
    assert [*found, *found["runs"][0]] == names
    assert pytest.approx(10 * GIB) == found["per_day"]
    assert 3 == len(found["runs"])


SVG = "{http://www.w3.org/2000/svg}"


def drawn(volume: CliVolume) -> ElementTree.Element:
    """The page as a viewer reads it: nothing but ours, in black, and within its edges."""
    page = ElementTree.fromstring(volume.do("history", NAME, "--svg"))
    assert f"{SVG}svg" == page.tag
    for part in page.iter():
        assert {part.get("fill"), part.get("stroke")} <= {None, "white", "black", "none"}
        points = [float(number) for point in part.get("points", "").split() for number in point.split(",")]
        across = [float(part.get(name, "1")) for name in ("x", "cx")] + points[::2]
        down = [float(part.get(name, "1")) for name in ("y", "cy")] + points[1::2]
        assert all(0 <= number <= 595 for number in across)
        assert all(0 <= number <= 842 for number in down)
    return page


def test_a_page_shows_every_backup(volume: CliVolume) -> None:
    """Three curves with a point for each backup, a cross for one that failed, and the forecast."""
    good = [evolve(run, duration=60.0 * n, written=n << 20) for n, run in enumerate(runs(25, 50, 75, 100), 1)]
    keep(volume, [*good, Run(ended=START + 9 * DAY, result="failed")])

    page = drawn(volume)

    assert 3 == len(page.findall(f"{SVG}polyline"))
    assert 12 == len(page.findall(f"{SVG}circle"))
    crosses = [path for path in page.findall(f"{SVG}path") if "l6 6" in path.get("d", "")]
    assert 3 == len(crosses)
    texts = [text.text or "" for text in page.findall(f"{SVG}text")]
    assert f"Backups to volume {NAME}" in texts
    assert {"Fill level", "Duration", "Bytes written", "100 %", "4 min"} <= set(texts)
    assert any("not good (crosses): 1" in text for text in texts)
    assert any(text.startswith("full about ") for text in texts)


@pytest.mark.parametrize(
    "found",
    [
        *([], runs(7), runs(None), runs(1, 2, every=0), runs(*range(1, 900))),
        [*runs(1, 2), Run(ended=1e300, result="failed", duration=-5.0), Run(ended=-9e15, result="a<b>&")],
    ],
    ids=["none", "one", "nothing known", "at once", "many", "odd"],
)
def test_a_page_of_odd_backups_is_drawn(volume: CliVolume, found: list[Run]) -> None:
    keep(volume, found)

    assert drawn(volume).findall(f"{SVG}text")


@pytest.mark.parametrize(("one", "other"), [("--json", "--csv"), ("--csv", "--svg"), ("--json", "--svg")])
def test_two_forms_at_once_are_refused(volume: CliVolume, one: str, other: str) -> None:
    assert f"{one} and {other} cannot be combined" in volume.refusal(64, "history", NAME, one, other)

"""Whatever a command does, and whenever we are stopped: nothing is left, nothing is lost, and the next run works.

For any engine: a test file imports these tests and has a fixture "bench" from `volume_with_a_file`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import NAME, Bench, Done, closing
from faults import FAULTS, KILLS, Fault

TEXT = "backed up earlier " * 1000


def volume_with_a_file(folder: Path, engine: str) -> Iterator[Bench]:
    """For the fixture "bench": a volume with a file that was backed up; the tests leave it closed."""
    bench = Bench(folder, engine)
    bench.prepare()
    bench.do("create", NAME)
    bench.do("before-backup", NAME)
    (bench.data / "file").write_text(TEXT)
    bench.do("after-backup", NAME)
    yield from closing(bench)


def steps_of(bench: Bench, *arguments: str) -> list[str]:
    """The changes that a lukshook makes, as lines, when nothing goes wrong."""
    log = bench.folder / "steps"
    log.write_text("")
    assert 0 == bench.start(*arguments, prepare=Fault(log)).wait().returncode
    return log.read_text().splitlines()


def go_wrong(bench: Bench, what: str, step: int, *arguments: str) -> Done:
    """Run lukshook with the *step*-th change going wrong."""
    return bench.start(*arguments, prepare=Fault(bench.folder / "steps", what, step)).wait()


def check_next_run(bench: Bench) -> None:
    """The next backup works, what was backed up is whole, and all is closed and guarded after it."""
    bench.do("before-backup", NAME)
    assert TEXT == (bench.data / "file").read_text()
    (bench.data / "new").write_text(TEXT)
    bench.do("after-backup", NAME)
    assert bench.is_bare()


def chosen(steps: list[str], what: str, stride: int, config: pytest.Config) -> list[int]:
    """All steps with --long, else every *stride*-th, others for each fault, so that together they meet every step."""
    every = 1 if config.getoption("--long") else stride
    return [step for step in range(len(steps)) if (step + FAULTS.index(what)) % every == 0]


def each(steps: list[str], numbers: list[int], check: Callable[[int], None]) -> None:
    """Check every step, and name all that fail."""
    failures = []
    for number in numbers:
        try:
            check(number)
        except (AssertionError, TimeoutError) as error:
            failures.append(f"{steps[number]}\n    {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("what", FAULTS)
def test_opening_leaves_nothing_when_it_goes_wrong(bench: Bench, what: str, pytestconfig: pytest.Config) -> None:
    """Before any step of before-backup: rolled back at once, or, where we were killed, by the next run."""
    steps = steps_of(bench, "before-backup", NAME)
    bench.do("after-backup", NAME)

    def check(step: int) -> None:
        done = go_wrong(bench, what, step, "before-backup", NAME)
        if what not in KILLS and done.returncode != 0:
            assert [] == bench.standing(), done.stderr
        if what not in KILLS and done.returncode == 0:
            assert bench.is_open()
        assert done.returncode != 1, done.stderr
        check_next_run(bench)

    each(steps, chosen(steps, what, 3, pytestconfig), check)


@pytest.mark.parametrize("what", FAULTS)
def test_closing_goes_on_where_it_stopped(bench: Bench, what: str, pytestconfig: pytest.Config) -> None:
    """At any step of after-backup: it ends closed, or says that it did not; the next run puts it right."""
    bench.do("before-backup", NAME)
    steps = steps_of(bench, "after-backup", NAME)

    def check(step: int) -> None:
        bench.do("before-backup", NAME)
        (bench.data / f"while {what}").write_text(TEXT)
        done = go_wrong(bench, what, step, "after-backup", NAME)
        if done.returncode == 0:
            assert bench.is_bare()
        assert done.returncode != 1, done.stderr
        check_next_run(bench)

    each(steps, chosen(steps, what, 2, pytestconfig), check)


@pytest.mark.parametrize("what", FAULTS)
def test_putting_right_can_go_wrong_too(bench: Bench, what: str, pytestconfig: pytest.Config) -> None:
    """At any step of a before-backup that finds the volume half closed by a killed run."""

    def break_it() -> None:
        bench.do("before-backup", NAME)
        go_wrong(bench, "KILL to us before", 1, "after-backup", NAME)

    break_it()
    steps = steps_of(bench, "before-backup", NAME)
    bench.do("after-backup", NAME)

    def check(step: int) -> None:
        break_it()
        done = go_wrong(bench, what, step, "before-backup", NAME)
        assert done.returncode != 1, done.stderr
        check_next_run(bench)

    each(steps, chosen(steps, what, 6, pytestconfig), check)


@pytest.mark.parametrize("what", FAULTS)
def test_a_volume_is_made_whole_or_not_at_all(
    bench: Bench, tmp_path: Path, what: str, pytestconfig: pytest.Config
) -> None:
    """At any step of create: an image that has its name is whole; else the next create makes it."""
    fresh = Bench(tmp_path, bench.engine)
    fresh.prepare()
    steps = steps_of(fresh, "create", NAME)

    def check(step: int) -> None:
        fresh.remove()
        fresh.image.unlink(missing_ok=True)
        shutil.rmtree(fresh.state_folder, ignore_errors=True)
        done = go_wrong(fresh, what, step, "create", NAME)
        if what not in KILLS:
            assert [] == fresh.standing(), done.stderr
            assert (done.returncode == 0) == fresh.image.exists(), done
        assert done.returncode != 1, done.stderr
        if not fresh.image.exists():
            fresh.do("create", NAME)
        assert [fresh.image.name] == [entry.name for entry in fresh.image.parent.iterdir()]
        fresh.do("before-backup", NAME)
        (fresh.data / "file").write_text(TEXT)
        fresh.do("after-backup", NAME)
        assert fresh.is_bare()

    try:
        each(steps, chosen(steps, what, 9, pytestconfig), check)
    finally:
        fresh.lukshook("close", NAME)
        fresh.remove()

"""tests/run: what it may write, and how it counts."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.lukshook_process import USUAL_PATIENCE

RUN = Path(__file__).resolve().parents[1] / "run"


@pytest.fixture(name="run", scope="module")
def _run() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("tests_run", str(RUN))
    spec = importlib.util.spec_from_loader("tests_run", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tests_run", module)
        patch.setattr("sys.dont_write_bytecode", True)
        loader.exec_module(module)
    return module


@pytest.mark.parametrize("as_link", [True, False], ids=["link", "folder"])
def test_a_folder_that_is_not_ours_is_not_cleared(tmp_path: Path, run: ModuleType, as_link: bool) -> None:
    """Where .venv is a link, or some other folder, the files in it stay and the run stops."""
    target = tmp_path / "theirs"
    target.mkdir()
    (target / "file").touch()
    place = target
    if as_link:
        place = tmp_path / ".venv"
        place.symlink_to(target)
    assert not run.make_venv(place, [], b"")
    assert [target / "file"] == list(target.iterdir())


@pytest.mark.parametrize("line", ["--coverage", "--coverage -x", "-x --coverage", "unit files --coverage"])
def test_coverage_is_measured_where_lukshook_runs_as_we_do(run: ModuleType, line: str) -> None:
    """Unit and files, unless one of them is named."""
    options = run.parse(line.split())
    assert (True, ["unit", "files"]) == (options.coverage, options.tiers)
    assert "--coverage" not in options.pytest


def test_no_other_tier_is_measured(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure that leaves out most of what ran would be read as if it did not."""
    monkeypatch.setattr("sys.argv", ["tests/run", "--coverage", "unit", "kernel"])
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    assert 1 == run.main()
    assert "tests/run: --coverage measures no tiers but unit and files\n" == capsys.readouterr().err


def test_with_patience_each_lukshook_gets_more_time(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every run of pytest; one in a test kernel took longer than the usual limit on a busy machine."""
    monkeypatch.setenv("LUKSHOOK_TEST_PATIENCE", "")
    monkeypatch.delenv("LUKSHOOK_TEST_PATIENCE")
    assert "LUKSHOOK_TEST_PATIENCE" not in run.clean_environment()
    run.be_patient()
    assert float(run.clean_environment()["LUKSHOOK_TEST_PATIENCE"]) > USUAL_PATIENCE


REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        (REPORT.format(5, 1, 0, 1), 1, (3, 1, 1)),
        (REPORT.format(5, 0, 0, 0), 0, (5, 0, 0)),
        (REPORT.format(5, 0, 0, 0), -9, (5, 1, 0)),
        (REPORT.format(0, 0, 0, 0), 5, (0, 0, 0)),
        (None, 124, (0, 1, 0)),
        (None, 5, (0, 0, 0)),
    ],
    ids=["mixed", "good", "good but killed", "empty", "no report", "no report, no tests"],
)
def test_counts(
    tmp_path: Path, run: ModuleType, report: str | None, status: int, expected: tuple[int, int, int]
) -> None:
    """A run that crashed, hung or wrote no report counts as a failure even if no test failed."""
    file = tmp_path / "report.xml"
    if report:
        file.write_text(report)
    count = run.read_report("tier", file, status, 1.0)
    assert expected == (count.passed, count.failed, count.skipped)


@pytest.mark.parametrize(
    ("passed", "failed", "chosen", "expected"),
    [
        ((1, 1), 0, False, 0),
        ((1, 1), 1, False, 1),
        ((1, 0), 0, False, 1),
        ((1, 0), 0, True, 0),
        ((0, 0), 0, True, 1),
    ],
)
def test_exit_status(
    run: ModuleType,
    capsys: pytest.CaptureFixture[str],
    passed: tuple[int, int],
    failed: int,
    chosen: bool,
    expected: int,
) -> None:
    """A tier without any test is a failure, except where -k chose among several; the last line sums up."""
    counts = [run.Count("one", passed[0], failed, 0, 1.0), run.Count("two", passed[1], 0, 0, 1.0)]
    assert expected == run.conclude(counts, chosen)
    assert f"{sum(passed)} passed, {failed} failed, 0 skipped" == capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("apart", [False, True])
def test_roots_jobs_meet_only_where_they_are_kept_apart(run: ModuleType, apart: bool) -> None:
    """The first lane takes them before all others; the other lanes take none, or those that are left."""
    names = ("root 1", "a", "b", "root 2", "root 3")
    jobs = {name: run.Job(name, lambda: None, roots=name.startswith("root")) for name in names}
    lanes = run.Lanes(list(jobs.values()), apart)
    assert jobs["a"] == lanes.take(first=False)
    assert jobs["root 1"] == lanes.take(first=True)
    assert jobs["b"] == lanes.take(first=False)
    assert (jobs["root 2"] if apart else None) == lanes.take(first=False)


def test_the_first_lane_takes_what_others_have_left(run: ModuleType) -> None:
    """When it is done with its own."""
    job = run.Job("a", lambda: None)
    lanes = run.Lanes([job], apart=False)
    assert job == lanes.take(first=True)
    assert lanes.take(first=True) is lanes.take(first=False) is None


def every_job(run: ModuleType, folder: Path) -> list[Any]:
    """Those of a whole run."""
    return [job for tier in run.TIERS for job in run.jobs_of(tier, run.Options(), folder)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_opens_roots_volumes_on_this_machine(run: ModuleType, tmp_path: Path) -> None:
    """An ordinary user's, and a test kernel's, go on beside it. The longest have names that jobs have."""
    roots = {job.name for job in every_job(run, tmp_path) if job.roots}

    assert {"userspace as root", "userspace kinds as root", "hosts", "machines"} <= roots
    assert set(run.LONGEST) <= roots
    assert not {name for name in roots if "as a user" in name or "test kernel" in name}
    assert not {"linters", "unit", "files", "kernel from outside"} & roots


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("apart", [False, True])
def test_roots_runs_have_namespaces_of_their_own(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, apart: bool
) -> None:
    """Where they may go on side by side; the others have them always."""
    monkeypatch.setattr(run, "keep_apart", lambda: apart)
    monkeypatch.setattr(run, "may_unshare", lambda: True)
    monkeypatch.setattr(run, "measured", lambda _, command, *others: command)
    before = run.own_namespace()
    for names, has_one in ((("unit", "files"), True), (("userspace as root", "hosts", "machines"), apart)):
        commands = [job.run() for job in every_job(run, tmp_path) if job.name in names]
        assert [has_one] * len(names) == [before == command[: len(before)] for command in commands]


@pytest.mark.parametrize(("namespaces", "mapper", "expected"), [(1, 0, True), (1, 1, False), (0, 0, False)])
def test_roots_runs_meet_where_they_share_mounts_or_names(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, namespaces: int, mapper: int, expected: bool
) -> None:
    """In many containers there is no mount namespace; a name of device-mapper is the same in all of them."""
    monkeypatch.setattr(run, "may_unshare", lambda: bool(namespaces))
    monkeypatch.setattr(run, "has_mapper", lambda: bool(mapper))
    assert expected is run.keep_apart.__wrapped__()


def test_the_longest_of_roots_jobs_are_begun_first(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when the others are over is short."""
    begun: list[str] = []
    monkeypatch.setattr(run, "outcome", lambda job: begun.append(job.name))
    monkeypatch.setattr(run, "MOST_AT_A_TIME", 1)
    run.run_all([run.Job(name, lambda: None, roots=name != "a") for name in ("a", "machines", "hosts")])

    assert ["hosts", "machines", "a"] == begun


def test_results_come_in_the_order_of_the_jobs(run: ModuleType) -> None:
    """However long each of them takes."""
    counts = [run.Count(name, 1, 0, 0, 1.0) for name in ("a", "b", "c")]
    assert counts == run.run_all([run.Job(count.name, partial(lambda c: c, count)) for count in counts])


def test_a_job_that_cannot_begin_has_failed(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """In whichever lane; the others go on, and the last lines name it."""

    def cannot_begin() -> object:
        raise OSError("no space left")

    jobs = [run.Job(name, cannot_begin, roots=name == "roots") for name in ("roots", "beside")]
    counts = run.run_all([*jobs, run.Job("good", lambda: run.Count("good", 1, 0, 0, 1.0))])

    assert [("roots", 0, 1), ("beside", 0, 1), ("good", 1, 0)] == [(one.name, one.passed, one.failed) for one in counts]
    assert 2 == capsys.readouterr().err.count("OSError: no space left")


def test_an_interrupted_run_leaves_nothing_of_the_other_lanes(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Folders with a copy of the project, and a run that would begin again because it left no report."""
    monkeypatch.setattr(run, "RUNNING", run.Running())
    began = threading.Event()
    passing: list[Path] = []

    def sleeps_twice() -> object:
        with run.passing_folder() as folder:
            passing.append(folder)
            for _ in range(2):
                began.set()
                run.measured("a", ["sleep", "60"], folder / "report.xml", 60.0, {**os.environ})
            return run.Count("a", 1, 0, 0, 1.0)

    def is_interrupted() -> object:
        assert began.wait(30)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.run_all([run.Job("interrupted", is_interrupted, roots=True), run.Job("a", sleeps_twice)])

    assert [False] == [folder.exists() for folder in passing]
    assert set() == run.RUNNING.processes
    assert time.monotonic() - started < 30


def test_no_run_outlives_the_limit_of_all_together(run: ModuleType) -> None:
    """A hung guest is ended; what begins late has what is left."""
    options = run.Options()
    assert run.LIMITS["short"] == options.limit()
    options.started -= run.ALL_LIMITS["short"] - 60
    assert 0 < options.limit() <= 60


def test_every_file_of_the_kernel_tier_has_its_guest(run: ModuleType) -> None:
    """But for those that start guests themselves; the long ones come first."""
    places = [Path(place).stem for place in run.places_of("kernel", run.Options())]
    here = {file.stem for file in (RUN.parent / "kernel").glob("test_*.py")}
    cuts = {f"test_{name}power" for name in ("", "era_", "ledger_", "rekey_", "resize_")}
    outside = cuts | {"test_ceph_kernel", "test_guest", "test_nas", "test_removable_disk", "test_units"}
    assert outside == here - set(places)
    assert set(run.LONG_ONES) == set(places[: len(run.LONG_ONES)])


def test_every_file_of_the_kernel_tier_has_a_test_that_runs_by_default(run: ModuleType) -> None:
    """A run without a test counts as failed."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/kernel"]
    listed = subprocess.run(
        [*words, "-m", "not outside"], cwd=RUN.parents[1], capture_output=True, text=True, check=True
    )
    assert set(run.places_of("kernel", run.Options())) <= {line.split("::")[0] for line in listed.stdout.split("\n")}


@pytest.mark.parametrize("chosen", ["", "not roots"], ids=["root", "user"])
def test_every_file_that_is_run_apart_has_a_test_for_each_who_runs_it(run: ModuleType, chosen: str) -> None:
    """A run without a test counts as failed, so a file with nothing for an ordinary user has to be in BY_ROOT."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", chosen]
    files = {f"tests/userspace/{file}.py" for file in run.APART if not (chosen and file in run.BY_ROOT)}
    listed = subprocess.run([*words, *sorted(files)], cwd=RUN.parents[1], capture_output=True, text=True, check=True)
    assert files == {line.split("::")[0] for line in listed.stdout.split("\n") if "::" in line}


@pytest.mark.parametrize("hangs", [0, 1, 2])
def test_a_test_kernel_that_hangs_gets_one_more_try(
    run: ModuleType, hangs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary says that it hung; one that hangs twice is a failure."""
    tries: list[str] = []

    def measured(name: str, command: list[str], report: Path, *_: object) -> object:
        tries.append(name)
        assert any(word.startswith("--silence=") for word in command)
        if len(tries) <= hangs:
            return run.Count(name, 0, 1, 0, 1.0)
        report.write_text('<testsuite tests="3"/>')
        return run.Count(name, 3, 0, 0, 1.0)

    monkeypatch.setattr(run, "measured", measured)
    count = run.run_in_guest("kernel x", "tests/kernel/test_x.py", run.Options(), tmp_path, "not outside")
    assert (0 if hangs < 2 else 1) == run.conclude([count], chosen=False)
    assert (["kernel x", "kernel x again"][: 1 + bool(hangs)], bool(hangs)) == (
        tries,
        "no report the first time" in capsys.readouterr().out,
    )

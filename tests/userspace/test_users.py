"""Jobs that share a volume: who keeps it open, who is ended, and who is told that it was closed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.volume import NAME, CliVolume

LUKSHOOK = "lukshook"
#: What is called so, also where the tests run as an ordinary user, with a copy of the project.
PROGRAM = """#!{python}
import sys
sys.path[:] = {path!r}
from lukshook.__main__ import main
main()
"""
#: It runs the lines that it is given, each in a shell, and lives on: cron, a CI runner, a backup tool.
SCHEDULER = """
import subprocess, sys
for line in sys.stdin:
    done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(done.returncode, flush=True)
"""


class Scheduler:
    """A process that calls hooks, or scripts with hooks in them, and lives on."""

    def __init__(self, volume: CliVolume, folder: Path, **environment: str) -> None:
        program = volume.folder / LUKSHOOK
        program.write_text(PROGRAM.format(python=sys.executable, path=sys.path))
        program.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCHEDULER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=volume.environment | {"PATH": f"{volume.folder}:{os.environ['PATH']}", **environment},
            text=True,
        )

    def __call__(self, *argv: str | Path) -> int:
        """Run one command; its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(shlex.join(map(str, argv)) + "; exit $?\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline() or -1)

    def end(self) -> None:
        """It ends, with nothing left of it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(name="scheduler")
def _scheduler(volume: CliVolume) -> Iterator[Scheduler]:
    """One that stands outside of the volume."""
    with scheduler_in(volume, volume.folder) as scheduler:
        yield scheduler


@contextmanager
def scheduler_in(volume: CliVolume, folder: Path, **environment: str) -> Iterator[Scheduler]:
    """One that stands in *folder*."""
    scheduler = Scheduler(volume, folder, **environment)
    try:
        yield scheduler
    finally:
        scheduler.end()


def script(volume: CliVolume, name: str, *lines: str) -> Path:
    """A shell script."""
    file = volume.folder / name
    file.write_text("\n".join(["#!/bin/sh", *lines, "true", ""]))
    file.chmod(0o755)
    return file


def result(volume: CliVolume) -> str | None:
    """What `status` says of the last backup."""
    found: str | None = json.loads(volume.do("status", NAME, "--json"))[0]["last_result"]
    return found


BEFORE, AFTER = (f"{LUKSHOOK} {hook} {NAME} || exit" for hook in ("before-backup", "after-backup"))
HOOK_SCRIPTS = {
    "two scripts": (BEFORE, AFTER),
    "one script for both": (f"case $1 in before) {BEFORE} ;; after) {AFTER} ;; esac", ""),
}


@pytest.mark.parametrize("kind", HOOK_SCRIPTS)
def test_a_job_with_hook_scripts_keeps_the_volume_open(volume: CliVolume, scheduler: Scheduler, kind: str) -> None:
    """A second job, which calls both hooks itself, comes and goes meanwhile."""
    before = script(volume, "before.sh", HOOK_SCRIPTS[kind][0])
    after = script(volume, "after.sh", HOOK_SCRIPTS[kind][1]) if HOOK_SCRIPTS[kind][1] else before
    job = script(volume, "job.sh", BEFORE, AFTER)
    assert 0 == scheduler(before, "before")

    with scheduler_in(volume, volume.folder) as other:
        assert 0 == other(job)
    assert volume.is_open()

    assert 0 == scheduler(after, "after")
    assert volume.is_bare()


@pytest.mark.parametrize("form", ["script", "text"])
def test_a_job_that_is_killed_half_way_is_no_user_any_more(volume: CliVolume, scheduler: Scheduler, form: str) -> None:
    """Who has started it lives on, and does not count."""
    line = f"{LUKSHOOK} before-backup {NAME} && echo $$ >pid && kill -9 $$; {LUKSHOOK} after-backup {NAME}"
    argv = ["sh", "-c", line] if form == "text" else [script(volume, "job.sh", line)]

    assert 128 + signal.SIGKILL == scheduler(*argv)
    assert volume.is_open()

    assert "closed" in volume.do("close", NAME)
    assert volume.is_bare()


@pytest.mark.parametrize("after", ["after-backup", "after-backup --failed"])
def test_a_job_in_the_text_of_a_shell_closes_at_its_end(volume: CliVolume, scheduler: Scheduler, after: str) -> None:
    """The shell becomes its last command, and is still the same job."""
    line = f"{LUKSHOOK} before-backup {NAME} && touch '{volume.data}/file'; {LUKSHOOK} {after} {NAME}"

    for shell in ("bash", "dash"):
        assert 0 == scheduler(shell, "-c", line)
        assert volume.is_bare()


def test_two_jobs_of_one_process_by_name(volume: CliVolume, scheduler: Scheduler) -> None:
    """LUKSHOOK_JOB tells them apart, and each before from the other's after."""
    first, second = (("env", f"LUKSHOOK_JOB={job}", LUKSHOOK) for job in ("first", "second"))
    assert 0 == scheduler(*first, "before-backup", NAME)
    assert 0 == scheduler(*second, "before-backup", NAME)
    assert "job first of " in volume.do("status", NAME)

    assert 0 == scheduler(*first, "after-backup", NAME)
    assert volume.is_open()
    assert 0 == scheduler(*second, "after-backup", NAME)
    assert volume.is_bare()


def test_a_job_by_name_is_gone_with_its_process(volume: CliVolume, scheduler: Scheduler) -> None:
    """The name alone keeps nothing open; the name has to be one that can be shown."""
    assert 0 == scheduler("env", "LUKSHOOK_JOB=first", LUKSHOOK, "before-backup", NAME)
    scheduler.end()

    assert "closed" in volume.do("close", NAME)
    for name in ("two\nlines", "x" * 101):
        done = volume.lukshook("before-backup", NAME, LUKSHOOK_JOB=name)
        assert (64, True) == (done.returncode, "LUKSHOOK_JOB" in done.stderr), done.stderr


def test_the_user_is_the_process_that_is_named(volume: CliVolume, scheduler: Scheduler) -> None:
    """Whoever calls: it keeps the volume open until its own after, or its end."""
    pid = str(scheduler.process.pid)
    volume.do("before-backup", NAME, "--user-pid", pid)
    assert f"(pid {pid})" in volume.do("status", NAME)

    volume.do("after-backup", NAME)
    assert volume.is_open()
    volume.do("after-backup", NAME, "--user-pid", pid)
    assert volume.is_bare()

    volume.do("before-backup", NAME, "--user-pid", pid)
    scheduler.end()
    volume.do("close", NAME)
    assert "no process" in volume.refusal(64, "before-backup", NAME, "--user-pid", pid)
    volume.do("after-backup", NAME, "--user-pid", pid)


def test_who_only_called_a_hook_lives_on_and_is_told(volume: CliVolume, scheduler: Scheduler) -> None:
    """`close --kill-holders` closes under it: 74 from its own after, once, and then all is as ever."""
    assert 0 == scheduler(LUKSHOOK, "before-backup", NAME)

    assert "closed" in volume.do("close", NAME, "--kill-holders")

    assert scheduler.process.poll() is None
    assert volume.is_bare()
    assert 74 == scheduler(LUKSHOOK, "after-backup", NAME)
    assert "not safe" == result(volume)
    assert 0 == scheduler(LUKSHOOK, "after-backup", NAME)
    assert 0 == scheduler(LUKSHOOK, "before-backup", NAME)
    assert 0 == scheduler(LUKSHOOK, "after-backup", NAME)
    assert "done" == result(volume)


def test_a_job_is_told_what_was_closed_under_it_and_no_other(volume: CliVolume, scheduler: Scheduler) -> None:
    """Another one opens the volume again, and closes it: its data is safe. The first hears 74 while that goes on."""
    assert 0 == scheduler(LUKSHOOK, "before-backup", NAME)
    volume.do("close", NAME, "--kill-holders")
    volume.do("before-backup", NAME)

    assert 74 == scheduler(LUKSHOOK, "after-backup", NAME)

    assert volume.is_open()
    volume.do("after-backup", NAME)
    assert volume.is_bare()
    assert "done" == result(volume)


def test_a_second_host_is_not_blamed_for_what_the_first_lost(volume: CliVolume, scheduler: Scheduler) -> None:
    """It found the volume unmounted by somebody else, and opened it again: it closes it with 0, the first hears 74."""
    assert 0 == scheduler(LUKSHOOK, "before-backup", NAME)
    subprocess.run([*(["fusermount3", "-u"] if os.geteuid() else ["umount"]), volume.mountpoint], check=True)
    volume.do("before-backup", NAME)

    volume.do("after-backup", NAME)

    assert volume.is_bare()
    assert 74 == scheduler(LUKSHOOK, "after-backup", NAME)


@pytest.mark.parametrize("times", [1, 2])
def test_who_was_not_served_is_told_nothing(volume: CliVolume, scheduler: Scheduler, times: int) -> None:
    """After without before, after twice, and after a before that failed."""
    for _ in range(times):
        assert 0 == scheduler(LUKSHOOK, "after-backup", NAME)
    key = volume.key.read_bytes()
    volume.set_key(b"k" * 32)
    assert 77 == scheduler(LUKSHOOK, "before-backup", NAME)
    volume.do("close", NAME, "--kill-holders")
    for _ in range(times):
        assert 0 == scheduler(LUKSHOOK, "after-backup", NAME)
    volume.key.write_bytes(key)


def test_who_works_in_the_volume_is_ended(volume: CliVolume) -> None:
    """A job under `lukshook run`, and a tool that stands in the volume; not one that does neither."""
    with ExitStack() as stack:
        outside = stack.enter_context(scheduler_in(volume, volume.folder))
        assert 0 == outside(LUKSHOOK, "before-backup", NAME)
        inside = stack.enter_context(scheduler_in(volume, volume.data))
        assert 0 == inside(LUKSHOOK, "before-backup", NAME)
        begun = volume.folder / "begun"
        job = volume.start("run", NAME, "--", "sh", "-c", f"touch '{begun}'; exec sleep 600")
        assert kernel.wait_until(begun.exists, 60.0)

        done = volume.lukshook("close", NAME, "--kill-holders")

        assert 0 == done.returncode, done.stderr
        assert -signal.SIGTERM == inside.process.wait()
        assert 128 + signal.SIGTERM == job.wait().returncode
        assert outside.process.poll() is None
        assert 74 == outside(LUKSHOOK, "after-backup", NAME)
    assert volume.is_bare()


def test_a_shell_that_closes_its_own_use_is_told_nothing(volume: CliVolume, scheduler: Scheduler) -> None:
    """It knows."""
    assert 0 == scheduler(LUKSHOOK, "before-backup", NAME)

    assert 0 == scheduler(LUKSHOOK, "close", NAME, "--kill-holders")

    assert volume.is_bare()
    assert 0 == scheduler(LUKSHOOK, "after-backup", NAME)

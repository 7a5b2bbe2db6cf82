"""Users that are ended because somebody asked for it, as real processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.system import kernel, processes
from lukshook.volume import users
from lukshook.volume.records import User

Start = Callable[[str], tuple[User, "subprocess.Popen[str]"]]


@pytest.fixture(name="start")
def _start() -> Iterator[Start]:
    """A shell that runs what it is given, once it says that it is ready, as a user."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> tuple[User, subprocess.Popen[str]]:
        process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and "ready\n" == process.stdout.readline()
        return User("job", process.pid, kernel.started(process.pid) or 0), process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_a_job_is_told_to_end_and_given_time(start: Start) -> None:
    """It does what it has to do at its end."""
    user, process = start("trap 'echo put away; exit 3' TERM; echo ready; while :; do sleep 0.05; done")

    users.end([user], print)

    assert "put away\n" == process.communicate()[0]
    assert 3 == process.returncode


def test_a_job_that_does_not_listen_is_killed(start: Start) -> None:
    """After its time."""
    user, process = start("trap '' TERM; echo ready; while :; do sleep 0.05; done")

    users.end([user], print, patience=0.3)

    assert -9 == process.wait()


def test_those_that_we_run_for_are_spared(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that calls `lukshook close --kill-holders` is not killed by it, nor whoever has a user's number now."""
    _, process = start("echo ready; exec sleep 60")
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(processes, "tell", lambda pid, started, number: signals.append((pid, number)))
    ours = User("shell", os.getppid(), kernel.started(os.getppid()) or 0)

    users.end([ours, User("gone", process.pid, 1), User("unit", cgroup="/system.slice/x.service")], print)

    assert [] == signals
    assert ours.alive()


def test_a_process_with_a_name_that_is_no_text_stops_nobody(start: Start) -> None:
    """Anybody on this machine may call a process anything."""
    user, process = start("printf '\\377\\303' > /proc/$$/comm; echo ready; read line")
    assert b"\xff\xc3\n" == Path(f"/proc/{process.pid}/comm").read_bytes()

    assert () == kernel.processes_with("\xff", 0, 0)
    assert kernel.command(user.pid)

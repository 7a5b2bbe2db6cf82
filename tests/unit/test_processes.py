"""Signals go to the process that was remembered, and to no other that has its number."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from lukshook.system import kernel, processes


@pytest.fixture(name="process")
def _process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def no_descriptors(pid: int) -> int:
    """As in a sandbox that forbids pidfd_open(2)."""
    raise PermissionError(1, "Operation not permitted")


@pytest.fixture(name="way", params=["descriptor", "number"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the signal is sent."""
    if request.param == "number":
        monkeypatch.setattr(os, "pidfd_open", no_descriptors)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_the_process_that_was_remembered_is_told(process: subprocess.Popen[bytes]) -> None:
    """With and without pidfd_open(2)."""
    processes.tell(process.pid, kernel.started(process.pid) or 0, signal.SIGTERM)

    assert -signal.SIGTERM == process.wait()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("difference", [-1, 1, None])
def test_another_process_with_its_number_is_not(process: subprocess.Popen[bytes], difference: int | None) -> None:
    """It started at another time; nor is a process of which nobody knows when it started."""
    started = kernel.started(process.pid)
    assert started is not None
    processes.tell(process.pid, 0 if difference is None else started + difference, signal.SIGKILL)

    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


@pytest.mark.usefixtures("way")
def test_one_that_has_ended_is_no_error(process: subprocess.Popen[bytes]) -> None:
    """Nobody has its number now."""
    started = kernel.started(process.pid)
    process.kill()
    process.wait()

    processes.tell(process.pid, started or 0, signal.SIGKILL)


def test_a_number_that_is_given_out_between_look_and_signal(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal goes to the process that was looked at; no call names the number again."""
    look, kill = kernel.started, os.kill
    numbers: list[int] = []

    def look_and_end(pid: int) -> int | None:
        found = look(pid)
        kill(pid, signal.SIGKILL)
        process.wait()
        return found

    started = look(process.pid)
    monkeypatch.setattr(kernel, "started", look_and_end)
    monkeypatch.setattr(os, "kill", lambda pid, number: numbers.append(pid))

    processes.tell(process.pid, started or 0, signal.SIGKILL)

    assert [] == numbers


def test_a_family_is_all_that_lives_below_a_process() -> None:
    """Children of children too, each with its start time."""
    script = "sh -c 'sleep 60 & echo $!; wait' & sleep 60 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sleepers = {int(process.stdout.readline()), int(process.stdout.readline())}
        found = processes.family(process.pid)
        for pid, started in found:
            assert started == kernel.started(pid)
            processes.tell(pid, started, signal.SIGKILL)

    assert sleepers < {pid for pid, _ in found}
    assert 3 == len(found)


def test_the_end_of_a_process_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pause would be a minute; then what is waited for is looked at again."""
    monkeypatch.setattr(kernel, "_FIRST_PAUSE", 60.0)
    began = time.monotonic()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process, processes.watched(process.pid) as descriptor:

        def ended() -> bool:
            assert process.stdin
            process.stdin.close()
            return kernel.started(process.pid) is None and time.monotonic() > began

        assert kernel.wait_until(ended, 120.0, descriptor)

    assert time.monotonic() - began < 60.0


def test_a_process_that_has_ended_wakes_once(monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]) -> None:
    """Its descriptor can be read from then on: what is waited for afterwards is polled with pauses as before."""
    pauses: list[float] = []
    monkeypatch.setattr("lukshook.system.kernel.select.poll", lambda: Poll(pauses))
    with processes.watched(process.pid) as descriptor:
        assert kernel.wait_until(lambda: len(pauses) == 5, 60.0, descriptor)

    assert [2.0, 2.0, 4.0, 8.0, 16.0] == pauses


class Poll:
    """A poll that is ready at once where something is registered; it notes the pauses in milliseconds."""

    def __init__(self, pauses: list[float]) -> None:
        self._pauses = pauses
        self._ready: list[int] = []

    def register(self, descriptor: int, _events: int) -> None:
        self._ready.append(descriptor)

    def poll(self, pause: float) -> list[int]:
        self._pauses.append(pause)
        return self._ready


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
def test_none_that_lives_is_watched(pid: int) -> None:
    """0 stands for a daemon that nobody knows; the other number is over the kernel's most (proc(5): pid_max)."""
    with processes.watched(pid) as descriptor:
        assert descriptor is None


def test_the_children_of_one_that_ends_just_now() -> None:
    """At whatever moment it goes: it has none then."""
    for _ in range(200):
        pid = os.posix_spawn("/bin/true", ["true"], {})
        reaper = threading.Thread(target=os.waitpid, args=(pid, 0))
        reaper.start()
        while kernel.started(pid) is not None:
            assert [] == kernel.children(pid)
        assert [] == kernel.children(pid)
        reaper.join()

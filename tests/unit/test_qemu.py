"""Ending the daemon of the userspace engine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from lukshook.layers import qemu_process
from lukshook.system import kernel, processes

#: Ends at the second SIGTERM, as qemu's daemon does when the first came in a bad moment.
DEAF_ONCE = "trap 'trap \"exit 0\" TERM' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sh", "-c", DEAF_ONCE], stdout=subprocess.PIPE) as process:
        assert process.stdout and b"ready\n" == process.stdout.readline()
        yield process
        process.kill()


def test_a_daemon_that_missed_the_signal_is_asked_again(daemon: subprocess.Popen[bytes]) -> None:
    """Else closing would wait ten minutes and give up."""
    started = kernel.started(daemon.pid) or 0

    with processes.watched(daemon.pid) as process:
        assert qemu_process.end(daemon.pid, started, process)

    assert 0 == daemon.wait(5)

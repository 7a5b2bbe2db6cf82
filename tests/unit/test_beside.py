"""What is looked at beside the work, in a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lukshook.system import forked_call, kernel


def test_it_looks_at_once_again_and_at_the_end(tmp_path: Path) -> None:
    """Nothing is left of it afterwards, also where the work fails."""
    seen = tmp_path / "seen"

    def look() -> None:
        with seen.open("a") as file:
            file.write(f"{os.getpid()}\n")

    with pytest.raises(ZeroDivisionError), forked_call.beside(look, 0.05):
        assert kernel.wait_until(lambda: seen.exists() and 3 <= len(seen.read_text().splitlines()), 20.0)
        raise ZeroDivisionError
    pids = seen.read_text().splitlines()
    assert 1 == len(set(pids))
    assert pids[0] != str(os.getpid())
    assert kernel.started(int(pids[0])) is None
    count = len(pids)
    time.sleep(0.2)
    assert count == len(seen.read_text().splitlines())


def test_it_ends_with_us(tmp_path: Path) -> None:
    """However we end, and it keeps no file of ours open: a lock of a killed lukshook is free at once."""
    script = (
        "import os, sys, time\nfrom lukshook.system import forked_call\n"
        f"lock = open({str(tmp_path / 'lock')!r}, 'w')\n"
        "with forked_call.beside(lambda: print(os.getpid(), len(os.listdir('/proc/self/fd')), flush=True), 60.0):\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as ours:
        assert ours.stdout is not None
        pid, count = map(int, ours.stdout.readline().split())
        assert 5 == count  # three standard streams, the pipe, and the folder that was listed
        ours.send_signal(signal.SIGKILL)
    assert kernel.wait_until(lambda: kernel.started(pid) is None, 20.0)

"""A process that reads keys: no core dumps, and nobody of the same user looks into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from lukshook.cli import main
if sys.argv[1] == "hardened":
    main.harden()
print(resource.getrlimit(resource.RLIMIT_CORE)[0], flush=True)
sys.stdin.read()
"""
#: Root's capabilities look into everything; without them root is a user like any other.
PLAIN = () if os.geteuid() else ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def looked_into(kind: str) -> tuple[str, bool]:
    """The core limit of a process, and whether another one of the same user could read its environment."""
    argv = [*PLAIN, sys.executable, "-c", PROGRAM, kind]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    limit = child.stdout.readline().strip()
    look = subprocess.run([*PLAIN, "cat", f"/proc/{child.pid}/environ"], capture_output=True, check=False)
    child.communicate("")
    return limit, look.returncode == 0


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_a_hardened_process_is_closed_to_its_own_user() -> None:
    """One that is not hardened is open, so the look itself works."""
    assert looked_into("plain")[1]
    assert ("1", False) == looked_into("hardened")  # 1 stops a handler behind a pipe too: core(5)

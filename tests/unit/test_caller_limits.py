"""What whoever starts us hands down, and what becomes of it: umask, limits, signals."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
exec(sys.argv[1])
from lukshook.system import caller_limits, command
if sys.argv[2] == "taken":
    caller_limits.take()
    caller_limits.take()
def ours():
    mask = os.umask(0)
    os.umask(mask)
    return f"{mask:04o}"
show = command.read("bash", "-c", "umask; ulimit -f; ulimit -n", ok=range(256))
print("ours", ours(), resource.getrlimit(resource.RLIMIT_FSIZE)[0], flush=True)
print("tool", *command.SystemRunner().run(show).out.split(), flush=True)
command.run_foreground(("bash", "-c", "echo users $(umask) $(ulimit -f) $(ulimit -n)"), Path("/"), os.environ)
key = command.output_of(("bash", "-c", "umask"), os.environ, 60, 4096)
print("key", key.decode().strip(), flush=True)
print("again", ours(), resource.getrlimit(resource.RLIMIT_FSIZE)[0], flush=True)
try:
    command.SystemRunner().run(command.change("false"))
    print("outcome done")
except command.CommandFailed:
    print("outcome failed")
print("status", command.run_foreground(("sh", "-c", "exit 23"), Path("/"), os.environ))
"""


def told(setting: str, *before: str) -> dict[str, list[str]]:
    """What a process says in which *setting* was done before anything of ours, by the first word of each line."""
    argv = [*before, sys.executable, "-c", PROGRAM, setting, "taken"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077, 0o777])
def test_umask_is_ours_and_a_users_command_has_the_callers(mask: int) -> None:
    """So does a key command, which is the user's too; tools have what a distribution has for root."""
    found = told(f"os.umask({mask})")

    assert ("0077", "0022", f"{mask:04o}", f"{mask:04o}", "0077") == (
        found["ours"][0],
        found["tool"][0],
        found["users"][0],
        found["key"][0],
        found["again"][0],
    )


def test_a_limit_on_files_is_the_users_commands_alone() -> None:
    """A tool that meets it is killed in the middle of its work, the daemon that decrypts in the middle of a backup."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limits = {"FSIZE": (1 << 20, hard), "NOFILE": (64, 4096)}
    found = told("; ".join(f"resource.setrlimit(resource.RLIMIT_{name}, {both})" for name, both in limits.items()))

    assert (str(hard), "1024", "1024", "64", str(hard)) == (
        found["ours"][1],
        found["users"][1],
        found["tool"][2],
        found["users"][2],
        found["again"][1],
    )


#: Root's capabilities raise every limit; without them root is a user like any other.
PLAIN = () if os.geteuid() else ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.mark.needs("setpriv")
def test_a_limit_that_cannot_be_raised_stays() -> None:
    """A user has the hard limit."""
    found = told("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 21))", *PLAIN)

    assert (str(1 << 21), "1024") == (found["ours"][1], found["users"][1])


@pytest.mark.parametrize("action", ["SIG_IGN", "SIG_DFL"])
def test_a_caller_that_ignores_the_end_of_children_hides_no_failure(action: str) -> None:
    """Where SIGCHLD is ignored the kernel forgets exit statuses, and Python takes them for 0."""
    found = told(f"signal.signal(signal.SIGCHLD, signal.{action})")

    assert ["failed"] == found["outcome"]
    assert ["23"] == found["status"]

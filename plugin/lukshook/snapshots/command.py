"""`command:ARGV`: a command of the user takes the copy, and another one removes it.

The command gets the name of the copy and the path of the image as its last two arguments, and the path of the new copy
is the last line that it prints, if it prints any. docs/versions.md has the contract.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from attrs import evolve

from lukshook.errors import Refused
from lukshook.snapshots.kind import Policy, Snapshot
from lukshook.system.command import LONG_SECONDS, Command, Runner, find_tool
from lukshook.system.text import clipped, fault_of_path

ARGUMENT = "ARGV"
_MOST_SHOWN = 60


def check(argument: str) -> str:
    """It has to be splittable as a shell splits words; no shell is started."""
    try:
        return "" if shlex.split(argument) else "the command is missing"
    except ValueError as error:
        return str(error).lower()


def plan(image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
    """What the command will be asked for. *place* is the image that it copies."""
    find_tool(shlex.split(policy.argument)[0])
    return Snapshot("command", name, os.fspath(image), os.fspath(image))


def take(planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
    """Run it. Raises `CommandFailed`; `Refused` where it prints something that is no path."""
    result = runner.run(_command(tuple(shlex.split(policy.argument)), planned, planned.place, policy))
    lines = [line for line in result.out.split("\n") if line]
    path = lines[-1] if lines else ""
    if path and (not path.startswith("/") or fault_of_path(path)):
        raise Refused(
            f"the snapshot command printed {clipped(path, _MOST_SHOWN)!r} where the path of the copy belongs",
            hint="the last line that it prints is an absolute path; other messages belong on stderr",
        )
    return evolve(planned, mark=planned.name, image=path)


def _command(argv: tuple[str, ...], snapshot: Snapshot, path: str, policy: Policy) -> Command:
    environment = {"LUKSHOOK_SNAPSHOT": snapshot.name, "LUKSHOOK_IMAGE": path, "LUKSHOOK_KEEP": str(policy.keep)}
    return Command((*argv, snapshot.name, path), environment=environment, timeout=LONG_SECONDS)


def find(snapshot: Snapshot, runner: Runner) -> Snapshot | None:
    """It as it is, unless its path leads nowhere; None for one whose command did not end."""
    if not snapshot.mark or (snapshot.image and not os.path.lexists(snapshot.image)):
        return None
    return snapshot


def remove(snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
    """By the user's own command, which gets an empty path for a copy that was not finished or has none."""
    if policy.prune:
        runner.run(_command(policy.prune, snapshot, snapshot.image, policy))

"""`rbd`: a snapshot of the image in its Ceph cluster. Its mark is its number, which a pool never gives twice."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.snapshots.kind import Policy, Snapshot
from lukshook.store.remote import rbd
from lukshook.store.remote.rbd import Rbd
from lukshook.system.command import Runner

ARGUMENT = ""


def check(argument: str) -> str:
    """It takes none."""
    return ""


def plan(image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
    """The snapshot of the image that the URL names; *place* is how Ceph's tools find it. Raises `Unavailable`."""
    store = policy.remote
    if not isinstance(store, Rbd):
        raise Unavailable(
            f"the image {image if store is None else store.url} does not lie in a Ceph cluster",
            hint='snapshot = "rbd" is for image = "rbd:pool/name"; use another kind of snapshot',
        )
    found = store.ask(runner, "info")
    if found is None:
        raise Unavailable(f"the image {store.url} is not there", hint=store.fetch("FILE"))
    return Snapshot("rbd", name, shlex.join(store.words), str(found["id"]))


def take(planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
    """It is there as a whole or not at all."""
    store = _store(planned)
    store.do(runner, "snap", "create", f"--snap={planned.name}", "--no-progress")
    if runner.dry:
        return planned
    found = find(planned, runner)
    if found is None:
        raise Unavailable(f"Ceph does not show the snapshot {planned.name} that it has taken", hint="rbd snap ls")
    return found


def find(snapshot: Snapshot, runner: Runner) -> Snapshot | None:
    """Its number, while the image is the same one."""
    store = _store(snapshot)
    found: Any = store.ask(runner, "info")
    if found is None or str(found["id"]) != snapshot.origin:
        raise Unavailable(f"the image {store.url} is gone, or was replaced by another one", hint=f"rbd ls {store.pool}")
    listed: Any = store.ask(runner, "snap", "ls") or []
    number = next((str(one["id"]) for one in listed if one["name"] == snapshot.name), None)
    return evolve(snapshot, mark=number) if number else None


def remove(snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
    """Remove it; one that somebody has protected stays."""
    found = find(snapshot, runner)
    if found is not None and found.mark == snapshot.mark:
        _store(snapshot).do(runner, "snap", "rm", f"--snap={snapshot.name}", "--no-progress")


def _store(snapshot: Snapshot) -> Rbd:
    return rbd.found_by(shlex.split(snapshot.place))

"""`zfs`: a snapshot of the dataset that the image lies in. Its mark is its guid (zfsprops(7)), which never changes."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.snapshots.kind import Policy, Snapshot
from lukshook.store.image_file import open_folder
from lukshook.system.command import Runner, change, descriptor_path, find_tool, read
from lukshook.system.kernel import mounts_around

ARGUMENT = ""
#: Seconds: destroying one frees its blocks in the background.
_SECONDS = 1800.0


def check(argument: str) -> str:
    """It takes none."""
    return ""


def plan(image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
    """The snapshot of the dataset of *image*. Raises `Unavailable` where it lies in none."""
    find_tool("zfs")
    folder = open_folder(image.parent)
    try:
        real = os.readlink(descriptor_path(folder))
    finally:
        os.close(folder)
    mount = next(reversed(mounts_around(real)), None)
    if mount is None or mount.kind != "zfs" or mount.root != "/":
        raise Unavailable(
            f"the image {image} does not lie in a dataset of ZFS that is mounted here",
            hint="move it to a dataset of its own (zfs create), or use another kind of snapshot",
        )
    inner = Path(real).relative_to(mount.target) / image.name
    origin = _guids(mount.source, "", runner).get(mount.source, "")
    return Snapshot("zfs", name, mount.source, origin, image=f"{mount.target}/.zfs/snapshot/{name}/{inner}")


def _guids(dataset: str, name: str, runner: Runner) -> dict[str, str]:
    """The guids of *dataset* and of its snapshot *name*, by their full names; without what does not exist."""
    asked = (dataset, f"{dataset}@{name}") if name else (dataset,)
    # Exit status 1 where one of them does not exist; the other is printed all the same.
    result = runner.run(read("zfs", "get", "-Hp", "-o", "name,value", "guid", *asked, ok=(0, 1)))
    rows = (line.partition("\t") for line in result.out.split("\n"))
    found = {full: guid for full, _, guid in rows if guid}
    if dataset not in found:
        raise Unavailable(f"zfs does not show the dataset {dataset}: {result.reason}", hint="zpool status; zfs list")
    return found


def take(planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
    """zfs-snapshot(8): it is there as a whole or not at all."""
    runner.run(change("zfs", "snapshot", f"{planned.place}@{planned.name}", timeout=_SECONDS))
    if runner.dry:
        return planned
    found = find(planned, runner)
    if found is None:
        raise Unavailable(
            f"zfs does not show the snapshot {planned.name} that it has taken", hint="zfs list -t snapshot"
        )
    return found


def find(snapshot: Snapshot, runner: Runner) -> Snapshot | None:
    """Its guid, while the dataset is the same."""
    guids = _guids(snapshot.place, snapshot.name, runner)
    if guids[snapshot.place] != snapshot.origin:
        raise Unavailable(f"the dataset {snapshot.place} was replaced by another one", hint="zfs list")
    guid = guids.get(f"{snapshot.place}@{snapshot.name}")
    return evolve(snapshot, mark=guid) if guid else None


def remove(snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
    """zfs-destroy(8), without an option that would take what depends on it."""
    found = find(snapshot, runner)
    if found is not None and found.mark == snapshot.mark:
        runner.run(change("zfs", "destroy", f"{snapshot.place}@{snapshot.name}", timeout=_SECONDS))

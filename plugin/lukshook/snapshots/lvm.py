"""`lvm`: a read-only thin snapshot of the logical volume that is the image. Its mark is the UUID that LVM gives it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.snapshots.kind import Policy, Snapshot
from lukshook.store.image_file import node_of
from lukshook.system.command import Command, Result, Runner, change, find_tool, read
from lukshook.system.kernel import number

ARGUMENT = ""
_FIELDS = "vg_name,lv_name,lv_uuid,segtype,origin_uuid"


def check(argument: str) -> str:
    """It takes none."""
    return ""


def plan(image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
    """The snapshot of the logical volume *image*. Raises `Unavailable` where it is none, or is not thin."""
    find_tool("lvcreate")
    found = next(iter(_rows(runner.run(_listing("--select", _numbers(image))))), None)
    if found is None:
        raise Unavailable(
            f"the image {image} is not a logical volume", hint="use another kind of snapshot, such as btrfs"
        )
    if found["segtype"] != "thin":
        raise Unavailable(
            f"the logical volume {image} is not thin",
            hint="only a thin volume can be snapshotted without reserving space: lvmthin(7)",
        )
    return Snapshot("lvm", name, found["vg_name"], found["lv_uuid"], image=f"/dev/{found['vg_name']}/{name}")


def _numbers(image: Path) -> str:
    """What selects the device *image* (lvmreport(7)): its name may be any of several. Raises `Unavailable`."""
    try:
        major, _, minor = number(image).partition(":")
    except OSError as error:
        raise Unavailable(f"the image {image} is not a block device", hint="use another kind of snapshot") from error
    return f"lv_kernel_major={major} && lv_kernel_minor={minor}"


def _listing(*chosen: str) -> Command:
    """lvs(8)."""
    return read("lvs", "--reportformat", "json", "--options", _FIELDS, *chosen)


def _rows(result: Result) -> list[dict[str, str]]:
    try:
        rows = json.loads(result.out)["report"][0]["lv"]
        return [{name: str(row[name]) for name in _FIELDS.split(",")} for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable("lvs does not answer in JSON", hint="at least LVM 2.02.158 is needed") from error


def take(planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
    """Read-only, and active so that it can be opened by its path; by default a thin one is not: lvcreate(8)."""
    origin = _named(planned, runner, "lv_uuid", planned.origin)
    if origin is None:
        raise Unavailable(f"the logical volume of {planned.name} is gone", hint="lvs")
    source = f"{planned.place}/{origin['lv_name']}"
    flags = ("--snapshot", "--permission", "r", "--setactivationskip", "n", "--addtag", "lukshook")
    runner.run(change("lvcreate", *flags, "--name", planned.name, source))
    if runner.dry:
        return planned
    found = find(planned, runner)
    if found is None:
        raise Unavailable(f"LVM does not show the snapshot {planned.name} that it has taken", hint="lvs")
    return found


def _named(snapshot: Snapshot, runner: Runner, field: str, value: str) -> dict[str, str] | None:
    """The logical volume of its volume group that has *value* in *field*."""
    rows = _rows(runner.run(_listing(snapshot.place)))
    return next((row for row in rows if row[field] == value), None)


def find(snapshot: Snapshot, runner: Runner) -> Snapshot | None:
    """A logical volume of that name, taken of the origin."""
    found = _named(snapshot, runner, "lv_name", snapshot.name)
    if found is None or found["origin_uuid"] != snapshot.origin:
        return None
    return evolve(snapshot, mark=found["lv_uuid"], image=_node(snapshot))


def _node(snapshot: Snapshot) -> str:
    """The device by the name that the kernel gives it: LVM's own name is a link."""
    return os.fspath(node_of(Path("/dev", snapshot.place, snapshot.name)))


def remove(snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
    """lvremove(8) refuses one that is open."""
    found = find(snapshot, runner)
    if found is not None and found.mark == snapshot.mark:
        runner.run(change("lvremove", "--yes", f"{snapshot.place}/{snapshot.name}"))

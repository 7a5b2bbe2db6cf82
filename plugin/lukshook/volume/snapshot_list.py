"""The snapshots that lukshook has taken of a volume: a file in the state folder, in the order in which they were taken.

A snapshot is noted before it is taken, without its mark, and again with it. So it is known after a kill at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from attrs import asdict

from lukshook.errors import Denied, Refused
from lukshook.snapshots import kinds
from lukshook.snapshots.kind import Snapshot, is_name
from lukshook.system import files, json_files
from lukshook.volume.known_state import KnownState


def load(state: KnownState) -> tuple[Snapshot, ...]:
    """The oldest first. Raises `Refused` where the file is damaged, `Denied` where this user may not read it."""
    try:
        found = json_files.objects(json_files.load(state.snapshots), "snapshots")
        return tuple(_snapshot(one, state.volume) for one in found)
    except FileNotFoundError:
        return ()
    except PermissionError as error:
        raise Denied(
            f"{state.snapshots} cannot be read: permission denied",
            hint="run as root, or as the user who opens the volume",
        ) from error
    except json_files.Damaged as error:
        raise Refused(
            f"{state.snapshots} is damaged: {error}",
            hint="restore it, or remove it: then lukshook no longer removes the snapshots that it has taken",
        ) from error


def _snapshot(data: object, volume: str) -> Snapshot:
    found = json_files.build(Snapshot, data)
    if found.kind not in kinds.KINDS or not is_name(found.name, volume):
        raise json_files.Damaged("a snapshot in it has a name that lukshook does not give")
    return found


def save(state: KnownState, snapshots: Iterable[Snapshot]) -> None:
    """Keep them, so that they outlive a power cut. Raises OSError."""
    state.make_folder()
    content = json.dumps({"snapshots": [asdict(one) for one in snapshots]}, indent=1).encode()
    files.write_whole(state.snapshots, content, durable=True)

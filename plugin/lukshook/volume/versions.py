"""The older states of a volume's image: our snapshots, and what the configuration's patterns find. Needs no key."""

from __future__ import annotations

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import LukshookError
from lukshook.snapshots import kinds
from lukshook.snapshots import listed as by_pattern
from lukshook.snapshots.kind import Snapshot
from lukshook.store import liveness
from lukshook.volume import snapshot_list
from lukshook.volume.context import Site

#: The kind of a version that was found by a pattern.
LISTED = "listed"


@frozen
class Version:
    """An older state. *taken*: seconds since the epoch; of one that was not taken by us, as the store says.

    *image*: the path that `open --image` takes, "" where the copy has none here. *problem*: why it was not looked at.
    """

    taken: float
    kind: str
    name: str
    image: str
    problem: str = ""


def of(volume: Volume, site: Site) -> list[Version]:
    """The versions of *volume*, the newest first. Raises `Refused`, `Denied`; `Unavailable` where a store is dead."""
    own = [version for one in snapshot_list.load(site.state(volume)) if (version := _own(one, site)) is not None]
    paths = {version.image for version in own}
    others = [found for pattern in volume.versions for found in listed(pattern, site) if found.image not in paths]
    return sorted([*own, *dict.fromkeys(others)], key=lambda version: version.taken, reverse=True)


def _own(noted: Snapshot, site: Site) -> Version | None:
    """A snapshot of ours, if it is there; what has its name and another mark is not ours."""
    problem, image = "", noted.image
    try:
        found = kinds.named(noted.kind).find(noted, site.runner)
        if found is None or (noted.mark and found.mark != noted.mark):
            return None
        image = found.image
    except LukshookError as error:
        problem = error.message
    except OSError as error:
        problem = error.strerror or str(error)
    return Version(noted.taken, noted.kind, noted.name, image, problem)


def listed(pattern: str, site: Site) -> list[Version]:
    """The copies that *pattern* finds; none where its folder is not there. Raises `Unavailable`: a dead store."""
    liveness.probe(by_pattern.fixed_part(pattern) / "any", site.runner)
    try:
        return [Version(found.written, LISTED, "", found.path) for found in by_pattern.copies(pattern)]
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            site.warn(f"{pattern} cannot be listed: {error.strerror}")
        return []

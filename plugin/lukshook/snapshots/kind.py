"""What a kind of snapshot is: the functions of one file beside this one, and what is written down of a snapshot."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from lukshook.system.command import Runner

if TYPE_CHECKING:
    from lukshook.store.remote.kind import Store

#: How many are kept where the configuration says nothing: a week of nightly backups.
KEPT = 7


@frozen(repr=False)
class Policy:
    """What the configuration says: *kind* with its *argument*, how many to *keep*.

    *hard*: a snapshot that cannot be taken is an error. *prune*: the command that removes a copy. *remote*: where the
    image is, if that is another place.
    """

    kind: str
    argument: str = ""
    keep: int = KEPT
    hard: bool = False
    prune: tuple[str, ...] = ()
    remote: Store | None = None


@frozen(repr=False)
class Snapshot:
    """A snapshot that is ours, or is about to be.

    *place*: where it is, as its kind names that: a subvolume, a dataset, a volume group. *origin*: the identity of what
    it was taken of; *mark*: its own, "" until it is known to be there. Both are given by the kernel or the tool, and
    are never used again. *taken*: seconds since the epoch. *image*: path of the image in it, "" where there is none.
    """

    kind: str
    name: str
    place: str = ""
    origin: str = ""
    mark: str = field(default="")
    taken: float = 0.0
    image: str = ""


class Kind(Protocol):
    """The shape of a file with a kind of snapshot."""

    #: What its argument is called, "" for none.
    ARGUMENT: str

    def check(self, argument: str) -> str:
        """What is wrong with *argument*, or ""."""
        ...

    def plan(self, image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
        """The snapshot *name* that could be taken of *image*. Changes nothing. Raises why none can be taken."""
        ...

    def take(self, planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
        """Take it; gives it with its mark. It outlives a power cut then. Raises LukshookError, OSError."""
        ...

    def find(self, snapshot: Snapshot, runner: Runner) -> Snapshot | None:
        """What is there under the name of *snapshot*, with its mark; None where nothing is that is of its origin.

        Raises LukshookError, OSError where that cannot be seen.
        """
        ...

    def remove(self, snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
        """Remove it, if what is there has its mark; it stays away after a power cut. Raises as `find` does."""
        ...


def name_of(volume: str, moment: float) -> str:
    """The name of a snapshot of *volume* taken at *moment*, in UTC."""
    return f"lukshook-{volume}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(moment))}"


def is_name(text: str, volume: str) -> bool:
    """Whether *text* is the name of a snapshot of *volume*."""
    return re.fullmatch(rf"lukshook-{re.escape(volume)}-[0-9]{{8}}T[0-9]{{6}}Z", text, re.ASCII) is not None

"""The image of a volume at a remote place: there while somebody works on it, or while the volume is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from lukshook.config import Volume
from lukshook.store import room
from lukshook.store.image_file import ImageFile
from lukshook.store.room import Room
from lukshook.system.command import SystemRunner
from lukshook.volume.context import Site

if TYPE_CHECKING:
    from lukshook.store.remote.attachment import Attachment


def attachment(volume: Volume, site: Site) -> Attachment | None:
    """What shows the image of *volume* as a file; None for a local image.

    In a dry run too: to look at an image, it has to be there.
    """
    remote = volume.image.remote
    if remote is None:
        return None
    from lukshook.store.remote.attachment import Attachment  # noqa: PLC0415 - only for remote images

    runner = SystemRunner() if site.runner.dry else site.runner
    store = remote.with_agent(site.agent).with_token(site.state(volume).holder)
    folder, patience = volume.image.image.parent, volume.image.patience
    return Attachment(store, folder, patience, read_only=volume.read_only, runner=runner, warn=site.warn)


def used(found: Attachment | None, *, attach: bool = True, writes: bool = True) -> AbstractContextManager[None]:
    """While the image that *found* shows is used; *writes* as in `Attachment.used`."""
    return nullcontext() if found is None else found.used(attach=attach, writes=writes)


@contextmanager
def at_hand(volume: Volume, site: Site) -> Iterator[Attachment | None]:
    """The image of *volume* is at its local path inside: for those that only read it, also without the lock."""
    found = attachment(volume, site)
    with used(found, writes=False):
        yield found


def check_answers(volume: Volume, site: Site) -> None:
    """Check that the store of *volume* answers now, in place of an image that cannot be read. Raises `Unavailable`."""
    found = attachment(volume, site)
    if found is None:
        volume.image.probe(site.runner)
    else:
        found.look()


def is_there(volume: Volume, site: Site) -> bool:
    """Whether there is an image. One that can only be used as it is counts once this host knows what is in it."""
    found = attachment(volume, site)
    if found is None:
        return volume.image.image.exists()
    return site.state(volume).known.pins is not None if volume.image.is_given else found.look().length is not None


def room_of(image: ImageFile, found: Attachment | None) -> Room:
    """What an open *image* takes from its store, and what that has left. Raises OSError."""
    return room.of(image) if found is None else found.room(image.size)

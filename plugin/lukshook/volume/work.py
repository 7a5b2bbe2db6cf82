"""A volume that is being worked on: its lock, its record, what is known of it, and how it is opened."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import NoImage, NotSafe
from lukshook.layers import mount_point
from lukshook.layers.base import Opening, Trust
from lukshook.store.image_file import ImageFile, open_image
from lukshook.store.room import Room
from lukshook.system.command import Runner
from lukshook.volume import header_change, history, records, remote
from lukshook.volume.context import Site, opening_of
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import Known, KnownState
from lukshook.volume.records import RecordFile

if TYPE_CHECKING:
    from lukshook.store.remote.attachment import Attachment


@frozen(eq=False, repr=False)
class Work:
    """One command's work on one volume, whose lock it holds: no other lukshook works on that volume meanwhile.

    *record*: what is open of it; *state*: what this host keeps of it. Both are read once. *attachment*: what shows a
    remote image as a file, None for a local one.
    """

    volume: Volume
    site: Site
    record: RecordFile
    state: KnownState
    attachment: Attachment | None = None

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.volume.name

    @property
    def runner(self) -> Runner:
        """Who carries out commands."""
        return self.site.runner

    @property
    def has_ledger(self) -> bool:
        """Whether a ledger is kept of the volume, or was kept when it was written last."""
        return self.site.keeps_state and (self.volume.ledger or self.state.ledger.is_dir())

    def trust(self) -> Pinned:
        """What the store has to agree with. Raises `Refused`, `Denied` where that cannot be read."""
        return header_change.trust_of(self.state)

    def opening(self, trust: Trust | None = None, *, read_only: bool, image: ImageFile | None = None) -> Opening:
        """One opening for the layers, on *image* where that is open; without *trust* nothing is judged."""
        opening = opening_of(self.volume, self.site, trust, read_only=read_only)
        return evolve(opening, image=image, doubted=trust is not None and self.state.known.doubted)

    def secure_mount_point(self) -> None:
        """Make the mount point a bare folder that nothing can be written to. Raises what `mount_point.secure` does."""
        mount_point.secure(self.volume.mount, self.runner)

    def complete_header_change(self, image: ImageFile | None = None) -> None:
        """Complete a change of the header that was interrupted; *image*: the one that is open for writing, if it is."""
        if not header_change.is_interrupted(self.state):
            return
        if image is not None:
            header_change.complete(image, self.state, self.site.warn)
            return
        with open_image(self.volume.image.image, writable=True) as opened:
            header_change.complete(opened, self.state, self.site.warn)

    def room(self, image: ImageFile) -> Room:
        """What *image* takes from its store, and what that has left. Raises OSError."""
        return remote.room_of(image, self.attachment)

    def attach(self) -> None:
        """Let a remote image appear again, once nothing stands any more on what an earlier run left."""
        if self.attachment is not None:
            self.attachment.attach()

    def lost_at_store(self) -> str:
        """Why what was flushed to a remote image may be lost all the same, or ""."""
        try:
            if self.attachment is not None:
                self.attachment.check_same()
        except NotSafe as error:
            return error.message
        return ""

    def loss_is_reported(self) -> None:
        """What closing has lost is written down, so nobody needs to report it again."""
        if self.attachment is not None:
            self.attachment.reported()

    def remember(self, known: Known) -> None:
        """Keep what is known now, where it has changed. An image without configuration has no place for that."""
        if self.site.keeps_state and known != self.state.known:
            self.state.save(known)

    def remember_backup(self, known: Known) -> None:
        """Keep what is known now of a backup that has just ended, and add it to the history, once."""
        self.remember(known)
        if self.site.keeps_state:
            history.add(self.state, known, self.site.warn)

    def learn(self, trust: Pinned, written: int | None) -> None:
        """Keep what an opening of our own has shown: what *trust* has seen, and how much was ever *written*."""
        seen, known = trust.known, self.state.known
        count = known.written if written is None else written
        self.remember(evolve(known, pins=seen.pins, filesystem=seen.filesystem, extent=seen.extent, written=count))


@contextmanager
def work_on(volume: Volume, site: Site, *, attach: bool = True, writes: bool = True) -> Iterator[Work]:
    """Take the lock of *volume*, and let a remote image appear, unless *attach* is False.

    *writes*: at the end, a remote store is asked whether what was written there may be lost.
    Raises `Unavailable` when another lukshook keeps the lock for too long, or the remote image is not there; `NotSafe`
    where what was written to that may be lost.
    """
    with records.locked(site.run_folder, volume.label) as record:
        state, found = site.state(volume), remote.attachment(volume, site)
        _unblock(record, site.runner)
        try:
            with remote.used(found, attach=attach, writes=writes):
                yield Work(volume, site, record, state, found)
        except NoImage as error:
            raise advised(error, state) from error


def _unblock(file: RecordFile, runner: Runner) -> None:
    """End what a look at the layers of a killed run would wait for. Raises `Unavailable`."""
    record = file.load()
    handles = [handle for _, handle in record.layers] if record is not None else []
    for handle, above in itertools.pairwise(handles):
        handle.unblock(above.path, runner)


def advised(error: NoImage, state: KnownState) -> NoImage:
    """*error* with what to do: a volume that is known here must not be created again."""
    if state.header_backup.exists():
        hint = "is the store mounted? to put a copy of the image back: docs/recovery.md"
    else:
        hint = f"is the store mounted? to create a new image: lukshook create {state.volume}"
    return NoImage(error.message, hint=hint)

"""A volume that is being worked on: its lock, its record, what is known of it, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import NoImage
from lukshook.layers import mount_point
from lukshook.layers.base import Opening, Trust
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system.command import Runner
from lukshook.volume import header_change, records
from lukshook.volume.context import Site, opening_of
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import Known, KnownState
from lukshook.volume.records import RecordFile


@frozen(eq=False, repr=False)
class Work:
    """One command's work on one volume, whose lock it holds: no other lukshook works on that volume meanwhile.

    *record*: what is open of it; *state*: what this host keeps of it. Both are read once.
    """

    volume: Volume
    site: Site
    record: RecordFile
    state: KnownState

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
        return evolve(opening_of(self.volume, self.site, trust, read_only=read_only), image=image)

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

    def remember(self, known: Known) -> None:
        """Keep what is known now, where it has changed. An image without configuration has no place for that."""
        if self.site.keeps_state and known != self.state.known:
            self.state.save(known)

    def learn(self, trust: Pinned, written: int | None) -> None:
        """Keep what an opening of our own has shown: what *trust* has seen, and how much was ever *written*."""
        seen, known = trust.known, self.state.known
        count = known.written if written is None else written
        self.remember(evolve(known, pins=seen.pins, filesystem=seen.filesystem, extent=seen.extent, written=count))


@contextmanager
def work_on(volume: Volume, site: Site) -> Iterator[Work]:
    """Take the lock of *volume*. Raises `Unavailable` when another lukshook keeps it for too long."""
    with records.locked(site.run_folder, volume.label) as record:
        work = Work(volume, site, record, site.state(volume))
        try:
            yield work
        except NoImage as error:
            raise advised(error, work.state) from error


def advised(error: NoImage, state: KnownState) -> NoImage:
    """*error* with what to do: a volume that is known here must not be created again."""
    if state.header_backup.exists():
        hint = "is the store mounted? to put a copy of the image back: docs/recovery.md"
    else:
        hint = f"is the store mounted? to create a new image: lukshook create {state.volume}"
    return NoImage(error.message, hint=hint)

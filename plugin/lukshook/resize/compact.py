"""Giving what a volume does not use back to the store: only when asked, because it tells the store how full it is."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import Unavailable, Usage
from lukshook.layers import mount
from lukshook.resize.job import check_named
from lukshook.resize.resizing import image_locked
from lukshook.store import room
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system.command import Command, CommandFailed
from lukshook.volume import engine_choice, opening, recovery, stack, users
from lukshook.volume.context import Site
from lukshook.volume.judgement import Pinned
from lukshook.volume.work import Work, work_on


def compact(volume: Volume, site: Site, consent: Callable[[str], bool]) -> int | None:
    """Trim the volume's file system through the mapping, so that the image has holes there; bytes given back.

    None in a dry run. The volume has to be closed: the mapping lets trimming through for this one opening. Raises
    `Unavailable` (open, or the store makes no holes), `Usage` (not confirmed), and what opening raises.
    """
    if not engine_choice.chosen(volume).trims:
        raise Unavailable(
            f"volume {volume.name} cannot be compacted by the userspace engine",
            hint="qemu does not tell the store which blocks are unused; the kernel engine does",
        )
    trim = mount.trim(os.fspath(volume.mountpoint))
    through = volume.trimming()
    if site.runner.dry:
        script = opening.rehearse(through, site, read_only=False)
        for command in (trim, *(script.closing if script else ())):
            site.runner.run(command)
        return None
    with (
        work_on(volume, site) as work,
        open_image(volume.image.image, writable=True) as image,
        image_locked(image, site),
    ):
        if recovery.recovered(work) is not None:
            raise Unavailable(
                f"volume {volume.name} is open", hint=f"when it is not used: lukshook close {volume.name}"
            )
        if not consent(f"free unused space, and show anyone who can read {volume.image.shown} which parts are in use"):
            raise Usage("compacting was not confirmed", hint="without a terminal, use --yes")
        before = room.of(image).allocated
        work.complete_header_change(image)
        trust = work.trust()
        work.secure_mount_point()
        _trim(evolve(work, volume=through), trust, image, trim)
        check_named(image, changed=True)
        return max(before - room.of(image).allocated, 0)


def _trim(work: Work, trust: Pinned, image: ImageFile, trim: Command) -> None:
    """Open the volume once for *trim*, and close it."""
    with stack.unwinding(work):
        opening = work.opening(trust, read_only=False, image=image)
        layers = engine_choice.stack_of(work.volume)
        stack.push_layers(work, opening, users.ourselves("lukshook compact"), layers=layers)
        try:
            work.runner.run(trim)
        except CommandFailed as error:
            raise Unavailable(
                f"the store cannot free unused space: {error.result.reason}",
                hint="the store must support holes in files (fallocate --punch-hole)",
            ) from error
        written = stack.take_down(work)
    work.learn(trust, written)

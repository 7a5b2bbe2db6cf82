"""Any LUKS image and its key, without configuration: closed, or open and mounted by whomever."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import Denied, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.filesystems.mounts import shows_all
from lukshook.keys import key_sources
from lukshook.layers import dmcrypt, filesystem, fuse2fs, loop, mount, qemu
from lukshook.layers import image as image_layer
from lukshook.layers.base import Handles, LayerHandle
from lukshook.resize.job import Job, of_kind
from lukshook.resize.resizing import Interaction, Resized, one_key, resize_locked
from lukshook.store import room
from lukshook.store.image_file import open_image
from lukshook.store.room import Room
from lukshook.system import kernel, loops
from lukshook.system.digest import sha256
from lukshook.volume.context import Site
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known
from lukshook.volume.work import work_on

#: An image of which more than one part in so many has no blocks is sparse, and grows sparse.
_SPARSE_PART = 100


def resize(path: Path, text: str, source: str, fill: str | None, site: Site, talk: Interaction) -> Resized | None:
    """Give the image or device *path* the size that *text* says, with the key from *source*.

    *fill* says how a file gets its new blocks; None: as it got those that it has. Saying "sparse" takes on that the
    store can fill up later. Raises what `resize.resize` does.
    """
    with open_image(path, writable=True) as image:
        volume = _volume(path, source, fill, site)
        site = evolve(site, keeps_state=False)
        filled = fill or _fill(room.of(image))
        with work_on(volume, site) as work:
            trust = Accepting(volume.name, Known())
            job = Job(work, image, trust, filled, talk.progress, any_kind=True)
            try:
                return _resize(job, text, talk)
            except Denied as error:
                raise Denied(
                    f"{path} cannot be opened: {error.message}", hint="is it the key of this image?"
                ) from error


def _resize(job: Job, text: str, talk: Interaction) -> Resized | None:
    with one_key(job) as ready:
        found = None if job.work.record.load() is not None else _opened_by_others(ready)
        if found is not None:
            return resize_locked(evolve(ready, work=evolve(ready.work, volume=found[0])), text, talk, found[1])
        return resize_locked(ready, text, talk)


def _volume(path: Path, source: str, fill: str | None, site: Site) -> Volume:
    """A volume as if it were configured, named after the image and its place."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:40]
    name = f"resize-{stem}-{sha256(os.fsencode(path)).hexdigest()[:8]}"
    place = site.mount_folder / "private" / f"{name}.mount"
    key_sources.parse(source)
    return Volume(
        name=name,
        image=image_layer.Spec(path),
        mount=mount.Spec(place),
        qemu=qemu.Spec(),
        fuse2fs=fuse2fs.Spec(place, old_fuse2fs=True),  # nothing is written through it
        filesystem=filesystem.Spec(),
        dmcrypt=dmcrypt.Spec(),
        key=(source,),
        space="warn" if fill == "sparse" else "refuse",
    )


def _fill(found: Room) -> str:
    return "sparse" if found.holes > found.length // _SPARSE_PART else "fallocate"


def _opened_by_others(job: Job) -> tuple[Volume, Handles] | None:
    """The layers of an image that another program has open and mounted, as the kernel shows them, or None."""
    which, path = job.image.identity, job.image.path
    handles: dict[str, LayerHandle] = {"image": image_layer.handle_of(job.image)}
    below = f"{os.major(which.device)}:{os.minor(which.device)}"
    if not job.image.block:
        under = next(iter(loops.on(loops.Backing(which.device, which.inode))), None)
        if under is None:
            return None
        below = kernel.number(under.node)
        handles["loop"] = loop.Handle(under.node, which.device, which.inode, loops.uses_direct_io(under.node))
    mapping = next((m for m in kernel.mappings() if below in m.under), None)
    where = next((m for m in kernel.mounts() if mapping and shows_all(m, mapping.number)), None)
    if mapping is None and "loop" not in handles:
        return None
    if mapping is None or where is None or where.kind not in KINDS or "ro" in where.options:
        used = mapping.name if mapping else handles["loop"].path
        raise Unavailable(
            f"{path} is in use ({used}), but not mounted for writing", hint="close it, or mount it, and try again"
        )
    place = f"/dev/mapper/{mapping.name}"
    facts = filesystem.facts(where.kind, place)
    handles["dmcrypt"] = dmcrypt.Handle(place, mapping.name, mapping.uuid, mapping.number, below)
    handles["filesystem"] = filesystem.Handle(place, where.kind, facts.uuid if facts else "")
    handles["mount"] = mount.Handle(where.target, place, mapping.number, "")
    table = dmcrypt.live_table(mapping.name, job.site.runner)
    volume = evolve(of_kind(job.volume, where.kind), dmcrypt=dmcrypt.Spec(discard="allow_discards" in table))
    return volume, handles

"""Any LUKS image and its key, without configuration: closed, or open and mounted by whomever."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from lukshook import engine, journal, kernel, keys, stack, users
from lukshook.config import Volume
from lukshook.digest import sha256
from lukshook.errors import Denied, Refused, Unavailable
from lukshook.image_file import open_image
from lukshook.journal import Book
from lukshook.layers import dmcrypt, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.resize import Resized, Talk, one_key, resize_locked
from lukshook.resize.work import Job, measure_store
from lukshook.site import Site
from lukshook.state import Known
from lukshook.trust import Accepting

#: An image of which more than one part in so many has no blocks is sparse, and grows sparse.
_SPARSE_PART = 100


def resize(path: Path, text: str, source: str, fill: str | None, site: Site, talk: Talk) -> Resized | None:
    """Give the image or device *path* the size that *text* says, with the key from *source*.

    *fill* says how a file gets its new blocks; None: as it got those that it has. Saying "sparse" takes on that the
    store can fill up later. Raises what `resize.resize` does.
    """
    with open_image(path, writable=True):
        pass
    volume = _volume(path, source, fill, site)
    site = evolve(site, keeps_state=False)
    job = Job(volume, site, Accepting(volume.name, Known()), fill or _fill(path), talk.progress)
    with journal.locked(site.run_folder, volume.name) as book, one_key(job) as ready:
        try:
            found = None if book.load() is not None else _opened_by_others(ready)
            if found is not None:
                return resize_locked(evolve(ready, volume=found[0]), text, book, talk, found[1])
            return resize_locked(_with_kind(ready, book), text, book, talk)
        except Denied as error:
            raise Denied(f"{path} cannot be opened: {error.message}", hint="is it the key of this image?") from error


def _volume(path: Path, source: str, fill: str | None, site: Site) -> Volume:
    """A volume as if it were configured, named after the image and its place."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:40]
    name = f"resize-{stem}-{sha256(os.fsencode(path)).hexdigest()[:8]}"
    place = site.mount_folder / "private" / f"{name}.mount"
    keys.parse(source)
    return Volume(
        name=name,
        image=image.Spec(path),
        mount=mount.Spec(place),
        qemu=qemu.Spec(),
        fuse2fs=fuse2fs.Spec(place, old_fuse2fs=True),  # nothing is written through it
        filesystem=filesystem.Spec(),
        dmcrypt=dmcrypt.Spec(),
        key=(source,),
        space="warn" if fill == "sparse" else "refuse",
    )


def _fill(path: Path) -> str:
    store = measure_store(path)
    return "sparse" if store.length - store.allocated > store.length // _SPARSE_PART else "fallocate"


def _with_kind(job: Job, book: Book) -> Job:
    """The job for the kind of file system that is really in the closed image; nothing is written for finding out."""
    if job.site.runner.dry:
        return job
    stack.standing(job.volume, book, job.site)
    whole = engine.stack(engine.choose(job.volume), job.volume)
    us = users.ourselves("lukshook-resize")
    with stack.unwinding(job.volume, book, job.site):
        layers = whole[: whole.index("filesystem")]
        record = stack.push_layers(job.volume, book, job.opening(read_only=True), us, layers=layers)
        kind = filesystem.kind_of(record.layers[-1][1].path)
        stack.take_down(job.volume, book, job.site)
    if kind is None:
        raise Refused(f"there is no file system in {job.image} that lukshook can resize", hint="ext4, xfs or btrfs")
    return evolve(job, volume=_of_kind(job.volume, kind))


def _of_kind(volume: Volume, kind: str) -> Volume:
    return evolve(volume, filesystem=filesystem.Spec(kind), mount=evolve(volume.mount, filesystem=kind))


def _opened_by_others(job: Job) -> tuple[Volume, Mapping[str, Any]] | None:
    """The layers of an image that somebody else has open and mounted, as the kernel shows them, or None."""
    handles: dict[str, Any] = {}
    below = os.fspath(job.image)
    opening = job.opening()
    handles["image"] = image.find(job.volume.image, "", opening)
    if not measure_store(job.image).block:
        found = os.stat(below)
        nodes = kernel.loops_of(kernel.Backing(found.st_dev, found.st_ino))
        if not nodes:
            return None
        below = nodes[0]
        handles["loop"] = loop.Handle(below, found.st_dev, found.st_ino, kernel.uses_direct_io(below))
    under = kernel.number(below)
    mapping = next((m for m in kernel.mappings() if under in m.under), None)
    where = next((m for m in kernel.mounts() if mapping and m.number == mapping.number and m.root == "/"), None)
    if mapping is None and "loop" not in handles:
        return None
    if mapping is None or where is None or where.kind not in filesystem.KINDS or "ro" in where.options:
        raise Unavailable(
            f"{job.image} is in use ({mapping.name if mapping else below}), but not mounted for writing",
            hint="close it, or mount it, and try again",
        )
    path = f"/dev/mapper/{mapping.name}"
    facts = filesystem.facts(where.kind, path)
    handles["dmcrypt"] = dmcrypt.Handle(path, mapping.name, mapping.uuid, mapping.number, under)
    handles["filesystem"] = filesystem.Handle(path, where.kind, facts.uuid if facts else "")
    handles["mount"] = mount.Handle(where.target, path, where.number, "")
    table = dmcrypt.live_table(mapping.name, job.site.runner)
    volume = evolve(_of_kind(job.volume, where.kind), dmcrypt=dmcrypt.Spec(discard="allow_discards" in table))
    return volume, handles

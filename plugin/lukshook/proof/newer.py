"""Is an image newer than what this host knows of it? Then its ledger calls damage what was written since.

That is so after this host was restored from its own backup, or another host has written. Every opening for writing
changes the super block, so an image that has the one of the ledger is not newer. Otherwise the key tells.
"""

from __future__ import annotations

from lukshook.errors import Denied, Refused, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.layers import filesystem
from lukshook.ledger.ledger import UNKNOWN, Ledger
from lukshook.proof.source import Source
from lukshook.volume import engine_choice, stack, users
from lukshook.volume.work import Work


def piece_of_super_block(work: Work, book: Ledger) -> int | None:
    """The piece that the super block lies in, None where this host has not seen a file system."""
    known = work.state.known
    if known.pins is None or known.filesystem is None:
        return None
    place = int(known.pins["offset"]) + KINDS[work.volume.filesystem.filesystem].super_block
    return int(place // book.state.piece) if place < book.state.size else None


def has_other_super_block(work: Work, found: Source) -> bool:
    """Whether that piece is another one now."""
    piece = piece_of_super_block(work, found.book)
    if piece is None or found.book.marks(piece, 1)[0] & UNKNOWN:
        return False
    read = (digest for stretch in found.reader.read(((piece, 1),)) for _, digest in stretch.each())
    return next(read, None) != found.book.digests(piece, 1)


def check_not_newer(work: Work, written: int | None) -> None:
    """Ask for the key, and compare the file system's count with *written*, that of the ledger. Raises `Refused`."""
    try:
        count, why = _count(work), "the file system in it cannot be read"
    except (Denied, Refused, Unavailable) as error:
        count, why = None, error.message
    if count is None or written is None:
        why = why if count is None else "this host does not know its count of the last close"
        raise Refused(
            f"the image of volume {work.name} may be newer than what this host knows, and nobody can tell: {why}",
            hint="healing destroys what was written since; if neither this host was restored from a backup, nor "
            "another one has written to the image: heal --even-newer",
        )
    if count > written:
        raise Refused(
            f"the image of volume {work.name} is newer than what this host knows of it: nothing was healed",
            hint="this host was restored, or another one has written to the image; it is as it should be, and healing "
            f"would destroy what was written since: lukshook trust {work.name} (docs/recovery.md)",
        )


def _count(work: Work) -> int | None:
    """What the file system in the closed image counts as ever written, None where that is not sure."""
    layers, kind = engine_choice.stack_of(work.volume), work.volume.filesystem.filesystem
    below, us = layers[: layers.index("filesystem")], users.ourselves("lukshook heal")
    with stack.unwinding(work):
        opening = work.opening(work.trust(), read_only=True)
        place = stack.push_layers(work, opening, us, layers=below).layers[-1][1].path
        found = filesystem.facts(kind, place)
        sealed = found is not None and found.uuid == work.state.known.filesystem and KINDS[kind].is_sealed(place)
        stack.take_down(work)
    return found.written if found is not None and sealed else None

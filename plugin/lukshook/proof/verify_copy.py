"""`verify --copy`: is a replica what this host has copied there? All of it is read, without the key."""

from __future__ import annotations

from attrs import frozen

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import Refused, Unavailable
from lukshook.ledger.digests import digest
from lukshook.ledger.pieces import Run
from lukshook.proof.copy import Progress, target_at, using
from lukshook.proof.runs import runs
from lukshook.proof.source import book_of, mark_of
from lukshook.replica import held
from lukshook.replica.held import Held
from lukshook.replica.place import Place
from lukshook.replica.replica import Replica
from lukshook.volume.context import Site
from lukshook.volume.work import Work, work_on


@frozen
class VerifiedCopy:
    """What is wrong with a replica of *size* bytes. *bad*: runs of pieces that are not what was copied.

    *length*: in words how its length is wrong, or "". *generation* of the ledger that it has, *behind*: how many clean
    closes came after that. *changing*: a change of it was interrupted; the next `copy` finishes it, and until then the
    replica may be mixed.
    """

    bad: tuple[Run, ...]
    size: int
    piece: int
    length: str
    generation: int
    behind: int
    changing: bool


def verify_copy(volume: Volume, site: Site, to: str, progress: Progress) -> VerifiedCopy:
    """Read all of the replica at *to*. The volume may be opened and closed meanwhile.

    Raises `Unavailable` (there is no copy, or this host knows of none), `Refused` (the ledger is another one since),
    `NotSafe` (the target fails).
    """
    with work_on(volume, site) as work, book_of(work) as book:
        known, secret = _known(work, to, mark_of(book)), book.secret
        piece, generation = book.state.piece, book.state.generation
    holding = known.holding

    def told(done: int) -> None:
        progress(done * piece, holding.size)

    def digest_of(content: bytes) -> bytes:
        return digest(secret, memoryview(content))

    with using(site, known), target_at(to, volume, site, writable=False) as target:
        place = Place(target, known, digest_of, piece, told)
        replica = Replica(place)
        length = replica.length()
        return VerifiedCopy(
            bad=runs(replica.wrong_pieces()),
            size=holding.size,
            piece=piece,
            length="" if length == holding.size else f"it has {size.show_instead(length, holding.size)}",
            generation=holding.generation,
            behind=max(generation - holding.generation, 0),
            changing=bool(holding.step) or target.exists(place.journal),
        )


def _known(work: Work, to: str, mark: str) -> Held:
    known = held.of(work.state.copies, to)
    if known is None or not known.started:
        raise Unavailable(
            f"this host knows of no copy of volume {work.name} at {to}",
            hint=f"lukshook copy {work.name} {to}; a copy that is there already is taken over with --adopt",
        )
    if known.holding.ledger != mark:
        raise Refused(
            f"the ledger of volume {work.name} was begun again after the last copy to {to}",
            hint=f"to read all of that copy and send what differs: lukshook copy {work.name} {to} --adopt",
        )
    return known

"""`verify --name-files`: what lies in the damaged pieces. It takes the key, and only looks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import Unavailable
from lukshook.filesystems.kind import Owners
from lukshook.layers import filesystem
from lukshook.layers.base import Extent
from lukshook.ledger import ledger, pieces
from lukshook.ledger.pieces import Run
from lukshook.volume import engine_choice, recovery, stack, users
from lukshook.volume.context import Site
from lukshook.volume.work import Work, work_on

#: Damaged pieces that are looked at: 2.5 GB.
_MOST = 10_000


@frozen
class Named:
    """What lies in the damaged pieces that the ledger knows. *header*: a part of the header; *owners*: the rest."""

    header: bool
    owners: Owners


def name(volume: Volume, site: Site) -> Named | None:
    """What lies in the damaged pieces of *volume*; None where there are none.

    Raises any `LukshookError` of an opening, and `Unavailable` where the file system does not tell.
    """
    with work_on(volume, site) as work:
        bad, piece = _bad(work)
        if not bad:
            return None
        start = _data(work)
        inside = tuple(_inside(bad, piece, start))
        owners = _owners(work, inside) if inside else Owners((), 0, 0)
        return Named(bad[0][0] * piece < start, owners)


def _bad(work: Work) -> tuple[Sequence[Run], int]:
    """The damaged pieces, and how many bytes a piece has."""
    book = ledger.load(work.state.ledger)
    if book is None:
        return (), 1
    with book:
        found = itertools.islice(book.bad(), _MOST)
        return tuple(pieces.merged((piece, 1) for piece in found)), book.state.piece


def _data(work: Work) -> int:
    """Where the data begins in the image, in bytes. Raises `Unavailable`."""
    pins = work.state.known.pins
    if pins is None:
        raise Unavailable(
            f"this host does not know the header of volume {work.name}", hint=f"lukshook trust {work.name}"
        )
    return int(pins["offset"])


def _inside(bad: Sequence[Run], piece: int, start: int) -> Iterator[Extent]:
    """The pieces as bytes of what is in the volume."""
    for first, number in bad:
        begin, end = max(first * piece, start), (first + number) * piece
        if begin < end:
            yield begin - start, end - begin


def _owners(work: Work, inside: tuple[Extent, ...]) -> Owners:
    kind = work.volume.filesystem.filesystem
    with _decrypted(work) as place:
        return filesystem.owners(kind, place, inside, work.runner)


@contextmanager
def _decrypted(work: Work) -> Iterator[str]:
    """The file or device that the file system lies in: of the open volume, or opened read-only for this block."""
    record = recovery.recovered(work)
    if record is not None:
        yield dict(record.layers)["filesystem"].path
        return
    with stack.unwinding(work):
        layers = engine_choice.stack_of(work.volume)
        below, us = layers[: layers.index("filesystem")], users.ourselves("lukshook verify")
        opening = work.opening(work.trust(), read_only=True)
        yield stack.push_layers(work, opening, us, layers=below).layers[-1][1].path
        stack.take_down(work)

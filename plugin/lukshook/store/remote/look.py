"""Whether a server has the image that earlier connections had: its export, and what is known of it (`pieces`)."""

from __future__ import annotations

from pathlib import Path

from lukshook.store.remote import export, pieces
from lukshook.store.remote.connection import Broken
from lukshook.store.remote.export import Export
from lukshook.store.remote.pieces import Piece, Pieces
from lukshook.store.remote.reading import Reading


class Look:
    """A look at what a server gives as *found*, before its client has it; then *known* begins with what is there.

    *folder*: the private one of the image; *known*: None where nothing has to be read. *extended*: the client has
    chosen extended headers. Raises `Broken`, OSError.
    """

    def __init__(self, folder: Path, found: Export, known: Pieces | None, *, extended: bool) -> None:
        self._folder, self._known = folder, known
        first = export.noted(folder)
        self._had = pieces.noted(folder) if first.length else None
        if first.length:
            export.check(first, found)
            wanted = [(piece.offset, piece.length) for piece in self._had or []]
        else:
            wanted = [(0, min(pieces.MOST, found.length))] if found.length else []
        self._reading = Reading(wanted if known is not None else [], extended=extended)
        if self.is_done and self._known is not None and self._had is not None:
            self._known.start(folder, [])

    @property
    def is_done(self) -> bool:
        """Whether all is read."""
        return self._reading.is_done

    @property
    def requests(self) -> bytes:
        """What the server is asked."""
        return self._reading.requests

    def take(self, data: bytes) -> None:
        """What the server says. Raises `Broken`, OSError."""
        self._reading.take(data)
        if self.is_done and self._known is not None:
            self._compare(self._known)

    def _compare(self, known: Pieces) -> None:
        """A first connection to a server that reads larger blocks alone: nothing is ever known of the image."""
        found = [Piece.of(offset, content) for offset, content in self._reading.found.items()]
        if self._had is not None and (self._reading.failed or set(found) != set(self._had)):
            raise Broken("the server has another image now, or has lost what it had stored")
        if not self._reading.failed:
            known.start(self._folder, found)

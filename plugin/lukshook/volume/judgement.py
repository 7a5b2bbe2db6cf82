"""What this host knows of a volume against what the store shows: pins, the key's own mark, history."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from lukshook import size
from lukshook.errors import Refused
from lukshook.luks import header
from lukshook.luks.header import Copy, Header
from lukshook.system import clock
from lukshook.system.secret import Secret
from lukshook.volume.known_state import Known

#: What to do with an image that is too short.
_RESTORE = "the store lost its end: put a complete copy in its place (docs/recovery.md)"


def check_whole(image: str, length: int, least: int, hint: str = _RESTORE) -> None:
    """Check that *image* has the *least* bytes that its file system needs; a longer one is fine. Raises `Refused`.

    No interrupted resize of ours explains a shorter one: growing makes the image longer before the file system,
    shrinking makes it shorter after the file system (resize/plan.py).
    """
    if length < least:
        raise Refused(f"{image} is shorter than its file system: {size.show_instead(length, least)}", hint=hint)


def check_known_length(volume: str, known: Known, length: int) -> None:
    """`check_whole` without the key: for the file system that this host saw last in *volume*."""
    if known.pins is not None and known.extent is not None:
        hint = f"{_RESTORE}; if another host shrank it, open it once on this host"
        check_whole(f"the image of volume {volume}", length, known.pins["offset"] + known.extent, hint)


class Pinned:
    """Accepts what is known. A header that is new here is accepted only when the key itself vouches for it.

    `known` is what there is to remember afterwards. *pending* are the pins of a header that we were writing when we
    were interrupted: it may be there already.
    """

    def __init__(self, volume: str, known: Known, pending: Mapping[str, object] | None = None) -> None:
        self.volume = volume
        self.known = known
        self.pending = pending
        self._offset = 0
        self._length: int | None = None

    def as_known(self) -> Pinned:
        """For later openings of the same image: what was judged here is the known one from now on."""
        pinned = Pinned(self.volume, self.known)
        pinned._offset, pinned._length = self._offset, self._length
        return pinned

    def judge(self, copy: Copy, size: int) -> Header:
        """Sane, and as pinned."""
        judged = self._sane(copy, size)
        if self.pending is not None and header.pins(judged) == self.pending:
            return judged
        if self.known.pins is not None:
            header.compare(self.known.pins, judged)
        elif not header.find_macs(judged):
            raise self._unknown()
        return judged

    def _sane(self, copy: Copy, size: int) -> Header:
        judged = header.judge(copy, size)
        self._offset, self._length = judged.offset, size
        return judged

    def vouch(self, judged: Header, key: Secret) -> None:
        """The mark in the header has to be this key's; without pins there has to be one."""
        vouched = header.verify_mac(judged, key)
        if vouched is False:
            raise Refused(
                f"the header of volume {self.volume} was changed without the key",
                hint="do not use the image; restore a good header with: lukshook header restore " + self.volume,
            )
        if self.known.pins is None:
            if vouched is None:
                raise self._unknown()
            self.known = evolve(self.known, pins=header.pins(judged))

    def _when(self) -> str:
        closed = self.known.last_close
        return "" if closed is None else f", {clock.show(closed)}"

    def _unknown(self) -> Refused:
        return Refused(
            f"this host does not know the header of volume {self.volume} yet",
            hint=f"if the image is yours and is where you put it: lukshook trust {self.volume}",
        )

    def history(self, uuid: str, written: int | None) -> None:
        """The same file system, with at least as much written to it as when it was closed last."""
        if self.known.filesystem not in (None, uuid):
            raise Refused(
                f"volume {self.volume} contains file system {uuid}; this host expects {self.known.filesystem}",
                hint=f"if you recreated it: lukshook trust {self.volume}",
            )
        if None not in (written, self.known.written) and (written or 0) < (self.known.written or 0):
            raise Refused(
                f"the image of volume {self.volume} is older than when this host closed it last{self._when()}",
                hint="an older copy was restored; later backups are not in it. "
                f"If you did that: lukshook trust --rollback {self.volume}",
            )
        self.known = evolve(self.known, filesystem=uuid)

    def extent(self, size: int | None) -> None:
        """The image that was judged last ends behind its file system, whose size is remembered."""
        size = self.known.extent if size is None else size
        if size is not None:
            if self._length is not None:
                check_whole(f"the image of volume {self.volume}", self._length, self._offset + size)
            self.known = evolve(self.known, extent=size)


class OlderCopy(Pinned):
    """Accepts the known volume as it was at any time: with other key slots, and with less written to it.

    *image*: the path of the copy. Nothing that it shows becomes known of the volume.
    """

    def __init__(self, volume: str, known: Known, image: str) -> None:
        super().__init__(volume, known)
        self.image = image

    def judge(self, copy: Copy, size: int) -> Header:
        """Sane, of the known volume, and with the known volume key or a mark of a key."""
        judged = self._sane(copy, size)
        pinned = self.known.pins
        if pinned is not None and judged.uuid != pinned["uuid"]:
            raise Refused(
                f"{self.image} is not a copy of volume {self.volume}: its header has UUID {judged.uuid}, "
                f"this host expects {pinned['uuid']}",
                hint="is it the right file, and the right volume?",
            )
        if not self._has_known_key(judged) and not header.find_macs(judged):
            raise self._unknown_header()
        return judged

    def vouch(self, judged: Header, key: Secret) -> None:
        """The key's mark, where it has one, has to be right; without the known volume key it has to have one."""
        vouched = header.verify_mac(judged, key)
        if vouched is False:
            raise Refused(
                f"the header of {self.image} was changed without the key",
                hint="do not use it as it is; the header backup may open it: --header FILE",
            )
        if vouched is None and not self._has_known_key(judged):
            raise self._unknown_header()

    def _has_known_key(self, judged: Header) -> bool:
        return self.known.pins is not None and header.same_volume_key(self.known.pins, judged)

    def _unknown_header(self) -> Refused:
        return Refused(
            f"nothing shows that the header of {self.image} is one of volume {self.volume}",
            hint="the header backup may open it: --header FILE; for a volume that this host does not know yet: "
            f"lukshook trust {self.volume}",
        )

    def history(self, uuid: str, written: int | None) -> None:
        """The same file system; how old it is only tells."""
        super().history(uuid, None)

    def extent(self, size: int | None) -> None:
        """As always, but the file system may have had another size then."""
        if size is not None:
            super().extent(size)


class Accepting(Pinned):
    """Accepts any sane header and remembers it: for `create` and `trust`. *rollback*: an older image as well."""

    def __init__(self, volume: str, known: Known, *, rollback: bool = False) -> None:
        super().__init__(volume, known)
        self.rollback = rollback

    def judge(self, copy: Copy, size: int) -> Header:
        """Sane is enough."""
        judged = self._sane(copy, size)
        self.known = evolve(self.known, pins=header.pins(judged))
        return judged

    def vouch(self, judged: Header, key: Secret) -> None:
        """A MAC by this key that does not verify is still refused: a holder of the key would have signed the change."""
        if header.verify_mac(judged, key) is False:
            super().vouch(judged, key)

    def history(self, uuid: str, written: int | None) -> None:
        """Another file system is a new one; the known one must not be older, unless that was asked for."""
        if self.rollback or uuid != self.known.filesystem:
            self.known = evolve(self.known, filesystem=uuid, written=written)
        super().history(uuid, written)

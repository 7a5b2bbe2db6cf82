"""A replica and how it changes: at any moment, and after any kill or power cut, it is or becomes one whole state.

A first copy is written to NAME.part, read back, and renamed. A change goes into NAME.part too, as a journal; that is
read back and renamed to NAME.journal, which decides on the change; then it is applied and removed. What this host knows
of it (`held`) is written down before each of these steps, so the next run knows what it may find.

Where a store does not keep what it has synced, nothing can promise that; what is read back shows some of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from attrs import frozen

from lukshook.errors import Refused
from lukshook.replica import carrying_over, deciding, first_copy, reading
from lukshook.replica.journal import Change
from lukshook.replica.place import Place
from lukshook.system import clock


@frozen(eq=False, repr=False)
class Replica:
    """The replica at *place*.

    Its methods raise OSError where the target fails, `Refused` for what lies there and is not ours, and `NotSafe` for
    what the target has not kept. The next run continues.
    """

    place: Place

    def recover(self) -> bool:
        """Finish what an earlier run has decided on, and remove what it has not; whether there was anything to finish.

        Raises `Refused` for a journal that is damaged, or that this host has not decided on; `Unavailable` for a first
        copy that was removed.
        """
        place, held = self.place, self.place.held.holding
        waiting = place.target.exists(place.journal)
        if held.step == "reading":
            raise Refused(
                f"{place.target.shown} was not read to its end when it was to be taken over",
                hint="read it again: --adopt",
            )
        if held.step == "decided" and held.mixed and not deciding.is_decided_on(place):
            place.held.save(step="adopted")  # the name of the journal has not outlived a power cut
            return False
        if held.step == "adopted":
            return False
        if held.step == "naming":
            first_copy.finish_naming(place)
        elif waiting:
            deciding.check_journal(place)
            carrying_over.carry_over(place)
        elif held.step == "applying":
            raise Refused(
                f"the journal of {place.target.shown} was removed before the copy was complete: the copy is mixed",
                hint=f"put {place.journal} back, or read all of the copy and send what differs: --adopt",
            )
        elif held.step:  # "decided": the rename has not outlived a power cut; "applied": its removal has
            self._remove_neighbours()
        else:
            self._remove_neighbours()
            return False
        return True

    def plan(self, size: int) -> None:
        """The next change gives it *size* bytes. `recover` comes before: no journal is there then that counts."""
        self.place.target.plan(size, self.place.part)

    def first(self, changes: Iterable[Change], size: int, generation: int) -> int:
        """Make the replica of all pieces that are not zeros, and of those that `digests` has; bytes that were sent.

        `recover` comes before. What an interrupted run has sent is not sent again. Raises `Exists`.
        """
        sent = first_copy.make(self.place, changes, size, generation)
        first_copy.finish_naming(self.place)
        self.place.held.save(last_copy=clock.now(), sent=sent)
        return sent

    def update(self, changes: Iterable[Change], size: int, generation: int) -> int:
        """Make the replica what *changes*, which rise in number, and *size* say; bytes that were sent.

        `recover` comes before. What *changes* raises leaves the replica as it was.
        """
        place = self.place
        sent = deciding.decide(place, changes, size, generation)
        if sent:
            carrying_over.carry_over(place)
        else:
            for name in (place.part, place.journal):
                place.target.unlink(name)
            self._remove_neighbours()
        place.held.save(last_copy=clock.now(), sent=sent, generation=generation, mixed=False)
        return sent

    def _remove_neighbours(self) -> None:
        place = self.place
        for name in (place.clone, place.notice):
            if place.target.exists(name):
                place.target.unlink(name)
        if place.held.holding.step:
            place.held.save(step="")

    def adopt(self, wanted: int) -> None:
        """Take what lies there, which is read, for what the target holds; the next change makes it *wanted* bytes."""
        reading.adopt(self.place, wanted)

    def length(self) -> int:
        """Bytes of what lies there."""
        with closing(self.place.target.open(self.place.name, writable=False)) as file:
            return file.size

    def wrong_pieces(self) -> Iterator[int]:
        """Read all of the replica; the numbers of the pieces that are not what was copied."""
        return reading.wrong_pieces(self.place)

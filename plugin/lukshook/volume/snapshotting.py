"""Taking a snapshot of the store after a good backup, and removing the oldest that we have taken."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import LukshookError, Unavailable
from lukshook.snapshots import kinds
from lukshook.snapshots.kind import Policy, Snapshot, name_of
from lukshook.system import clock
from lukshook.volume import copies, snapshot_list
from lukshook.volume.context import Site
from lukshook.volume.work import Work


def take(work: Work, policy: Policy, ended: float, *, again: bool = False) -> None:
    """Take one of the closed image, and remove the oldest beyond those that are kept.

    *ended*: when the backup did. *again*: a kill has interrupted this before; then there may be one of that time.

    A failure is a warning: the backup is safe. Raises `Unavailable` instead where *policy* is hard.
    """
    try:
        _Taking(work, policy, ended, again).take()
    except (LukshookError, OSError) as error:
        why = error.message if isinstance(error, LukshookError) else str(error)
        text = f"the backup of volume {work.name} is safe and closed, but its snapshot failed: {why}"
        hint = getattr(error, "hint", "") or "lukshook check " + work.name
        if policy.hard:
            raise Unavailable(text, hint=hint) from error
        work.site.warn(f"{text}; {hint}")


def rehearse(volume: Volume, policy: Policy, site: Site) -> int:
    """Whether a snapshot could be taken now; the number of those that are noted. Raises why not."""
    noted = snapshot_list.load(site.state(volume))
    _planned(volume, policy, site, noted, clock.now())
    return len(noted)


def _planned(volume: Volume, policy: Policy, site: Site, noted: tuple[Snapshot, ...], moment: float) -> Snapshot:
    """The next snapshot, under a name that is not taken: the clock may have been set back."""
    kind = kinds.named(policy.kind)
    taken = {snapshot.name for snapshot in noted}
    after = moment
    while name_of(volume.name, after) in taken:
        after += 1
    return evolve(kind.plan(volume.image.image, name_of(volume.name, after), policy, site.runner), taken=moment)


@frozen
class _Taking:
    """One snapshot and what goes with it, while the volume's lock is held."""

    work: Work
    policy: Policy
    ended: float
    again: bool

    def take(self) -> None:
        """Note it, take it, note that it is there, remove the oldest."""
        work, noted = self.work, self._settled()
        if self.again and noted and noted[-1].taken == self.ended and noted[-1].mark:
            snapshot_list.save(work.state, noted)
            self._finish(noted)
            return
        planned = _planned(work.volume, self.policy, work.site, noted, self.ended)
        kind = kinds.named(planned.kind)
        if work.runner.dry:
            kind.take(planned, self.policy, work.runner)
            return
        if kind.find(planned, work.runner) is not None:
            raise Unavailable(f"there is a snapshot {planned.name} already", hint="remove it, or rename it")
        snapshot_list.save(work.state, (*noted, planned))
        made = kind.take(planned, self.policy, work.runner)
        snapshot_list.save(work.state, (*noted, made))
        self._finish((*noted, made))

    def _finish(self, noted: tuple[Snapshot, ...]) -> None:
        """The last of *noted* is there."""
        self.work.remember(evolve(self.work.state.known, last_snapshot=noted[-1].taken))
        self._prune(noted)

    def _settled(self) -> tuple[Snapshot, ...]:
        """What is noted, after those that a killed run has left unmarked have been found or cleared away."""
        noted = snapshot_list.load(self.work.state)
        if self.work.runner.dry:
            return noted
        return tuple(known for one in noted if (known := one if one.mark else self._found(one)) is not None)

    def _found(self, unmarked: Snapshot) -> Snapshot | None:
        kind = kinds.named(unmarked.kind)
        try:
            found = kind.find(unmarked, self.work.runner)
            if found is None:
                kind.remove(unmarked, self.policy, self.work.runner)
        except (LukshookError, OSError):
            return unmarked  # its store is away
        return found

    def _prune(self, noted: tuple[Snapshot, ...]) -> None:
        """Remove the oldest, each at once from what is noted. One that cannot be removed does not keep the others.

        One that somebody looks at stays until the next time.
        """
        failures: list[LukshookError | OSError] = []
        for old in noted[: -self.policy.keep]:
            if self._is_open(old):
                continue
            try:
                kinds.named(old.kind).remove(old, self.policy, self.work.runner)
            except (LukshookError, OSError) as error:
                failures.append(error)
                continue
            noted = tuple(one for one in noted if one != old)
            snapshot_list.save(self.work.state, noted)
        if failures:
            raise failures[0]

    def _is_open(self, old: Snapshot) -> bool:
        """Whether it is open as a copy of the volume, which is a warning."""
        place = copies.place_of(self.work.volume, Path(old.image), self.work.site) if old.image else None
        if place is not None:
            self.work.site.warn(
                f"snapshot {old.name} stays: it is open at {place}; a later backup removes it, after: "
                f"lukshook close {self.work.name} --at {place}"
            )
        return place is not None

"""Taking, pruning and listing versions, with a kind of snapshot that the test makes up; and copies by a pattern."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from attrs import evolve, field, frozen

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import LukshookError, Refused, Unavailable
from lukshook.snapshots import kinds, listed
from lukshook.snapshots.kind import Policy, Snapshot, is_name
from lukshook.store import liveness
from lukshook.system import clock
from lukshook.system.secret import Secret
from lukshook.volume import snapshot_list, snapshotting, versions
from lukshook.volume.context import Site
from lukshook.volume.work import work_on
from support.fake_runner import FakeRunner


@frozen
class Fake:
    """A kind of snapshot in memory. *fails*: what `take` raises, and whether the snapshot is there all the same."""

    there: dict[str, str] = field(factory=dict)
    fails: list[tuple[LukshookError, bool]] = field(factory=list)
    away: list[LukshookError] = field(factory=list)
    stuck: list[LukshookError] = field(factory=list)
    ARGUMENT: str = ""

    def check(self, argument: str) -> str:
        return ""

    def plan(self, image: Path, name: str, policy: Policy, runner: object) -> Snapshot:
        return Snapshot("fake", name, "place", "origin", image=f"/copies/{name}")

    def take(self, planned: Snapshot, policy: Policy, runner: object) -> Snapshot:
        error, there = self.fails.pop() if self.fails else (None, True)
        if there:
            self.there[planned.name] = f"mark {len(self.there)}"
        if error is not None:
            raise error
        return evolve(planned, mark=self.there[planned.name])

    def find(self, snapshot: Snapshot, runner: object) -> Snapshot | None:
        if self.away:
            raise self.away[0]
        mark = self.there.get(snapshot.name)
        return evolve(snapshot, mark=mark) if mark else None

    def remove(self, snapshot: Snapshot, policy: Policy, runner: object) -> None:
        if self.stuck:
            raise self.stuck[0]
        if self.there.get(snapshot.name) == snapshot.mark:
            del self.there[snapshot.name]


@pytest.fixture(name="fake")
def _fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """One more kind: one file, and one line."""
    made = Fake()
    module = ModuleType("lukshook.snapshots.fake")
    for name in ("ARGUMENT", "check", "plan", "take", "find", "remove"):
        setattr(module, name, getattr(made, name))
    monkeypatch.setitem(sys.modules, "lukshook.snapshots.fake", module)
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, "fake"))
    return made


@pytest.fixture(name="moments", autouse=True)
def _moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock, which a test sets; by itself it advances a day each time it is read."""
    found = [1_790_000_000.0]

    def now() -> float:
        found[0] += 86400
        return found[0]

    monkeypatch.setattr(clock, "now", now)
    yield found


def volume(folder: Path, **options: object) -> Volume:
    table = {"image": f"{folder}/image", "mountpoint": f"{folder}/mnt", "key": "prompt", **options}
    return config.parse({"volumes": {"offsite": table}}, folder / "config.toml").volumes["offsite"]


@frozen
class House:
    """A volume with snapshots of the kind "fake"."""

    folder: Path
    fake: Fake
    warnings: list[str] = field(factory=list)

    @property
    def site(self) -> Site:
        folder = self.folder
        return Site(folder / "run", folder / "state", FakeRunner(), lambda volume: Secret(b""), self.warnings.append)

    def take(self, *, keep: int = 3, hard: bool = False) -> None:
        chosen = volume(self.folder, snapshot="fake", keep_snapshots=keep, snapshot_hard=hard)
        assert chosen.snapshot is not None
        with work_on(chosen, self.site) as work:
            snapshotting.take(work, chosen.snapshot, clock.now())

    def noted(self) -> list[str]:
        state = self.site.state(volume(self.folder))
        return [one.name for one in snapshot_list.load(state)]

    def listed(self) -> list[str]:
        return [version.name for version in versions.of(volume(self.folder), self.site)]


@pytest.fixture(name="house")
def _house(tmp_path: Path, fake: Fake) -> House:
    return House(tmp_path, fake)


def test_the_newest_are_kept(house: House, fake: Fake) -> None:
    """As many as the configuration says; what is listed is what is there."""
    for _ in range(5):
        house.take()

    assert 3 == len(fake.there)
    assert list(fake.there) == house.noted() == house.listed()[::-1]
    assert all(is_name(name, "offsite") for name in fake.there)
    assert [] == house.warnings
    assert house.site.state(volume(house.folder)).known.last_snapshot is not None


def test_fewer_may_be_kept_from_now_on(house: House, fake: Fake) -> None:
    """The next one removes all that are too many."""
    for _ in range(5):
        house.take(keep=5)
    house.take(keep=1)

    assert 1 == len(fake.there) == len(house.noted())


def test_a_clock_that_was_ahead_removes_none_too_early(house: House, fake: Fake, moments: list[float]) -> None:
    """The order is that in which they were taken."""
    moments[0] += 10 * 365 * 86400
    house.take(keep=1)
    moments[0] = 1_790_000_000.0
    house.take(keep=1)

    (name,) = fake.there
    assert "2026" in name


def test_a_clock_that_stands_still_gives_other_names(house: House, fake: Fake, moments: list[float]) -> None:
    """Two backups within a second, or a clock that was set back."""
    for _ in range(3):
        moments[0] = 1_790_000_000.0
        house.take()

    assert 3 == len(fake.there)


def test_what_has_our_name_already_is_left_alone(house: House, fake: Fake, moments: list[float]) -> None:
    """Taken before the state folder was lost, or by somebody else."""
    house.take()
    (house.folder / "state/offsite.snapshots").unlink()
    moments[0] -= 86400
    there = dict(fake.there)

    house.take()

    assert there == fake.there
    (warning,) = house.warnings
    assert "its snapshot failed: there is a snapshot" in warning


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_is_a_warning(house: House, fake: Fake, there: bool) -> None:
    """Whether the tool has made the snapshot or not: the next run knows."""
    fake.fails.append((Unavailable("no room", hint="make some"), there))

    house.take()

    (warning,) = house.warnings
    assert "the backup of volume offsite is safe and closed, but its snapshot failed: no room; make some" == warning
    assert list(fake.there) == house.listed()
    house.take()
    assert list(fake.there) == house.listed()[::-1] == house.noted()


def test_a_failure_is_an_error_where_that_is_asked_for(house: House, fake: Fake) -> None:
    """With the words of the warning."""
    fake.fails.append((Unavailable("no room", hint="make some"), False))

    with pytest.raises(Unavailable, match="is safe and closed, but its snapshot failed: no room"):
        house.take(hard=True)


def test_a_store_that_is_away_forgets_nothing(house: House, fake: Fake) -> None:
    """Its snapshots are shown with the reason why they were not looked at."""
    house.take()
    fake.away.append(Unavailable("not mounted", hint="mount it"))

    (version,) = versions.of(volume(house.folder), house.site)

    assert "not mounted" == version.problem
    house.take()
    fake.away.clear()
    assert list(fake.there) == house.listed()


def test_one_that_cannot_be_removed_is_tried_again(house: House, fake: Fake) -> None:
    """And the new one is there."""
    house.take(keep=1)
    fake.stuck.append(Unavailable("in use", hint="wait"))
    house.take(keep=1)
    assert 2 == len(fake.there) == len(house.noted())
    assert 1 == len(house.warnings)
    fake.stuck.clear()

    house.take(keep=1)

    assert 1 == len(fake.there) == len(house.noted())


def test_one_that_another_has_replaced_is_not_listed(house: House, fake: Fake) -> None:
    """Its mark is another one."""
    house.take()
    fake.there.update(dict.fromkeys(fake.there, "another"))

    assert [] == house.listed()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"snapshots": 1}', '{"snapshots": [{}]}', '{"snapshots": [1]}'),
        json.dumps({"snapshots": [{"kind": "fake", "name": "lukshook-other-20261126T090000Z"}]}),
        json.dumps({"snapshots": [{"kind": "os", "name": "lukshook-offsite-20261126T090000Z"}]}),
        json.dumps({"snapshots": [{"kind": "fake", "name": "lukshook-offsite-20261126T090000Z", "more": 1}]}),
    ],
)
def test_a_damaged_list_is_refused(house: House, fake: Fake, content: str) -> None:
    """It names what lukshook may remove; nothing is removed on the word of another file."""
    house.take()
    (house.folder / "state/offsite.snapshots").write_text(content)

    with pytest.raises(Refused, match=r"offsite.snapshots is damaged"):
        house.listed()
    house.take()

    assert 1 == len(fake.there)
    assert "is damaged" in house.warnings[0]


# Copies that others have taken


def made(file: Path, moment: float = 0) -> str:
    """A file with its folders, written at *moment*."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (moment, moment))
    return str(file)


def found(pattern: str) -> list[str]:
    return sorted(copy.path for copy in listed.copies(pattern))


def test_a_pattern_finds_files(tmp_path: Path) -> None:
    """In each snapshot of the provider, and nothing else."""
    store = tmp_path / ".zfs/snapshot"
    wanted = [made(store / name / "backup.img") for name in ("daily-1", "daily-2")]
    made(store / "weekly/other.img")
    made(store / ".hidden/backup.img")
    (store / "folder/backup.img").mkdir(parents=True)
    os.mkfifo(store / "weekly/backup.img")

    assert wanted == found(f"{store}/*/backup.img")
    assert wanted[:1] == found(f"{store}/daily-[1]/backup.img")
    assert wanted == found(f"{tmp_path}/.z*/snap*/d*/*.img")
    assert wanted[:1] == found(wanted[0])


def test_a_link_of_the_store_leads_nowhere(tmp_path: Path) -> None:
    """Neither one in the place of a snapshot nor in the place of the image."""
    secret = made(tmp_path / "etc/backup.img")
    store = tmp_path / "store"
    made(store / "good/backup.img")
    (store / "folder").symlink_to(Path(secret).parent)
    (store / "file").mkdir()
    (store / "file/backup.img").symlink_to(secret)

    assert [f"{store}/good/backup.img"] == found(f"{store}/*/backup.img")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u2028b", b"a\xffb"])
def test_a_name_that_no_command_takes_is_left_out(tmp_path: Path, name: str | bytes) -> None:
    """It would be a line of its own in the list."""
    made(tmp_path / os.fsdecode(name) / "backup.img")

    assert [] == found(f"{tmp_path}/*/backup.img")


def test_ours_and_others_are_listed_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first, by the time that we know or the store says; a folder that is away hides nothing."""
    house.take()
    (ours,) = versions.of(volume(house.folder), house.site)
    older, newer = (made(house.folder / name / "image", ours.taken + ahead) for name, ahead in (("a", -9), ("b", 9)))
    patterns = [f"{house.folder}/*/image", f"{house.folder}/[ab]/image", f"{house.folder}/away/*"]

    both = versions.of(volume(house.folder, versions=patterns), house.site)

    assert [newer, ours.image, older] == [version.image for version in both]
    assert [versions.LISTED, "fake", versions.LISTED] == [version.kind for version in both]
    assert [] == house.warnings


def test_a_store_that_is_dead_is_asked_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lists its folder would hang."""
    asked: list[Path] = []

    def probe(path: Path, runner: object) -> None:
        asked.append(path)
        raise Unavailable("it does not answer", hint="")

    monkeypatch.setattr(liveness, "probe", probe)

    with pytest.raises(Unavailable):
        versions.of(volume(house.folder, versions="/mnt/far/*/image"), house.site)

    assert [Path("/mnt/far/any")] == asked

"""What is noted of a remote image, and what it means once the processes that show it are gone: without any server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest
from attrs import define, field

from lukshook.errors import NotSafe, Unavailable
from lukshook.store.remote.attachment import Attachment
from lukshook.store.remote.kind import EARLIER, LATE, UNFLUSHED, WRITING, WRITTEN, Abilities, Link, Seen, Store
from lukshook.store.remote.lock_file import Held, LockFile
from lukshook.store.remote.own_folder import HELD, OWED, OwnFolder
from lukshook.system.command import Runner
from support.fake_runner import FakeRunner


class Far(Store):
    """A store that can be away; *freed*: how often an image was let go."""

    abilities: ClassVar[Abilities] = Abilities(lock=True, measure=False, create=True, grow=True, reboots=True)
    away = False
    freed = 0

    def link(self, *, read_only: bool, silence: float) -> Link:
        raise NotImplementedError

    def look(self, runner: Runner) -> Seen:
        return Seen(4096, identity="boot")

    def refusal(self, said: str, status: int | None) -> Unavailable:
        raise NotImplementedError

    def fetch(self, file: str) -> str:
        raise NotImplementedError

    def hold(self, runner: Runner, *, read_only: bool) -> Seen:
        raise Unavailable("h cannot be reached")

    def let_go(self, runner: Runner) -> None:
        if Far.away:
            raise Unavailable("h cannot be reached")
        Far.freed += 1


@define
class House:
    """The private folder of an image, and what each lukshook does with it; *said*: its warnings."""

    own: OwnFolder
    said: list[str] = field(factory=list)

    def attachment(self) -> Attachment:
        store = Far("ssh://h/b")
        return Attachment(store, self.own.path, 0.0, read_only=False, runner=FakeRunner(), warn=self.said.append)

    def leave(self, *notes: str) -> None:
        self.own.path.mkdir(mode=0o700, exist_ok=True)
        for note in notes:
            (self.own.path / note).touch()

    def left(self) -> list[str]:
        return sorted(os.listdir(self.own.path)) if self.own.path.exists() else []


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(Far, "away", False)
    monkeypatch.setattr(Far, "freed", 0)
    (tmp_path / "run").mkdir(mode=0o700)
    return House(OwnFolder(tmp_path / "run" / "x.remote"))


def test_a_lock_that_cannot_be_let_go_stays_noted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says that others stay out; the next command lets it go."""
    monkeypatch.setattr(Far, "away", True)
    house.leave(HELD)
    with house.attachment().used(attach=False):
        pass
    assert [HELD] == house.left()
    assert ["other hosts stay locked out of ssh://h/b until lukshook works here: h cannot be reached"] == house.said
    monkeypatch.setattr(Far, "away", False)
    with house.attachment().used(attach=False):
        pass
    assert ([], 1, 1) == (house.left(), len(house.said), Far.freed)


def test_nothing_is_said_of_a_lock_that_was_not_taken(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store was away all the time. One that an earlier opening has taken stays noted."""
    monkeypatch.setattr(Far, "away", True)
    with pytest.raises(Unavailable, match="cannot be reached"), house.attachment().used():
        pass
    assert ([], []) == (house.left(), house.said)
    house.leave(HELD)
    with pytest.raises(Unavailable, match="cannot be reached"), house.attachment().used():
        pass
    assert ([HELD], 1) == (house.left(), len(house.said))


@pytest.mark.parametrize("notes", [(WRITTEN,), (WRITTEN, LATE), (WRITTEN, UNFLUSHED)])
@pytest.mark.parametrize("noted", [None, "", "{"])
@pytest.mark.parametrize("first", ["writes", "reads"])
def test_what_was_written_is_lost_where_nobody_knows_how_the_image_was(
    house: House, notes: tuple[str, ...], noted: str | None, first: str
) -> None:
    """Whoever comes first, and until that is reported."""
    house.leave(*notes)
    if noted is not None:
        (house.own.path / "noted").write_text(noted)
    if first == "reads":
        with house.attachment().used(attach=False, writes=False):
            pass
    for _ in range(2):
        lost = pytest.raises(NotSafe, match=r"the machine of ssh://h/b (may have|had not)")
        with lost, house.attachment().used(attach=False):
            pass
    last = house.attachment()
    last.reported()
    with last.used(attach=False):
        pass
    assert [] == house.left()


@pytest.mark.parametrize("notes", [(), (OWED,), (EARLIER,)])
def test_nothing_written_is_nothing_lost(house: House, notes: tuple[str, ...]) -> None:
    """A kill before the image was there leaves no note of it, and that loses nothing."""
    house.leave(*notes)
    with house.attachment().used(attach=False):
        pass
    assert set(house.left()) <= set(notes)


@pytest.mark.parametrize(
    ("notes", "left"),
    [
        ((), []),
        ((WRITING, WRITTEN), [EARLIER]),
        ((WRITING, WRITTEN, LATE, EARLIER), [EARLIER]),
        ((WRITTEN, EARLIER), [EARLIER]),
        ((WRITTEN, LATE, EARLIER), []),
        ((HELD, OWED, "noted"), [HELD, OWED]),
    ],
)
def test_what_concerns_the_next_opening_stays(house: House, notes: tuple[str, ...], left: list[str]) -> None:
    """Writes under way at the end may come after those of the next one; once that one counts as lost, they are over."""
    house.leave(*notes)
    house.own.forget()
    assert left == house.left()
    house.own.forget(all_of_it=True)
    assert [name for name in left if name == HELD] == house.left()


class Folder:
    """As much of a folder at an SFTP server as a lock file needs. *asked*: what was done; *files*: those in it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    def open(self, name: str, *, writable: bool) -> File:
        if name not in self.files:
            raise FileNotFoundError(name)
        return File(self, name)

    def create(self, name: str) -> File:
        self.files[name] = b""
        return File(self, name)

    def unlink(self, name: str) -> None:
        self.files.pop(name, None)

    def rename_fresh(self, name: str, wanted: str) -> None:
        if wanted in self.files:
            raise OSError
        self.files[wanted] = self.files.pop(name)
        self.asked.append("rename")

    def sync_folder(self) -> None:
        self.asked.append("sync folder")


@define
class File:
    """One in it."""

    folder: Folder
    name: str

    def write(self, offset: int, content: bytes) -> None:
        self.folder.files[self.name] = content

    def read(self, offset: int, length: int) -> bytes:
        return self.folder.files[self.name]

    def sync(self) -> None:
        self.folder.asked.append("sync")

    def leave(self) -> None:
        pass


def test_a_lock_survives_a_power_cut_there() -> None:
    """Its name too: the folder is synced once it has it, and only then."""
    folder = Folder()
    LockFile(".b.lock", "me").taken(folder)  # type: ignore[arg-type]
    assert ["sync", "rename", "sync folder"] == folder.asked
    with pytest.raises(Held):
        LockFile(".b.lock", "you").taken(folder)  # type: ignore[arg-type]
    assert ["sync", "rename", "sync folder"] == folder.asked

"""A power cut takes what a disk has in its cache: after each flush, and between two, what was reported holds."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from lukshook.system.secret import decode_key
from support.disk_write_log import Entry, Player, Recorder, run
from support.key_volume import opens
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")
MIB = 1 << 20


@frozen
class Promise:
    """What lukshook has reported by now: the files that are safe, and the keys that are out of use."""

    files: dict[str, bytes] = field(factory=dict)
    old_keys: tuple[str, ...] = ()
    created: bool = False


@frozen
class Life:
    """A volume's life on a recorded disk: what was promised is marked in the log, as is what the own disk has then.

    *alone*: the store has that disk for itself; key and state lie elsewhere, and what is written there is safe at once.
    """

    volume: CliVolume
    recorder: Recorder
    alone: bool
    chance: random.Random
    promises: list[Promise] = field(factory=lambda: [Promise()])

    @property
    def snapshots(self) -> Path:
        return self.recorder.folder / "snapshots"

    def do(self, *arguments: str, **promised: Any) -> None:
        """A command that succeeds, and what holds from then on."""
        done = self.volume.start(*arguments, prepare=self.armed).wait()
        assert 0 == done.returncode, (arguments, done.stderr)
        self.promises.append(evolve(self.promises[-1], **promised))
        self.recorder.mark(f"promise-{len(self.promises) - 1}")

    def back_up(self) -> None:
        """A backup of some files."""
        self.do("before-backup", NAME)
        fresh = {str(self.chance.random()): self.chance.randbytes(self.chance.randrange(1, MIB)) for _ in range(3)}
        for name, content in fresh.items():
            (self.volume.data / name).write_bytes(content)
        self.do("after-backup", NAME, files={**self.promises[-1].files, **fresh})

    def rotate(self) -> None:
        """A new key in the place of the old."""
        old = self.volume.key.read_text()
        self.do("key", "rotate", NAME, old_keys=(*self.promises[-1].old_keys, old))

    def armed(self) -> None:
        """For a forked lukshook whose state and key are safe at once: each change of them is kept, and marked."""
        if not self.alone:
            return
        for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "link")):
            setattr(owner, name, self._noting(getattr(owner, name)))

    def _noting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(path: Path | str, *more: Any, **options: Any) -> Any:
            result = call(path, *more, **options)
            if Path(path).is_relative_to(self.volume.state_folder) or Path(path).parent == self.volume.folder:
                self.snapshot()
            return result

        return noting

    def snapshot(self) -> None:
        """Keep state and key as they are now."""
        number = len(list(self.snapshots.iterdir()))
        kept = self.snapshots / str(number)
        kept.mkdir()
        for name in self.own_files():
            run("cp", "--archive", "--sparse=always", self.volume.folder / name, kept)
        self.recorder.mark(f"snapshot-{number}")

    def own_files(self) -> list[str]:
        """What lies beside the store."""
        return [entry.name for entry in self.volume.folder.iterdir() if entry.name.startswith(("key", "state"))]

    def put_snapshot(self, number: int) -> None:
        """State and key as they were then."""
        for name in self.own_files():
            place = self.volume.folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.copytree(self.snapshots / str(number), self.volume.folder, dirs_exist_ok=True)

    def live(self) -> None:
        """All that changes a volume."""
        self.do("create", NAME, created=True)
        self.back_up()
        self.do("resize", NAME, "70MiB")
        self.rotate()
        self.back_up()
        self.do("before-backup", NAME)
        self.do("resize", NAME, "76MiB")
        self.do("after-backup", NAME)
        self.do("key", "add", NAME, "--key", f"file:{self.volume.folder}/key2")
        self.do("resize", NAME, "68MiB", "--yes")
        self.do("key", "remove", NAME, "--key", f"file:{self.volume.folder}/key2")
        self.back_up()


def close(volume: CliVolume) -> None:
    """Whatever stands of the volume, so that its disk can be unmounted."""
    if volume.standing():
        volume.lukshook("after-backup", NAME, "--kill-holders")
        volume.lukshook("close", NAME, "--kill-holders")


@contextmanager
def recorded(folder: Path, alone: bool, chance: random.Random) -> Iterator[Life]:
    """A life that was lived, and whose disk is not mounted any more."""
    place = folder / "place"
    home = place if not alone else folder / "home"
    for made in (folder / "log", folder / "log/snapshots", place, home):
        made.mkdir(exist_ok=True)
    recorder = Recorder(folder / "log", place, 224 * MIB)
    recorder.start()
    volume = CliVolume(home, extra={"LUKSHOOK_RUN_DIR": str(folder / "run")})
    try:
        if alone:
            (home / "store").symlink_to(place)
        volume.prepare()
        if alone:
            volume.configure(image=str(place / "backup.img"))
        run("sync")
        life = Life(volume, recorder, alone, chance)
        life.snapshot()
        recorder.mark("promise-0")
        life.live()
    finally:
        close(volume)
        recorder.stop()
    yield life
    volume.remove()


def positions(life: Life, entries: list[Entry]) -> list[int]:
    """The moments to look at: after each flush, or, for a store alone, as soon as our own disk has something new."""
    begun = next(number for number, entry in enumerate(entries) if entry.text == "promise-0")
    return [
        number + 1
        for number, entry in enumerate(entries)
        if number >= begun and (entry.text.startswith("snapshot") if life.alone else entry.is_barrier)
    ]


def last_marked(entries: list[Entry], what: str) -> int:
    """The number of the last mark of that kind."""
    return max(int(entry.text.split("-")[1]) for entry in entries if entry.text.startswith(what))


@contextmanager
def plugged_in(life: Life, disk: Path) -> Iterator[None]:
    """A disk after the power cut: mounted, which replays the journal of the store's own file system."""
    node = run("losetup", "--find", "--show", disk)
    try:
        run("mount", node, life.recorder.place)
        try:
            yield
        finally:
            close(life.volume)
            run("umount", life.recorder.place)
    finally:
        run("losetup", "--detach", node)


def check_kept(life: Life, promise: Promise) -> None:
    """All that was promised holds, and the next run works."""
    volume = life.volume
    if not promise.created and not volume.image.exists():
        volume.do("create", NAME)
    volume.do("before-backup", NAME)
    for name, content in promise.files.items():
        assert content == (volume.data / name).read_bytes(), name
    (volume.data / "next").write_bytes(b"next")
    volume.do("after-backup", NAME)
    assert volume.is_bare()
    for old in promise.old_keys:
        assert not opens(volume.image, decode_key(old.encode(), "an old key"))


@pytest.mark.parametrize("alone", [False, True], ids=["one disk", "a store on a disk of its own"])
def test_what_was_reported_outlives_the_loss_of_a_cache(
    tmp_path: Path, alone: bool, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """At moments of create, backups, resizing and key changes; with none or any of what was written after a flush."""
    with recorded(tmp_path, alone, chance) as life:
        player = Player(life.recorder, tmp_path / "log/disk")
        entries = player.entries()
        moments = positions(life, entries)
        chosen = sorted(chance.sample(moments, min(rounds(2, 400), len(moments))))
        failures = []
        for position in chosen:
            player.go_to(entries, position)
            if alone:
                life.put_snapshot(last_marked(entries[:position], "snapshot"))
            promise = life.promises[last_marked(entries[:position], "promise")]
            try:
                with plugged_in(life, player.with_some_more(entries, chance)):
                    check_kept(life, promise)
            except AssertionError as error:
                failures.append(f"at entry {position} of {len(entries)}, {promise.created=}: {error}")
    print(f"{len(entries)} writes and flushes, {len(chosen)} of {len(moments)} moments looked at")
    assert not failures, "\n".join(failures)

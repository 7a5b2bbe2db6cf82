"""An honest life of a volume with a ledger: whatever its owner does, and whatever is killed, `verify` raises no alarm.

The store is honest here: what is found damaged is a false alarm. Now and then a byte is changed, which has to be found.
"""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from attrs import define, field, frozen

from lukshook.ledger.pieces import PIECE
from lukshook.system import kernel
from support import rekey_cases
from support.daemons import daemons
from support.lukshook_process import Done, kill_all, nothing
from support.volume import NAME, CliVolume

#: Seconds within which a command is killed; most of them take less.
_LONGEST = 1.5
TAKE = """#!/bin/sh
set -e
cp --sparse=always -- "$2" "{folder}/$1"
sync "{folder}/$1" "{folder}"
echo "{folder}/$1"
"""
PRUNE = '#!/bin/sh\nrm -f -- "{folder}/$1"\n'


def change(data: Path, chance: random.Random) -> None:
    """What a backup does: it writes, replaces and deletes files."""
    for _ in range(chance.randrange(1, 6)):
        (data / f"{chance.randrange(8)}").write_bytes(chance.randbytes(chance.randrange(300_000)))
    (data / f"{chance.randrange(8)}").unlink(missing_ok=True)


def backup(volume: CliVolume, chance: random.Random) -> None:
    """A backup that comes to its end."""
    volume.do("before-backup", NAME)
    change(volume.data, chance)
    volume.do("after-backup", NAME)


def spoil(volume: CliVolume, place: int) -> None:
    """Change one byte of the image, or change it back."""
    with volume.image.open("r+b") as image:
        image.seek(place)
        old = image.read(1)
        image.seek(place)
        image.write(bytes([old[0] ^ 1]))


def check_known(done: Done) -> Done:
    """What this host has written is no news to it."""
    assert "more was written" not in done.stderr, done.stderr
    return done


@frozen
class OneHost(CliVolume):
    """A volume that nobody but this host writes to."""

    def lukshook(self, *arguments: str, **more: str) -> Done:
        return check_known(CliVolume.lukshook(self, *arguments, **more))


@define
class Life:
    """The life of *volume*. *counts*: what happened, for the report.
    *acts*: what it is made of, by default all that the engine can do. *options*: more of the configuration.
    """

    volume: CliVolume
    chance: random.Random
    counts: Counter[str] = field(factory=Counter)
    acts: tuple[Callable[[Life], None], ...] = ()
    options: dict[str, object] = field(factory=dict)

    @property
    def versions_folder(self) -> Path:
        """Where the command of the owner puts snapshots."""
        return self.volume.folder / "versions"

    def prepare(self) -> None:
        """What the acts need: a copy's folder, a second key, a command that takes snapshots."""
        folder = self.volume.folder
        self.volume = OneHost(folder, self.volume.engine, self.volume.extra)
        self.acts = self.acts or (ACTS + KERNEL_ACTS if self.volume.engine == "kernel" else ACTS)
        for name in ("disk", "versions"):
            (folder / name).mkdir(exist_ok=True)
        for name, text in (("take", TAKE), ("prune", PRUNE)):
            (folder / name).write_text(text.format(folder=self.versions_folder))
            (folder / name).chmod(0o755)
        self.configure()

    def configure(self, **options: object) -> None:
        """Write the configuration; *options* as in `CliVolume.values`."""
        self.volume.configure(**{"ledger": True, "space": "warn", **self.options, **options})

    @property
    def own_snapshots(self) -> dict[str, object]:
        """Options: a command of the owner takes a snapshot after each backup, and another one removes it."""
        take, prune = (f"'{self.volume.folder}/{name}'" for name in ("take", "prune"))
        return {"snapshot": f"command:{take}", "prune_command": prune, "keep_snapshots": 1}

    def versions(self) -> list[Path]:
        """The images of older states, the newest first."""
        (found,) = json.loads(self.volume.do("versions", NAME, "--json"))
        return [Path(version["image"]) for version in found["versions"]]

    def cycle(self) -> str:
        """One act and what follows, then a verification, which raises no alarm. The name of the act."""
        act = self.chance.choice(self.acts)
        self.counts[act.__name__] += 1
        act(self)
        self.check(act.__name__)
        return act.__name__

    def check(self, what: str) -> None:
        """`verify` finds no damage. It says that a resize or `key rekey` was interrupted; that can be repeated."""
        done = self.volume.lukshook("verify", NAME)
        if done.returncode == 69 and "a resize of volume" in done.stderr:
            self.counts["resize to be repeated"] += 1
            self.repeat_resize()
            done = self.volume.lukshook("verify", NAME)
        if done.returncode == 69 and "the replacement of the volume key" in done.stderr:
            self.counts["rekey to be completed"] += 1
            self.volume.do("key", "rekey", NAME)
            done = self.volume.lukshook("verify", NAME)
        if "counts" in done.stdout or "left out" in done.stdout:
            self.counts["verifications with unknown pieces"] += 1
        assert 0 == done.returncode, (what, self.counts.total(), done.stdout, done.stderr)

    def repeat_resize(self) -> None:
        """As the hint says: the same command again."""
        note = json.loads((self.volume.state_folder / f"{NAME}.resize").read_bytes())
        self.volume.do("resize", "--yes", NAME, note["text"])

    def complete(self) -> None:
        """Complete what a power cut may have interrupted, as its owner would."""
        if (self.volume.state_folder / f"{NAME}.resize").exists():
            self.repeat_resize()
        if (self.volume.state_folder / f"{NAME}.rekey").exists():
            self.volume.do("key", "rekey", NAME)
        second = self.volume.folder / "second"
        if second.exists():
            self.volume.lukshook("key", "remove", NAME, "--key", f"file:{second}")  # it may not have been added yet
            second.unlink()
        self.volume.do("key", "rotate", NAME)

    def check_found(self) -> None:
        """A changed byte is found, wherever it is, in an image of which every piece is known."""
        backup(self.volume, self.chance)
        self.check("backup")
        place = self.chance.randrange(self.volume.image.stat().st_size)
        spoil(self.volume, place)
        done = self.volume.lukshook("verify", NAME)
        assert 65 == done.returncode, (place, done.stdout, done.stderr)
        assert f" at {place // PIECE * PIECE} (" in done.stdout, (place, done.stdout)
        spoil(self.volume, place)
        self.volume.do("verify", NAME)  # so that what was put back counts as damaged no more
        self.counts["changed bytes found"] += 1

    def killed(self, *arguments: str, longest: float = _LONGEST, prepare: Callable[[], None] = nothing) -> Done:
        """Kill lukshook somewhere in that command, or let it come to its end. *longest*: seconds; *prepare*: its."""
        child = self.volume.start(*arguments, prepare=prepare)
        kernel.wait_until(child.poll, self.chance.uniform(0.0, longest))
        child.signal(signal.SIGKILL)
        done = check_known(child.wait())
        self.counts["kills"] += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), (arguments, done.stderr)
        return done

    def settle(self) -> None:
        """One of the ways in which the owner goes on after a kill."""
        volume, way = self.volume, self.chance.randrange(4)
        if way == 0:
            self.check("at once after a kill")
        if way == 1:
            volume.lukshook("before-backup", NAME)
            change(volume.data, self.chance)
        if way == 2:
            volume.do("run", NAME, "--", "true")  # it stays open where we had it open
        done = volume.lukshook("after-backup", NAME)
        assert done.returncode in (0, 74), done.stderr


# What the owner does. Each begins and ends with a volume that is closed, or that the next one closes.


def backed_up(life: Life) -> None:
    """A backup as it should be."""
    backup(life.volume, life.chance)


def read_only(life: Life) -> None:
    life.volume.do("open", "--read-only", NAME)
    life.check("open read-only")
    life.volume.do("close", NAME)


def verified_while_open(life: Life) -> None:
    """A verification that runs while a backup begins, writes and ends."""
    reading = life.volume.start("verify", NAME, "--rate", "40MiB")
    backup(life.volume, life.chance)
    done = reading.wait()
    assert 0 == done.returncode, (done.stdout, done.stderr)


def killed_backup(life: Life) -> None:
    data = life.volume.data
    life.killed("run", NAME, "--", "sh", "-c", f"head -c 400000 /dev/urandom >'{data}/killed' && sync && sleep 0.2")
    life.settle()


def killed_opening(life: Life) -> None:
    life.killed("before-backup", NAME)
    life.settle()


def killed_closing(life: Life) -> None:
    life.volume.do("before-backup", NAME)
    change(life.volume.data, life.chance)
    life.killed("after-backup", NAME)
    life.settle()


def killed_daemons(life: Life) -> None:
    """In the middle of a backup, all of them at once; what was lost is reported, and the next backup works."""
    life.volume.do("before-backup", NAME)
    change(life.volume.data, life.chance)
    victims = daemons(life.volume)
    kill_all(victims)
    kernel.wait_until(lambda: not any(map(kernel.started, victims)), 10.0)
    life.counts["killed daemons"] += len(victims)
    done = life.volume.lukshook("after-backup", NAME)
    assert done.returncode in (0, 74), done.stderr


def grown(life: Life) -> None:
    life.volume.do("resize", "--yes", NAME, life.chance.choice(("+3MiB", "+1MiB", "+2MiB")))


def shrunk(life: Life) -> None:
    if life.volume.image.stat().st_size > 66 << 20:
        life.volume.do("resize", "--yes", NAME, "-1MiB")


def grown_while_open(life: Life) -> None:
    life.volume.do("before-backup", NAME)
    change(life.volume.data, life.chance)
    life.volume.do("resize", "--yes", NAME, "+2MiB")
    change(life.volume.data, life.chance)
    life.volume.do("after-backup", NAME)


def killed_resize(life: Life) -> None:
    larger = life.volume.image.stat().st_size < 80 << 20
    life.killed("resize", "--yes", NAME, "+2MiB" if larger else "-8MiB")
    if life.chance.random() < 0.5:
        life.check("killed resize")
    if (life.volume.state_folder / f"{NAME}.resize").exists():
        life.repeat_resize()
    life.settle()


def key_rotated(life: Life) -> None:
    life.volume.do("key", "rotate", NAME)


def key_added_and_removed(life: Life) -> None:
    second = f"file:{life.volume.folder}/second"
    life.volume.do("key", "add", NAME, "--key", second)
    life.check("key added")
    life.volume.do("key", "remove", NAME, "--key", second)
    (life.volume.folder / "second").unlink()


def killed_rotation(life: Life) -> None:
    life.killed("key", "rotate", NAME)
    life.check("killed rotation")
    life.volume.do("key", "rotate", NAME)


def rekeyed(life: Life) -> None:
    life.volume.do("key", "rekey", NAME)


def killed_rekey(life: Life) -> None:
    """In the middle of the data, most times; its tools go on or not."""
    life.killed("key", "rekey", NAME, longest=4 * _LONGEST, prepare=rekey_cases.quick)
    if life.chance.random() < 0.5:
        kill_all(rekey_cases.tools_of(life.volume))
    if life.chance.random() < 0.5:
        life.check("killed rekey")
    life.volume.do("key", "rekey", NAME)


def header_restored(life: Life) -> None:
    spoil(life.volume, 700)
    life.volume.do("header", "restore", NAME)


def compacted(life: Life) -> None:
    life.volume.do("compact", "--yes", NAME)


def killed_compact(life: Life) -> None:
    life.killed("compact", "--yes", NAME)
    life.settle()


def copied(life: Life) -> None:
    """A copy, killed or not; what came of it is whole, and the volume is intact."""
    life.volume.do("run", NAME, "--", "true")
    target = str(life.volume.folder / "disk/copy.img")
    life.killed("copy", NAME, target)
    life.volume.do("copy", NAME, target)
    life.volume.do("verify", NAME, "--copy", target)


def snapshot_taken(life: Life) -> None:
    """After a backup, by a command of the owner; the older state opens beside the volume."""
    for forgotten in set(life.versions_folder.iterdir()) - set(life.versions()):
        forgotten.unlink()
    life.configure(**life.own_snapshots)
    life.volume.do("run", NAME, "--", "touch", str(life.volume.data / "snapshot"))
    life.configure()
    open_version(life, life.versions()[0])


def open_version(life: Life, image: Path) -> None:
    """An older state opens beside the volume, and has what a volume has."""
    place = life.volume.folder / "older"
    life.volume.do("open", NAME, "--image", str(image), "--at", str(place))
    found = (place / "data").is_dir()
    life.volume.do("close", NAME, "--at", str(place))
    assert found, image


def part_verified(life: Life) -> None:
    life.killed("verify", NAME)
    life.volume.do("verify", "--part", "20%", NAME)


def without_ledger(life: Life) -> None:
    """The option is taken out for one backup."""
    life.configure(ledger=None)
    backup(life.volume, life.chance)
    life.configure()


def drilled(life: Life) -> None:
    life.volume.do("run", NAME, "--", "cp", "/proc/version", str(life.volume.data / "something"))
    (life.volume.folder / "drill").mkdir(exist_ok=True)
    life.volume.do("drill", NAME, "--files", "2")


ACTS: tuple[Callable[[Life], None], ...] = (
    *(backed_up, backed_up, backed_up, killed_backup, killed_backup, killed_closing, killed_closing, killed_opening),
    *(read_only, verified_while_open, killed_daemons, grown, shrunk, killed_resize),
    *(key_rotated, key_added_and_removed, killed_rotation, rekeyed, killed_rekey, header_restored),
    *(copied, snapshot_taken, part_verified, without_ledger, drilled),
)
#: The userspace engine can do none of these.
KERNEL_ACTS = (grown_while_open, compacted, killed_compact)

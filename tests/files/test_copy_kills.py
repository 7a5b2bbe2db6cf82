"""A copy at a real place of each kind, killed at random moments: cryptsetup opens the old or the new state."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.ledger.pieces import PIECE
from support.ceph_cluster import CEPH
from support.copy_places import PLACES, CopyPlace
from support.kept_volume import UUID, KeptVolume, kept_volume

pytestmark = pytest.mark.needs("cryptsetup")
#: What each kind needs besides; those without one are tried with --long only.
NEEDS = {
    "disk": (),
    "ssh": ("ssh", "/usr/sbin/sshd", "ssh-keygen", "/usr/lib/openssh/sftp-server", "flock"),
    "nbd": ("nbdkit", "socat"),
    "sftp": ("ssh", "/usr/sbin/sshd", "ssh-keygen"),
    "nbds": ("nbdkit",),
    "rbd": CEPH,
}
QUICK = ("disk", "ssh", "nbd")
KINDS = [
    pytest.param(kind, marks=[pytest.mark.needs(*needs), *([] if kind in QUICK else [pytest.mark.slow])])
    for kind, needs in NEEDS.items()
]

PIECES = 20 * (1 << 20) // PIECE


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CopyPlace]:
    with PLACES[request.param](tmp_path / "place") as found:
        yield found


@pytest.fixture
def volume(place: CopyPlace, tmp_path: Path) -> KeptVolume:
    """With a LUKS header, and one key."""
    volume = evolve(kept_volume(tmp_path, lambda text: None, pieces=PIECES, **place.options), url=place.to)
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    with volume.open() as path:
        cryptsetup("luksFormat", "--batch-mode", f"--uuid={UUID}", *FAST, "--key-file", tmp_path / "first", path)
    volume.copy()
    return volume


FAST = ("--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000")


def cryptsetup(*words: object) -> None:
    subprocess.run(["cryptsetup", *map(str, words)], check=True, capture_output=True)


def opens(image: Path, key: Path) -> bool:
    command = ["cryptsetup", "open", "--test-passphrase", "--key-file", str(key), str(image)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def change(volume: KeptVolume, chance: random.Random) -> None:
    """A backup, and another key: the one is added, the other removed."""
    old, new = ("first", "second") if opens(volume.image, volume.folder / "first") else ("second", "first")
    with volume.open() as path:
        keys = ("--key-file", volume.folder / old)
        cryptsetup("luksAddKey", "--batch-mode", *FAST[1:], *keys, path, volume.folder / new)
        cryptsetup("luksRemoveKey", "--batch-mode", path, volume.folder / old)
    with volume.open() as path, path.open("r+b") as file:
        for _ in range(chance.randrange(1, 12)):
            file.seek(chance.randrange(16 << 20, path.stat().st_size - 5000))
            file.write(chance.randbytes(5000))


def killed_copy(volume: KeptVolume, seconds: float) -> None:
    """A copy in a process of its own, which is killed after that time."""
    child = os.fork()
    if not child:
        status = 1
        try:
            volume.copy()
            status = 0
        finally:
            os._exit(status)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_anywhere_the_copy_opens_as_it_was_or_as_it_is(
    volume: KeptVolume, place: CopyPlace, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    keys = [volume.folder / name for name in ("first", "second")]
    change(volume, chance)
    began = time.monotonic()
    volume.copy()
    usual = time.monotonic() - began
    states: Counter[str] = Counter()
    for _ in range(rounds(12, place.rounds)):
        before = place.content()
        change(volume, chance)
        now = volume.image.read_bytes()
        for _ in range(chance.randrange(1, 3)):
            killed_copy(volume, chance.random() * 2 * usual)
            found = place.content()
            if place.is_marked:
                states["marked"] += 1
                assert place.shows_marks or found in (before, now) or not any(opens(place.file(), key) for key in keys)
                continue
            assert found in (before, now)
            states["old" if found == before else "new"] += 1
            usual *= 1.25 if found == before else 0.8  # so that kills come in the middle, whatever else is going on
            file = place.file()
            assert opens(file, volume.folder / "first") != opens(file, volume.folder / "second")
        volume.copy()
        assert now == place.content()
        assert 1 == len(place.names())
        assert () == volume.verify_copy().bad
    assert {"old", "new"} <= states.keys(), states


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values != ("rbd",)])
def test_a_killed_first_copy_is_not_there_or_whole(
    kind: str, tmp_path: Path, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    for number in range(rounds(2, 10)):
        folder = tmp_path / str(number)
        with PLACES[kind](folder / "place") as place:
            other = evolve(kept_volume(folder, lambda text: None, **place.options), url=place.to)
            killed_copy(other, chance.random() * 0.4)
            found = place.content()
            assert found in (None, other.image.read_bytes())
            other.copy()
            assert other.image.read_bytes() == place.content()
            assert () == other.verify_copy().bad


def test_healing_that_is_killed_can_be_done_again(volume: KeptVolume, chance: random.Random) -> None:
    good = volume.image.read_bytes()
    for _ in range(5):
        with volume.image.open("r+b") as file:
            for _ in range(30):
                file.seek(chance.randrange(len(good) - 4096))
                file.write(chance.randbytes(4096))
        child = os.fork()
        if not child:
            try:
                volume.heal()
            finally:
                os._exit(0)
        time.sleep(chance.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        volume.heal()
        assert good == volume.image.read_bytes()

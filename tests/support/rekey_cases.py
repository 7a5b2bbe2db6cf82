"""The volume key is replaced: no file changes, nothing of old opens it, and whatever interrupts it, it goes on.

For any engine: a test file imports from here.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lukshook.errors import Refused
from lukshook.luks import header_file, reencryption
from lukshook.replica import carrying_over
from lukshook.replica.place import Place
from lukshook.volume import rekey
from support.command_fault_cases import key_in
from support.key_volume import opens
from support.lukshook_process import PATIENCE, Child, Done, kill_all
from support.volume import NAME, CliVolume

HEADER = 16 << 20


def backed_up(volume: CliVolume) -> bytes:
    """A backup of one file, of random bytes."""
    content = os.urandom(3_000_000)
    volume.do("before-backup", NAME)
    (volume.data / "file").write_bytes(content)
    volume.do("after-backup", NAME)
    return content


def check_whole(volume: CliVolume, content: bytes) -> None:
    """The next backup finds the file as it was, and closes."""
    volume.do("before-backup", NAME)
    assert content == (volume.data / "file").read_bytes()
    volume.do("after-backup", NAME)
    volume.do("header", "verify", NAME)
    check_nothing_left(volume)


def check_nothing_left(volume: CliVolume) -> None:
    """Neither in the kernel nor in a file of lukshook's."""
    assert volume.is_bare()
    kept, passing = volume.state_folder, Path(volume.environment["LUKSHOOK_RUN_DIR"])
    found = {entry.name for entry in kept.iterdir() if entry.is_file()}
    assert {f"{NAME}.{end}" for end in ("header", "json", "history")} == found
    assert [] == [entry.name for entry in passing.iterdir() if not entry.name.endswith(".lock")]


def old_copy(volume: CliVolume) -> CliVolume:
    """Image, key, header backup as they are now, in a folder that is not on the store."""
    return volume.copy_to(volume.folder / "earlier")


def quick() -> None:
    """Small steps, so that little data has many of them."""
    setattr(reencryption, "SLICE_SECONDS", 0.5)  # noqa: B010 - mypy has no other way to say it
    setattr(reencryption, "_HOT_ZONE", "1M")  # noqa: B010


def killed_at_once() -> None:
    """As the `prepare` of a `key rekey`: it is killed when the store knows how far it is."""
    mirror = rekey._mirror

    def last(*arguments: Any) -> None:
        mirror(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(rekey, "_mirror", last)  # noqa: B010


def stopped(volume: CliVolume, *options: str, beyond: int = 0) -> int:
    """A `key rekey` and its tools were killed in the middle, and one more when that was known on the store.

    More than *beyond* bytes have the new volume key then; gives how many.
    """
    file = volume.state_folder / f"{NAME}.rekey"
    child = volume.start("key", "rekey", NAME, *options, prepare=quick)
    end = time.monotonic() + PATIENCE
    while done_in(file) <= beyond and not child.poll() and time.monotonic() < end:
        time.sleep(0.002)
    child.signal(signal.SIGKILL)
    kill_all(tools_of(volume))
    child.wait()
    now = reencryption.progress(file)
    assert now.running and now.done > beyond, now
    again = volume.start("key", "rekey", NAME, prepare=killed_at_once).wait()
    assert -signal.SIGKILL == again.returncode, again
    return now.done


def done_in(file: Path) -> int:
    """Bytes of data that have the new volume key, 0 also while cryptsetup is just writing that down."""
    try:
        return reencryption.progress(file).done
    except (OSError, Refused):
        return 0


def tools_of(volume: CliVolume) -> list[int]:
    """What lukshook has started for *volume* and what goes on without it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(volume.state_folder)) for word in words):
            found.append(int(entry.parent.name))
    return found


def read_with(volume: CliVolume, image: Path, header: Path) -> Done:
    """Open *image* with that header and the volume's key beside it, and close it again."""
    place = volume.folder / "look"
    words = (NAME, "--at", str(place))
    done = volume.lukshook("open", *words, "--image", str(image), "--header", str(header))
    if done.returncode == 0:
        volume.do("close", *words)
    place.rmdir() if place.exists() else None
    return done


def test_old_keys_and_headers_open_nothing(volume: CliVolume) -> None:
    """Files are as before. Who has the old key, the old header and the new image reads nothing."""
    content = backed_up(volume)
    old = old_copy(volume)
    volume.do("key", "rekey", NAME)

    assert not opens(volume.image, key_in(old.key))
    assert opens(volume.image, key_in(volume.key))
    before, after = old.image.read_bytes(), volume.image.read_bytes()
    sectors = range(HEADER, len(before), 4096)
    assert [] == [at for at in sectors if any(before[at : at + 4096]) and before[at : at + 512] == after[at : at + 512]]
    check_whole(volume, content)

    lookout = volume.copy_to(volume.folder / "attacker")
    shutil.copy(old.key, lookout.key)
    backup = old.state_folder / f"{NAME}.header"
    (lookout.state_folder / f"{NAME}.json").write_bytes((old.state_folder / f"{NAME}.json").read_bytes())
    assert 0 == read_with(lookout, old.image, backup).returncode
    failed = read_with(lookout, volume.image, backup)
    assert 0 != failed.returncode
    assert "file system" in failed.stderr, failed
    for other in (old, lookout):
        other.remove()


@pytest.mark.slow
def test_interrupted_nothing_opens_it_and_the_same_command_goes_on(volume: CliVolume) -> None:
    """Every other command says in one line what to run, `status` too; then all is as it was."""
    content = backed_up(volume)
    stopped(volume)

    line = f"the replacement of the volume key of volume {NAME} is not complete"
    for words in (
        ("before-backup", NAME),
        ("open", NAME, "--read-only"),
        ("resize", NAME, "+1MiB"),
        ("key", "rotate", NAME),
        ("key", "test", NAME),
        ("header", "restore", NAME),
        ("header", "backup", NAME),
        ("trust", NAME),
        ("drill", NAME),
    ):
        assert (words, line) == (words, volume.refusal(69, *words))
    [found] = json.loads(volume.do("status", NAME, "--json"))
    assert f"{line}: to complete it: lukshook key rekey {NAME}" == found["problem"]
    assert "closed" == found["state"]
    volume.do("key", "rekey", NAME)
    check_whole(volume, content)


@pytest.mark.slow
def test_killed_anywhere(volume: CliVolume, rounds: Callable[[int, int], int], chance: random.Random) -> None:
    """lukshook and its tools die at random moments, again and again; no file changes."""
    content = backed_up(volume)
    middle = 0
    for _ in range(rounds(1, 30)):
        old = key_in(volume.key)
        for _ in range(3):
            child = volume.start("key", "rekey", NAME, prepare=quick)
            while not (volume.state_folder / f"{NAME}.rekey").exists() and not child.poll():
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.6))
            child.signal(signal.SIGKILL)
            kill_all(tools_of(volume))
            child.wait()
            if (volume.state_folder / f"{NAME}.rekey").exists():
                middle += reencryption.progress(volume.state_folder / f"{NAME}.rekey").running
        volume.do("key", "rekey", NAME)
        assert not opens(volume.image, old)
        check_whole(volume, content)
    print(f"killed {middle} times while data was on its way")


@pytest.mark.slow
def test_a_store_that_answers_otherwise(volume: CliVolume) -> None:
    """Its header is written, never read: one with another key in it is gone at the end, and no data has that key."""
    content = backed_up(volume)
    (volume.folder / "forged").write_bytes(forged(volume))

    def exchanging() -> None:
        mirror = header_file.mirror

        def exchanged(data: bytes, before: bytes, descriptor: int) -> None:
            mirror(data, before, descriptor)
            os.pwrite(descriptor, (volume.folder / "forged").read_bytes(), 0)

        setattr(header_file, "mirror", exchanged)  # noqa: B010

    done = volume.start("key", "rekey", NAME, prepare=exchanging).wait()
    assert 0 == done.returncode, done
    check_whole(volume, content)


def forged(volume: CliVolume) -> bytes:
    """The header of an attacker: with the volume's UUID, and a key of the attacker's own."""
    found = subprocess.run(["cryptsetup", "luksUUID", volume.image], check=True, capture_output=True, text=True)
    place = volume.folder / "attack"
    with place.open("wb") as file:
        file.truncate(HEADER)
    argv = ["cryptsetup", "luksFormat", "-q", "--type=luks2", f"--uuid={found.stdout.strip()}", "--key-file=-"]
    light = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--offset=32768"]
    subprocess.run([*argv, *light, place], input=b"attacker", check=True, capture_output=True)
    return place.read_bytes()[: 1 << 20]


@pytest.mark.slow
def test_an_older_image_or_state_is_not_continued(volume: CliVolume) -> None:
    """A copy from before or from the middle, put in its place, would be spoilt: refused with 65, and left as it is."""
    content = backed_up(volume)
    before = volume.image.read_bytes()
    done = stopped(volume, "--keep-key")
    middle = volume.image.read_bytes()
    shutil.copytree(volume.state_folder, volume.folder / "older")
    stopped(volume, beyond=done)
    now = volume.image.read_bytes()

    for older in (before, middle):
        volume.image.write_bytes(older)
        assert "left it: one of the image and" in volume.refusal(65, "key", "rekey", NAME)
        assert older == volume.image.read_bytes()
    volume.image.write_bytes(now)
    with state_of(volume, volume.folder / "older"):
        assert "left it: one of the image and" in volume.refusal(65, "key", "rekey", NAME)
        assert now == volume.image.read_bytes()
    volume.do("key", "rekey", NAME)
    check_whole(volume, content)
    check_an_earlier_middle(volume, middle, content)


@contextmanager
def state_of(volume: CliVolume, older: Path) -> Iterator[None]:
    """The state folder is an older one."""
    kept = volume.state_folder.rename(volume.folder / "kept")
    older.rename(volume.state_folder)
    try:
        yield
    finally:
        volume.state_folder.rename(older)
        kept.rename(volume.state_folder)


def check_an_earlier_middle(volume: CliVolume, middle: bytes, content: bytes) -> None:
    """An image from the middle of an earlier replacement is none of the next one's, which has just begun."""
    again = volume.start("key", "rekey", NAME, "--keep-key", prepare=killed_at_once).wait()
    assert -signal.SIGKILL == again.returncode, again
    now = volume.image.read_bytes()
    volume.image.write_bytes(middle)
    assert "left it: one of the image and" in volume.refusal(65, "key", "rekey", NAME)
    assert middle == volume.image.read_bytes()
    volume.image.write_bytes(now)
    volume.do("key", "rekey", NAME)
    check_whole(volume, content)


@pytest.mark.slow
def test_other_keys_go_only_if_that_is_said(volume: CliVolume) -> None:
    """The key of a second person opens a rekeyed volume no longer, so that is asked for."""
    content = backed_up(volume)
    second = volume.folder / "second"
    volume.do("key", "add", NAME, "--key", f"file:{second}")
    before = volume.digest()

    assert "other keys open volume" in volume.refusal(64, "key", "rekey", NAME)
    assert before == volume.digest()
    volume.do("key", "rekey", NAME, "--drop-other-keys", "--keep-key")
    assert not opens(volume.image, key_in(second))
    check_whole(volume, content)
    volume.do("key", "add", NAME, "--key", f"file:{second}")
    assert opens(volume.image, key_in(second))


@pytest.mark.slow
def test_a_volume_that_is_open_stays_as_it_is(volume: CliVolume) -> None:
    """69, before anything is changed."""
    content = backed_up(volume)
    volume.do("before-backup", NAME)
    before = volume.key.read_bytes()

    assert f"volume {NAME} is open" == volume.refusal(69, "key", "rekey", NAME)
    assert before == volume.key.read_bytes()
    volume.do("after-backup", NAME)
    check_whole(volume, content)


@pytest.mark.slow
def test_a_signal_stops_it_in_time_and_it_goes_on(volume: CliVolume) -> None:
    """Ctrl-C: it ends between two slices of work."""
    content = backed_up(volume)
    child = volume.start("key", "rekey", NAME, prepare=quick)
    end = time.monotonic() + 60
    while not (volume.state_folder / f"{NAME}.rekey").exists() and time.monotonic() < end:
        time.sleep(0.02)
    child.signal(signal.SIGINT)
    done = child.wait(60)

    assert done.returncode in (0, 130), done
    volume.do("key", "rekey", NAME) if done.returncode else None
    check_whole(volume, content)


@pytest.mark.slow
def test_ledger_and_copies_follow(volume: CliVolume) -> None:
    """Damage is found before it is encrypted again; afterwards all is known again, and a copy gets it once."""
    volume.configure(ledger=True)
    content = backed_up(volume)
    volume.do("verify", NAME)
    copy = volume.folder / "copy.img"
    volume.do("copy", NAME, str(copy))
    whole = volume.image.read_bytes()
    with volume.image.open("r+b") as image:
        image.seek(40 << 20)
        image.write(b"damage")
    key = volume.key.read_bytes()
    assert 65 == volume.lukshook("key", "rekey", NAME).returncode
    assert key == volume.key.read_bytes()
    volume.image.write_bytes(whole)
    volume.do("verify", NAME)

    stopped(volume)
    line = f"the replacement of the volume key of volume {NAME} is not complete"
    for words in (("verify", NAME), ("copy", NAME, str(copy))):
        assert (words, line) == (words, volume.refusal(69, *words))
    assert whole == copy.read_bytes()
    volume.do("key", "rekey", NAME)
    assert "all intact" in volume.do("verify", NAME)
    volume.do("copy", NAME, str(copy))
    assert volume.image.read_bytes() == copy.read_bytes()
    check_whole(volume, content)


@pytest.mark.slow
def test_a_copy_that_was_interrupted_before_follows(volume: CliVolume) -> None:
    """What it still had to take over is of the old volume key: the next copy takes all of the new one."""
    volume.configure(ledger=True)
    backed_up(volume)
    copy = volume.folder / "copy.img"
    volume.do("copy", NAME, str(copy))
    content = backed_up(volume)
    child = volume.start("copy", NAME, str(copy), prepare=killed_in_a_copy)
    assert -signal.SIGKILL == child.wait().returncode
    stopped(volume)
    line = f"the replacement of the volume key of volume {NAME} is not complete"
    assert line == volume.refusal(69, "copy", NAME, str(copy))
    volume.do("key", "rekey", NAME)
    volume.do("copy", NAME, str(copy))
    assert volume.image.read_bytes() == copy.read_bytes()
    check_whole(volume, content)


def killed_in_a_copy() -> None:
    """As the `prepare` of a `copy`: it is killed when its journal is whole, and nothing of that is in the copy yet."""

    def die(place: Place) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    carrying_over.carry_over = die


def check_far(volume: CliVolume, break_connection: Callable[[], None], read: Callable[[], list[bytes]]) -> None:
    """With a remote image: the connection breaks, all here is killed, and the same command goes on.

    *volume* is created and has a backup, of which *read* gives what is in it. Afterwards the old key opens nothing.
    """
    content, old = read(), volume.key.read_bytes()
    file = volume.state_folder / f"{NAME}.rekey"
    child = volume.start("key", "rekey", NAME, prepare=quick)
    wait_for_data(file, child)
    break_connection()
    time.sleep(1)
    child.signal(signal.SIGKILL)
    kill_all(tools_of(volume))
    child.wait()
    assert file.exists() and reencryption.progress(file).running

    assert f"the replacement of the volume key of volume {NAME} is not complete" == volume.refusal(
        69, "before-backup", NAME
    )
    volume.do("key", "rekey", NAME)
    assert not file.exists()
    assert content == read()
    new = volume.key.read_bytes()
    volume.key.write_bytes(old)
    assert "does not open" in volume.refusal(77, "open", NAME)
    volume.key.write_bytes(new)


def wait_for_data(file: Path, child: Child) -> None:
    """Until some of the data has the new volume key."""
    end = time.monotonic() + PATIENCE
    while not done_in(file):
        assert time.monotonic() < end and not child.poll(), child
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.roots
def test_a_store_without_room_for_the_holes(volume: CliVolume) -> None:
    """A sparse image gets its full size: refused with 69 before anything changes where that does not fit."""
    content = backed_up(volume)
    small, whole = volume.folder / "small", volume.image.parent
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "small", small], check=True)
    try:
        subprocess.run(["cp", "--sparse=always", volume.image, small], check=True)
        volume.configure(image=str(small / volume.image.name))
        key = volume.key.read_bytes()
        assert "fills the holes of the image" in volume.refusal(69, "key", "rekey", NAME)
        assert key == volume.key.read_bytes()
    finally:
        volume.configure(image=str(whole / volume.image.name))
        subprocess.run(["umount", small], check=True)
    check_whole(volume, content)

"""`copy`, `verify --copy` and `heal` on an image with a ledger, by lukshook's functions."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from lukshook.errors import BadConfiguration, Exists, NoRoom, NotSafe, Refused, Unavailable, Usage
from lukshook.ledger.pieces import PIECE
from lukshook.ledger.reading import Reader
from lukshook.proof import copy as copy_module
from lukshook.proof import heal, verify, verify_copy
from lukshook.proof.copy import Asked
from lukshook.proof.source import Source, source
from lukshook.replica import held, notice
from lukshook.replica.local import LocalFile, LocalTarget
from lukshook.report.copies import copies_of
from lukshook.store.image_file import open_image
from lukshook.system.command import DryRunRunner
from lukshook.volume import ledger_keeping, records
from lukshook.volume.work import work_on
from support.kept_volume import KeptVolume, kept_volume


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def volume(tmp_path: Path, warned: list[str]) -> KeptVolume:
    return kept_volume(tmp_path, warned.append)


def spoil(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def same(volume: KeptVolume) -> bool:
    return volume.image.read_bytes() == volume.target.read_bytes()


def test_a_copy_is_the_image_and_stays_it(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    for _ in range(5):
        volume.write(chance)
        assert not same(volume)
        done = volume.copy()
        assert same(volume)
        assert ["copy.img"] == volume.names()
        assert 0 < done.sent <= 10 * PIECE
    assert 5 == done.generation
    assert 0 == volume.copy().sent
    found = volume.verify_copy()
    assert ((), "", 5, 0, False) == (found.bad, found.length, found.generation, found.behind, found.changing)


def test_holes_stay_holes(volume: KeptVolume) -> None:
    volume.copy()
    assert volume.target.stat().st_blocks <= volume.image.stat().st_blocks + 64
    with volume.open() as path, path.open("r+b") as file:
        file.seek(4 * PIECE)
        file.write(bytes(8 * PIECE))
    before = volume.target.stat().st_blocks
    volume.copy()
    assert same(volume)
    assert volume.target.stat().st_blocks < before


def resize(volume: KeptVolume, size: int) -> None:
    with (
        work_on(volume.volume, volume.site) as work,
        open_image(volume.image, writable=True) as image,
        ledger_keeping.length_changing(work.state, image, size),
    ):
        os.truncate(volume.image, size)


@pytest.mark.parametrize("size", [20 * PIECE + 5, 7 * PIECE - 9, 7 * PIECE], ids=["longer", "shorter", "whole pieces"])
def test_a_resized_image(volume: KeptVolume, size: int) -> None:
    volume.copy()
    resize(volume, size)
    volume.copy()
    assert size == volume.target.stat().st_size
    assert same(volume)


def test_what_the_ledger_does_not_know_is_copied_as_it_is(volume: KeptVolume) -> None:
    volume.copy()
    spoil(volume.image, 5 * PIECE)
    with copying(volume) as found:
        found.book.set_unknown(((5, 2),))
    assert 2 == volume.copy().unknown
    assert same(volume)
    assert 0 == volume.copy().sent


def test_the_image_under_another_name_is_no_snapshot(volume: KeptVolume) -> None:
    """`--image` would copy an image that is open, or locked by another host."""
    volume.copy()
    (link := volume.folder / "link").symlink_to(volume.image.parent)
    asked = Asked(image=link / volume.image.name)
    with volume.image.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="locked"):
            volume.copy(asked)
    volume.copy(asked)


@contextmanager
def copying(volume: KeptVolume) -> Iterator[Source]:
    with work_on(volume.volume, volume.site) as work, source(work) as found:
        yield found


def test_damage_at_the_source_is_not_copied(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    before = volume.target.read_bytes()
    volume.write(chance)
    new, old = volume.image.read_bytes(), before
    place = next(number for number in range(len(new)) if new[number] != old[number])
    spoil(volume.image, place)
    with pytest.raises(Refused, match="is damaged: the piece at byte"):
        volume.copy()
    assert before == volume.target.read_bytes()
    assert ["copy.img"] == volume.names()
    spoil(volume.image, place)
    volume.copy()
    assert same(volume)


def test_damage_in_a_hole_of_the_source_is_not_copied(volume: KeptVolume) -> None:
    with volume.open() as path, path.open("r+b") as file:
        file.seek(3 * PIECE)
        file.write(b"data")
    volume.copy()
    with volume.open() as path, path.open("r+b") as file:
        file.seek(3 * PIECE)
        file.write(bytes(4))
    spoil(volume.image, 3 * PIECE + 100)
    with pytest.raises(Refused, match="is damaged"):
        volume.copy()


def test_a_shortened_source_is_refused(volume: KeptVolume) -> None:
    os.truncate(volume.image, PIECE)
    with pytest.raises(Refused, match="not as this host wrote it"):
        volume.copy()
    assert [] == volume.names()


def test_an_unclean_source_is_refused_but_its_snapshot_is_not(volume: KeptVolume, chance: random.Random) -> None:
    snapshot = volume.folder / "snapshot"
    volume.write(chance)
    shutil.copy(volume.image, snapshot)
    with pytest.raises(RuntimeError), volume.open():
        raise RuntimeError
    with pytest.raises(Unavailable, match="not closed cleanly"):
        volume.copy()
    volume.copy(Asked(image=snapshot))
    assert snapshot.read_bytes() == volume.target.read_bytes()


def test_without_a_ledger_there_is_no_copy(volume: KeptVolume) -> None:
    shutil.rmtree(volume.site.state(volume.volume).ledger)
    with pytest.raises(BadConfiguration, match="has no ledger"):
        volume.copy()


# What may lie at the target


def test_a_file_that_is_there_stays(volume: KeptVolume) -> None:
    volume.target.write_bytes(b"somebody's")
    with pytest.raises(Exists):
        volume.copy()
    with pytest.raises(Refused, match="another header"):
        volume.copy(Asked(adopt=True))
    assert b"somebody's" == volume.target.read_bytes()


def test_a_file_beside_it_stays(volume: KeptVolume) -> None:
    other = volume.target.with_name("copy.img.part")
    other.write_bytes(b"somebody's")
    with pytest.raises(Exists):
        volume.copy()
    assert b"somebody's" == other.read_bytes()


def test_the_image_itself_is_no_target(volume: KeptVolume) -> None:
    before = volume.image.read_bytes()
    os.link(volume.image, volume.target)
    for to in (volume.target, volume.image):
        with pytest.raises(Usage, match="is the image itself"):
            copy_module.copy(volume.volume, volume.site, str(to), Asked(), lambda done, total: None)
    assert before == volume.image.read_bytes()


def test_a_place_in_the_volume_is_no_target(volume: KeptVolume) -> None:
    inside = volume.volume.mountpoint / "copy.img"
    with pytest.raises(Usage, match="inside volume"):
        copy_module.copy(volume.volume, volume.site, str(inside), Asked(), lambda done, total: None)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/hostname"), lambda path: path.mkdir(), os.mkfifo])
def test_only_a_regular_file_is_a_target(volume: KeptVolume, make: Callable[[Path], None]) -> None:
    make(volume.target)
    with pytest.raises((Exists, Refused)):
        volume.copy()
    with pytest.raises(Refused):
        volume.copy(Asked(adopt=True))


def test_a_link_in_the_place_of_a_copy_is_refused(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    other = volume.folder / "other"
    volume.target.rename(other)
    volume.target.symlink_to(other)
    before = other.read_bytes()
    volume.write(chance)
    with pytest.raises(Refused, match="not a regular file"):
        volume.copy()
    assert before == other.read_bytes()


def test_a_full_target_is_refused_before_anything_is_sent(volume: KeptVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalTarget, "free", lambda self: PIECE)
    with pytest.raises(NoRoom):
        volume.copy()
    assert [] == volume.names()


def test_a_target_that_fails_is_not_safe_and_the_next_copy_continues(
    volume: KeptVolume, monkeypatch: pytest.MonkeyPatch, chance: random.Random
) -> None:
    volume.copy()
    volume.write(chance)

    def fail(self: LocalFile) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(LocalFile, "sync", fail)
        with pytest.raises(NotSafe, match="Input/output error"):
            volume.copy()
    volume.copy()
    assert same(volume)


def test_a_used_replica_is_not_written(volume: KeptVolume, chance: random.Random) -> None:
    """Whoever opens it as an image has it locked."""
    volume.copy()
    volume.write(chance)
    with volume.target.open("rb") as user:
        fcntl.flock(user, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="locked"):
            volume.copy()
    volume.copy()
    assert same(volume)


def test_who_waits_for_a_copy_is_told_how_far_it_is(volume: KeptVolume) -> None:
    said = []

    def look(done: int, total: int) -> None:
        with (
            pytest.raises(Unavailable) as caught,
            records.locked(volume.site.run_folder, volume.volume.name, seconds=0),
        ):
            pass
        said.append(caught.value.message)

    copy_module.copy(volume.volume, volume.site, str(volume.target), Asked(), look)
    assert re.search(r", at \d+ % of the image, copying to /", said[-1])


def test_a_removed_copy_is_made_again_on_request(volume: KeptVolume) -> None:
    volume.copy()
    volume.target.unlink()
    for work, why in ((volume.copy, "no longer there"), (volume.verify_copy, "not there"), (volume.heal, "not there")):
        with pytest.raises(Unavailable, match=why):
            work()
    assert [] == volume.names()
    volume.copy(Asked(new=True))
    assert same(volume)


def test_a_place_is_opened_when_nobody_changes_it_any_more(volume: KeptVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some places say only when they are opened what lies where: to verify it, the copy is locked before."""
    volume.copy()
    done: list[str] = []

    def noted(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def worked(*args: object, **options: object) -> object:
            done.append(name)
            return work(*args, **options)

        return worked

    monkeypatch.setattr(verify_copy, "using", noted("locked", copy_module.using))
    monkeypatch.setattr(verify_copy, "target_at", noted("opened", copy_module.target_at))
    volume.verify_copy()
    assert ["locked", "opened"] == done


def test_a_copy_that_is_gone_for_good_is_forgotten(volume: KeptVolume) -> None:
    """With all that was kept of it, also what a kill has left of another; status and metrics have it no more."""
    volume.copy()
    (volume.site.state(volume.volume).copies / "0123.digests").touch()
    shutil.rmtree(volume.target.parent)
    assert 1 == len(copies_of(volume.volume, volume.site.state(volume.volume))[0])

    volume.forget()

    assert ((), None) == copies_of(volume.volume, volume.site.state(volume.volume))
    assert not volume.site.state(volume.volume).copies.exists()
    with pytest.raises(Usage, match="knows of no copy"):
        volume.forget()


def test_one_of_two_copies_is_forgotten(volume: KeptVolume, chance: random.Random) -> None:
    """What lies there stays, and can be taken over again; the other one goes on."""
    volume.copy()
    (volume.folder / "other").mkdir()
    other = evolve(volume, place=volume.folder / "other/copy.img")
    other.copy()
    volume.forget()
    assert [str(other.target)] == [
        copy.target for copy in copies_of(volume.volume, volume.site.state(volume.volume))[0]
    ]
    volume.write(chance)
    other.copy()
    with pytest.raises(Exists, match="already there"):
        volume.copy()
    volume.copy(Asked(adopt=True))
    assert same(volume)
    assert same(other)


def test_a_configured_copy_is_not_forgotten(tmp_path: Path, warned: list[str]) -> None:
    """The next backup would make it again."""
    path = str(tmp_path / "disk/copy.img")
    volume = kept_volume(tmp_path, warned.append, copies={"disk": {"path": path}})
    volume.copy()
    with pytest.raises(Usage, match="is configured"):
        volume.forget()
    assert not volume.verify_copy().bad


def test_a_new_copy_is_refused_where_the_earlier_one_is(volume: KeptVolume) -> None:
    """What is known of that one is kept."""
    volume.copy()
    with pytest.raises(Exists, match="still there"):
        volume.copy(Asked(new=True))
    assert not volume.verify_copy().bad


def test_a_copy_that_was_put_there_is_taken_over(volume: KeptVolume, chance: random.Random) -> None:
    shutil.copy(volume.image, volume.target)
    volume.write(chance)
    done = volume.copy(Asked(adopt=True))
    assert same(volume)
    assert done.sent < 10 * PIECE
    assert ["copy.img"] == volume.names()


def test_a_mix_without_a_header_is_taken_over_by_the_host_that_has_left_it(volume: KeptVolume) -> None:
    """As a killed change on a device leaves it: what has no header otherwise may be anybody's."""
    volume.copy()
    with volume.target.open("r+b") as file:
        file.write(bytes(PIECE))
    with pytest.raises(Refused, match="has another header"):
        volume.copy(Asked(adopt=True))
    known = held.of(volume.site.state(volume.volume).copies, str(volume.target))
    assert known is not None
    known.save(step="applying")
    volume.copy(Asked(adopt=True))
    assert same(volume)


@pytest.mark.parametrize(
    ("metadata", "shows_neighbours", "taken"), [(1 << 17, False, True), (1 << 18, False, False), (1 << 18, True, True)]
)
def test_a_header_that_a_device_cannot_hide_is_refused_there(
    tmp_path: Path, metadata: int, shows_neighbours: bool, taken: bool
) -> None:
    """The second metadata copy lies behind the first piece: cryptsetup opens a mix by it."""
    image = tmp_path / "image"
    image.write_bytes(b"LUKS\xba\xbe\0\2" + metadata.to_bytes(8, "big"))
    with image.open("rb") as file:
        found: Any = SimpleNamespace(
            image=SimpleNamespace(descriptor=file.fileno()),
            book=SimpleNamespace(state=SimpleNamespace(piece=PIECE)),
            shown="image",
        )
        target: Any = SimpleNamespace(shows_neighbours=shows_neighbours)
        with nullcontext() if taken else pytest.raises(Refused, match="is too large for nbd:"):
            copy_module._check_header(found, target, "nbd://h/e")


def test_a_new_ledger_cannot_tell_what_an_old_copy_has(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    ledger = volume.site.state(volume.volume).ledger
    shutil.rmtree(ledger)
    volume.write(chance)
    for work in (volume.copy, volume.verify_copy):
        with pytest.raises(Refused, match="begun again"):
            work()
    volume.copy(Asked(adopt=True))
    assert same(volume)
    assert () == volume.verify_copy().bad


def test_a_dry_run_changes_nothing(volume: KeptVolume) -> None:
    notes: list[str] = []
    site = evolve(volume.site, runner=DryRunRunner(notes.append))
    copy_module.copy(volume.volume, site, str(volume.target), Asked(), lambda done, total: None)
    assert ["# up to 3MiB would be sent to " + str(volume.target)] == notes
    assert [] == volume.names()
    assert not volume.site.state(volume.volume).copies.exists()


# Verifying a copy


def test_every_changed_place_of_a_copy_is_found(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    size = volume.target.stat().st_size
    for place in (0, 3 * PIECE, 4 * PIECE - 1, size - 1, *chance.sample(range(size), 20)):
        spoil(volume.target, place)
        assert ((place // PIECE, 1),) == volume.verify_copy().bad
        spoil(volume.target, place)
    assert () == volume.verify_copy().bad


def test_a_short_or_old_copy_is_found(volume: KeptVolume, chance: random.Random) -> None:
    volume.copy()
    old = volume.target.read_bytes()
    volume.write(chance)
    assert 1 == volume.verify_copy().behind
    volume.copy()
    volume.target.write_bytes(old)
    assert volume.verify_copy().bad
    os.truncate(volume.target, PIECE)
    assert "instead of" in volume.verify_copy().length


def test_what_is_no_known_copy_is_not_verified(volume: KeptVolume) -> None:
    with pytest.raises(Unavailable, match="knows of no copy"):
        volume.verify_copy()


# Healing


def damage(volume: KeptVolume, chance: random.Random) -> set[int]:
    """Random damage of some kinds; the pieces that have it."""
    whole = bytearray(volume.image.read_bytes())
    size, pieces = len(whole), -(-len(whole) // PIECE)
    for _ in range(chance.randrange(1, 6)):
        place, length = chance.randrange(size), chance.choice((1, 16, 512, 4096, PIECE))
        length = min(length, size - place)
        kind = chance.randrange(3)
        if kind == 0:
            whole[place : place + length] = bytes(length)
        elif kind == 1:
            whole[place : place + length] = chance.randbytes(length)
        else:
            one, other = (chance.randrange(pieces - 1) * PIECE for _ in range(2))
            whole[one : one + PIECE], whole[other : other + PIECE] = (
                whole[other : other + PIECE],
                whole[one : one + PIECE],
            )
    if chance.random() < 0.2:
        del whole[chance.randrange(1, size) :]
    good = volume.target.read_bytes()
    volume.image.write_bytes(whole)
    return {n for n in range(pieces) if whole[n * PIECE : (n + 1) * PIECE] != good[n * PIECE : (n + 1) * PIECE]}


def healed(found: heal.Healed) -> set[int]:
    return {piece for first, number in found.healed for piece in range(first, first + number)}


def test_damaged_images_are_healed_bit_for_bit(
    volume: KeptVolume, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    """And not at all from a copy that is damaged in one of the same places, until that copy is repaired."""
    volume.copy()
    good = volume.image.read_bytes()
    for _ in range(rounds(10, 100)):
        while not (bad := damage(volume, chance)):  # zeros in a hole
            pass
        worse = chance.choice(sorted(bad))
        before = volume.image.read_bytes()
        spoil(volume.target, worse * PIECE)
        refused = volume.heal()
        assert (((worse, 1),), bad - {worse}) == (refused.lost, healed(refused))
        assert before == volume.image.read_bytes()
        spoil(volume.target, worse * PIECE)
        found = volume.heal()
        assert (bad, ()) == (healed(found), found.lost)
        assert good == volume.image.read_bytes()
    assert () == volume.heal().healed


def test_what_was_healed_counts_as_damaged_no_more(volume: KeptVolume) -> None:
    volume.copy()
    spoil(volume.image, 5 * PIECE)
    verify.verify(volume.volume, volume.site, verify.Asked(), lambda done, total: None)
    volume.heal()
    with copying(volume) as found:
        assert [] == list(found.book.bad())


def test_what_was_put_right_before_counts_as_damaged_no_more(volume: KeptVolume) -> None:
    """By healing that was killed at its end, or by hand."""
    volume.copy()
    spoil(volume.image, 5 * PIECE)
    verify.verify(volume.volume, volume.site, verify.Asked(), lambda done, total: None)
    spoil(volume.image, 5 * PIECE)
    assert () == volume.heal().healed
    with copying(volume) as found:
        assert [] == list(found.book.bad())


def test_a_dry_run_of_healing_writes_nothing(volume: KeptVolume) -> None:
    volume.copy()
    spoil(volume.image, 5 * PIECE)
    before = volume.image.read_bytes()
    dry = evolve(volume, site=evolve(volume.site, runner=DryRunRunner(lambda line: None)))
    assert ((5, 1),) == dry.heal().healed
    assert before == volume.image.read_bytes()


def test_a_copy_that_is_damaged_in_the_same_place_heals_nothing(volume: KeptVolume) -> None:
    volume.copy()
    good = volume.image.read_bytes()
    for place in (5 * PIECE, 9 * PIECE + 1):
        spoil(volume.image, place)
    spoil(volume.target, 5 * PIECE + 7)
    before = volume.image.read_bytes()
    found = volume.heal()
    assert (((9, 1),), ((5, 1),)) == (found.healed, found.lost)
    assert before == volume.image.read_bytes()
    volume.heal(partly=True)
    after = volume.image.read_bytes()
    assert good[9 * PIECE :] == after[9 * PIECE :]
    assert before[: 9 * PIECE] == after[: 9 * PIECE]


def test_a_copy_with_a_bad_place_heals_the_rest(volume: KeptVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost there; a copy that cannot be read at all is no such copy."""
    volume.copy()
    good = volume.image.read_bytes()
    for piece in (5, 9):
        spoil(volume.image, piece * PIECE)
    whole, bad = LocalFile.read, range(5 * PIECE, 6 * PIECE)

    def broken(file: LocalFile, offset: int, length: int) -> bytes:
        if offset in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(file, offset, length)

    monkeypatch.setattr(LocalFile, "read", broken)
    found = volume.heal()
    assert (((9, 1),), ((5, 1),)) == (found.healed, found.lost)
    volume.heal(partly=True)
    assert good[6 * PIECE :] == volume.image.read_bytes()[6 * PIECE :]
    bad = range(len(good))
    with pytest.raises(NotSafe, match="cannot be read: Input/output error"):
        volume.heal()


def test_an_old_copy_heals_what_has_not_changed_since(volume: KeptVolume) -> None:
    volume.copy()
    with volume.open() as path, path.open("r+b") as file:
        file.seek(5 * PIECE)
        file.write(b"newer")
    spoil(volume.image, 9 * PIECE)
    assert ((9, 1),) == volume.heal().healed
    spoil(volume.image, 5 * PIECE)
    assert ((5, 1),) == volume.heal().lost


def test_what_stands_behind_the_end_is_not_cut_off(volume: KeptVolume) -> None:
    volume.copy()
    with volume.image.open("ab") as file:
        file.write(b"more")
    with pytest.raises(Refused, match="4 bytes longer"):
        volume.heal()


def test_healing_a_store_that_keeps_nothing_is_not_safe(volume: KeptVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.copy()
    spoil(volume.image, 5 * PIECE)
    monkeypatch.setattr(heal, "_put", lambda descriptor, content, offset: None)
    with pytest.raises(NotSafe, match="has not kept"):
        volume.heal()


def test_an_open_image_is_not_healed(volume: KeptVolume) -> None:
    volume.copy()
    spoil(volume.image, PIECE)
    with pytest.raises(RuntimeError), volume.open():
        raise RuntimeError
    with pytest.raises(Unavailable, match="not closed cleanly"):
        volume.heal()


def test_a_soft_copy_never_fails_a_backup(tmp_path: Path, warned: list[str]) -> None:
    """Whatever it meets: here a folder in the place of a part of the ledger."""
    copies = {"disk": {"path": str(tmp_path / "disk/copy.img")}}
    volume = kept_volume(tmp_path, warned.append, copies=copies)
    ledger = volume.site.state(volume.volume).ledger
    (ledger / "changes").mkdir()
    copy_module.copy_after_close(volume.volume, volume.site)
    assert 1 == len(warned)
    assert "is closed, but it is not copied" in warned[0]


# What it costs


def test_what_is_read_and_sent_is_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image of 8 GiB, sparse: 5 MiB in 20 pieces."""
    volume = kept_volume(tmp_path, lambda text: None)
    resize(volume, 8 << 30)
    volume.copy()
    with volume.open() as path, path.open("r+b") as file:
        for number in range(20):
            file.seek(number * 1600 * PIECE + PIECE)
            file.write(b"changed")
    read: list[int] = []
    content = Reader.content

    def noted(self: Reader, piece: int) -> bytes:
        read.append(piece)
        return content(self, piece)

    monkeypatch.setattr(Reader, "content", noted)
    sent = volume.copy().sent
    assert 20 == len(read)
    assert 20 * PIECE < sent < 20 * PIECE + 2000
    with open_image(volume.image, writable=False) as image:
        assert 8 << 30 == image.size == volume.target.stat().st_size


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """From 1 GiB to 8 GiB, sparse."""
    peaks = []
    for size in (1 << 30, 1 << 33):
        volume = kept_volume(tmp_path / str(size), lambda text: None)
        resize(volume, size)
        tracemalloc.start()
        volume.copy()
        volume.verify_copy()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 16 * (1 << 20)


def test_the_lines_that_finish_a_change_by_hand_are_documented() -> None:
    """Whoever keeps a copy can change the file beside it, so a user needs another place to read them."""
    text = notice.text("copy", "copy.journal").decode()
    script = text[text.index("python3 - ") : text.index("\nEND\n") + 5]
    assert script in (Path(__file__).parents[2] / "docs/internals/copies.md").read_text()

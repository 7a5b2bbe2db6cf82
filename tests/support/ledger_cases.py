"""A volume with a ledger, through its whole life: `verify` finds what the store changes, and nothing else.

For both engines: a test file imports the cases, and has a fixture `volume`, which was created with a ledger.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lukshook.ledger.pieces import PIECE
from lukshook.volume import known_state
from support.honest_life import Life, backup, change, spoil
from support.lukshook_process import Done
from support.tampering import Store, parts_of
from support.volume import NAME, CliVolume


def state(volume: CliVolume) -> dict[str, object]:
    found: dict[str, object] = json.loads((volume.state_folder / f"{NAME}.ledger/ledger.json").read_bytes())
    return found


def test_a_new_volume_is_known_from_the_beginning(volume: CliVolume) -> None:
    assert f"volume {NAME}: 64MiB compared with the ledger, all intact\n" == volume.do("verify", NAME)
    spoil(volume, volume.image.stat().st_size - 1)
    assert "1 piece is damaged" in volume.lukshook("verify", NAME).stderr


def test_what_a_close_reads_back_is_in_the_ledger(volume: CliVolume, chance: random.Random) -> None:
    before = state(volume)
    backup(volume, chance)
    assert (False, 1) == (state(volume)["writing"], state(volume)["generation"])
    assert before["secret"] == state(volume)["secret"]
    volume.do("verify", NAME)


def test_a_state_that_is_older_than_the_image_knows_no_piece(volume: CliVolume, chance: random.Random) -> None:
    """As after a restore of this host from its own backup: what was written since is no damage."""
    backup(volume, chance)
    with earlier_state(volume):
        backup(volume, chance)
    done = open_past_the_sample(volume)
    assert "more was written to its image than this host knows of" in done.stderr
    volume.do("after-backup", NAME)
    assert "may have been written" in volume.do("verify", NAME)
    assert "more was written" not in volume.lukshook("run", NAME, "--", "true").stderr


def test_a_read_only_opening_sees_that_the_image_is_newer(volume: CliVolume, chance: random.Random) -> None:
    backup(volume, chance)
    with earlier_state(volume):
        backup(volume, chance)
    done = volume.lukshook("open", "--read-only", NAME)
    assert (0, True) == (done.returncode, "more was written" in done.stderr), done.stderr
    volume.do("close", NAME)
    volume.do("verify", NAME)


def test_noise_in_the_count_makes_no_piece_unknown(volume: CliVolume) -> None:
    """A store can turn 16 bytes of the super block into noise, and so raise the count, but not with its checksum."""
    volume.do("run", NAME, "--", "true")
    pins = known_state.KnownState(volume.state_folder, NAME).known.pins
    assert pins is not None
    place = pins["offset"] + 1024 + 0x170
    with volume.image.open("r+b") as image:
        image.seek(place)
        image.write(bytes(16))
    for _ in range(3):
        done = volume.lukshook("open", "--read-only", NAME)
        assert "more was written" not in done.stderr, done.stderr
        volume.lukshook("close", NAME)
    assert "1 piece is damaged" in volume.lukshook("verify", NAME).stderr


@contextmanager
def earlier_state(volume: CliVolume) -> Iterator[None]:
    """This host's state is afterwards what it was before."""
    kept = volume.folder / "earlier"
    shutil.copytree(volume.state_folder, kept)
    yield
    shutil.rmtree(volume.state_folder)
    kept.rename(volume.state_folder)
    volume.state_folder.chmod(0o700)


def test_an_open_volume_is_noted_as_being_written(volume: CliVolume) -> None:
    volume.do("before-backup", NAME)
    assert state(volume)["writing"]
    (volume.data / "file").write_bytes(b"x" * PIECE)
    volume.do("verify", NAME)
    assert state(volume)["verified"] is None
    volume.do("after-backup", NAME)
    assert not state(volume)["writing"]


def test_a_read_only_opening_changes_nothing(volume: CliVolume) -> None:
    before = state(volume)
    volume.do("open", "--read-only", NAME)
    volume.do("close", NAME)
    assert before == state(volume)


def test_honest_life(volume: CliVolume, chance: random.Random, rounds: Callable[[int, int], int]) -> None:
    """Whatever its owner does and whatever is killed: no false alarm, and a changed byte is found."""
    life = Life(volume, chance)
    life.prepare()
    try:
        for number in range(rounds(8, 1000)):
            life.cycle()
            if number % 8 == 7:
                life.check_found()
    finally:
        print(json.dumps(life.counts, sort_keys=True))


def test_every_change_of_the_store_is_found(
    volume: CliVolume, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    """A byte anywhere, older pieces among new ones, swapped pieces, another length: each of them, and nothing else."""
    store, size = store_of(volume, chance), volume.image.stat().st_size
    parts, replaced, places = parts_of(volume, "large"), store.replaced(), Counter[str]()
    for number in range(rounds(1, 50)):
        places.update(store.check_bytes(parts, 20))
        store.check_older(chance.sample(replaced, len(replaced) // (2 if number else 1)))
        store.check_swapped(4)
        for more in (-chance.randrange(1, size), chance.randrange(1, 3 * PIECE)):
            store.check_length_found(size + more)
    print(f"{sum(places.values())} places: {sorted(places.items())}, {len(replaced)} older pieces")
    assert set(parts) >= set(places)
    volume.do("verify", NAME)


def store_of(volume: CliVolume, chance: random.Random) -> Store:
    """What the store has of *volume* after two backups; the second has changed a file in place, and some others."""
    images = []
    for mode in ("wb", "r+b"):
        volume.do("before-backup", NAME)
        with (volume.data / "large").open(mode) as file:
            file.write(chance.randbytes(4_000_000))
        change(volume.data, chance)
        volume.do("after-backup", NAME)
        images.append(volume.image.read_bytes())
    older, good = images
    return Store(volume, older, good, chance)


def test_without_the_option_nothing_counts_as_known(volume: CliVolume, chance: random.Random) -> None:
    """A close takes nothing over then, and nothing is certain until it is read again."""
    options = volume.config.read_text()
    volume.config.write_text("\n".join(line for line in options.splitlines() if not line.startswith("ledger")))
    generation = state(volume)["generation"]
    backup(volume, chance)
    assert (True, generation) == (state(volume)["writing"], state(volume)["generation"])
    volume.config.write_text(options)
    backup(volume, chance)
    assert not state(volume)["writing"]
    volume.do("verify", NAME)


def open_past_the_sample(volume: CliVolume) -> Done:
    """Open a volume with one damaged piece; an opening that happens to look at that piece refuses it."""
    for _ in range(20):
        done = volume.lukshook("before-backup", NAME)
        if done.returncode != 65:
            break
    assert 0 == done.returncode, done.stderr
    return done


def test_damage_outlives_the_next_backup(volume: CliVolume, chance: random.Random) -> None:
    """A close takes over what was written since the opening, and no more than that."""
    backup(volume, chance)
    place = volume.image.stat().st_size - 1
    spoil(volume, place)
    open_past_the_sample(volume)
    (volume.data / "small").write_bytes(b"x")
    volume.do("after-backup", NAME)
    done = volume.lukshook("verify", NAME)
    assert (65, True) == (done.returncode, f"at {place // PIECE * PIECE} (changed)" in done.stdout)


def test_damage_is_found_while_the_volume_is_open(volume: CliVolume, chance: random.Random) -> None:
    place = volume.image.stat().st_size - 1
    volume.do("before-backup", NAME)
    change(volume.data, chance)
    spoil(volume, place)
    done = volume.lukshook("verify", NAME)
    volume.do("after-backup", NAME)
    assert (65, True) == (done.returncode, f"at {place // PIECE * PIECE} (changed)" in done.stdout)


def test_an_opening_refuses_an_image_that_is_damaged_all_over(volume: CliVolume, chance: random.Random) -> None:
    backup(volume, chance)
    volume.do("verify", NAME)
    size = volume.image.stat().st_size
    for at in range(4 << 20, size, PIECE):
        spoil(volume, at)
    line = volume.refusal(65, "before-backup", NAME)
    assert "is not as this host wrote it" in line
    assert volume.is_bare()
    for at in range(4 << 20, size, PIECE):
        spoil(volume, at)
    backup(volume, chance)


@pytest.mark.parametrize("command", ["after-backup", "close"])
def test_a_close_that_could_not_be_noted_is_not_done(volume: CliVolume, chance: random.Random, command: str) -> None:
    """The next one does what is left, also one by hand, and only then the backup counts."""
    backup(volume, chance)
    before = json.loads(volume.do("status", NAME, "--json"))[0]
    volume.do("before-backup", NAME)
    change(volume.data, chance)
    in_the_way = volume.state_folder / f"{NAME}.ledger/changes"
    in_the_way.mkdir()
    for _ in range(2):
        assert "the ledger of volume" in volume.refusal(69, "after-backup", NAME)
    found = json.loads(volume.do("status", NAME, "--json"))[0]
    assert (before["last_success"], "half open") == (found["last_success"], found["state"])
    in_the_way.rmdir()

    volume.do(command, NAME)

    found = json.loads(volume.do("status", NAME, "--json"))[0]
    assert ("done", "closed", "up to date", 0) == tuple(
        found[what] for what in ("last_result", "state", "ledger", "unknown_pieces")
    )
    assert before["last_success"] < found["last_success"]
    assert volume.is_bare()
    volume.do("verify", NAME)


def test_a_restore_gets_what_is_intact(volume: CliVolume, chance: random.Random) -> None:
    """An image that is known to be damaged is opened read-only by hand, with one line that says what to do."""
    backup(volume, chance)
    spoil(volume, volume.image.stat().st_size - 1)
    assert 65 == volume.lukshook("verify", NAME).returncode
    before = volume.image.read_bytes()

    done = volume.lukshook("open", "--read-only", NAME)

    assert (0, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert done.stderr.startswith(f"warning: the image of volume {NAME} is not as this host wrote it: ")
    assert volume.data.is_dir()
    volume.do("close", NAME)
    assert before == volume.image.read_bytes()


@pytest.mark.parametrize("share", ["0%", "101%", "x", "5", "-5%"])
def test_wrong_shares(volume: CliVolume, share: str) -> None:
    volume.refusal(64, "verify", NAME, f"--part={share}")


def test_no_ledger(volume: CliVolume) -> None:
    volume.configure(ledger=None)
    for file in (volume.state_folder / f"{NAME}.ledger").iterdir():
        file.unlink()
    assert f"volume {NAME} has no ledger to compare with" in volume.refusal(78, "verify", NAME)


def test_a_refused_trust_leaves_the_ledger_as_it_is(volume: CliVolume, chance: random.Random) -> None:
    """What was refused as a whole must not count piece by piece."""
    backup(volume, chance)
    old = volume.image.read_bytes()
    for _ in range(2):
        backup(volume, chance)
    volume.image.write_bytes(old)
    assert 65 == volume.lukshook("trust", NAME).returncode
    assert 65 == volume.lukshook("verify", NAME).returncode
    volume.do("trust", "--rollback", NAME)
    volume.do("verify", NAME)
    backup(volume, chance)
    volume.do("verify", NAME)

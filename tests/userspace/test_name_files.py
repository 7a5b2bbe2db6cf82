"""`verify --name-files`: whose data is in a damaged piece, on a volume of the userspace engine."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.ledger.pieces import PIECE
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "e2fsck", "debugfs")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume with a ledger and some files."""
    for volume in created(tmp_path_factory.mktemp("template"), "userspace", ledger=True):
        volume.do("before-backup", NAME)
        chance = random.Random(0)
        for number in range(12):
            (volume.data / f"file\n{number}").write_bytes(chance.randbytes(3 * PIECE))
        volume.do("after-backup", NAME)
        yield volume


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    yield from copied(template, tmp_path)


def spoil(volume: CliVolume, place: int) -> None:
    with volume.image.open("r+b") as image:
        image.seek(place)
        image.write(os.urandom(16))


def place_of(volume: CliVolume, number: int) -> int:
    """Where in the image the middle of a file is: found by what it becomes when it is spoiled."""
    volume.do("open", "--read-only", NAME)
    content = (volume.data / f"file\n{number}").read_bytes()[PIECE : PIECE + 4096]
    plain = (volume.run_folder / f"{NAME}.plain").read_bytes()
    volume.do("close", NAME)
    return plain.index(content) + volume.image.stat().st_size - len(plain)


def test_the_damaged_file_is_named(volume: CliVolume) -> None:
    """And nothing is left open, and nothing but the spoilt bytes has changed."""
    place = place_of(volume, 5)
    spoil(volume, place)
    before = volume.image.read_bytes()

    done = volume.lukshook("verify", "--name-files", NAME)

    assert 65 == done.returncode
    assert f"affected: {volume.data}/file\\n5\n" in done.stdout
    assert f"damaged: {PIECE} bytes at {place // PIECE * PIECE} (changed)\n" in done.stdout
    assert done.stdout.count("affected: ") <= 3, done.stdout
    assert before == volume.image.read_bytes()
    assert not volume.standing()
    assert f"which files: lukshook verify --name-files {NAME}" in volume.do("status", NAME)


def test_files_are_named_without_another_reading_of_all(volume: CliVolume) -> None:
    """Of an open volume too. Which pieces are damaged is in the ledger; a part reads some of them again."""
    for place in [place_of(volume, number) for number in (1, 3, 5)]:
        spoil(volume, place)
    assert 65 == volume.lukshook("verify", NAME).returncode
    assert 0 == volume.lukshook("open", "--read-only", NAME).returncode

    done = volume.lukshook("verify", "--name-files", "--part=1%", NAME)

    assert 65 == done.returncode
    assert "damaged: 1 piece that an earlier verification found\n" in done.stdout
    for number in (1, 3, 5):
        assert f"affected: {volume.data}/file\\n{number}\n" in done.stdout
    assert volume.standing()


def test_the_header_needs_no_key(volume: CliVolume) -> None:
    spoil(volume, PIECE - 16)
    volume.key.unlink()

    done = volume.lukshook("verify", "--name-files", NAME)

    assert f"affected: the header (lukshook header restore {NAME})\n" in done.stdout
    assert 1 == done.stdout.count("affected: ")
    assert 65 == done.returncode


def test_unused_space_is_no_harm(volume: CliVolume) -> None:
    spoil(volume, volume.image.stat().st_size - 16)

    done = volume.lukshook("verify", "--name-files", NAME)

    assert "no harm: 256KiB of unused space\n" in done.stdout
    assert "affected: " not in done.stdout
    assert 65 == done.returncode


def test_without_the_key_there_is_still_a_report(volume: CliVolume) -> None:
    spoil(volume, volume.image.stat().st_size - 16)
    volume.set_key(os.urandom(32))

    done = volume.lukshook("verify", "--name-files", NAME)

    assert 65 == done.returncode
    assert "warning: the files cannot be named: " in done.stderr
    assert "1 piece is damaged" in done.stderr
    assert not volume.standing()


def test_an_intact_image_needs_no_key(volume: CliVolume) -> None:
    volume.key.unlink()
    assert f"volume {NAME}: 64MiB compared with the ledger, all intact\n" == volume.do("verify", "--name-files", NAME)

"""Which files lie in damaged blocks of an ext4: asked of the real debugfs, compared with where the data is found."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from lukshook.errors import Unavailable
from lukshook.filesystems import ext4_owners
from lukshook.filesystems.kind import Owners
from lukshook.layers import filesystem
from lukshook.system.command import SystemRunner

pytestmark = [pytest.mark.files, pytest.mark.needs("mkfs.ext4", "debugfs")]
BLOCK = 4096
SIZE = 64 << 20
#: Each has content that is found again in the image.
NAMES = ("plain", "deep/er/leaf", "two\nlines", "-c", "tab\there", "ünï", "blank s", "back\\slash", '"quoted"')
#: A name that looks like a line of debugfs.
ODD = "odd\n12\t/plain"


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    chance = random.Random(1)
    return {name: chance.randbytes(chance.randrange(3, 9) * BLOCK) for name in (*NAMES, ODD)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> Path:
    """An ext4 with files in it, made without mounting it."""
    tree = tmp_path_factory.mktemp("tree")
    for name, content in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    path = tree.parent / "ext4"
    with path.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-d", tree, path], check=True, capture_output=True)
    return path


def owners(image: Path, *extents: tuple[int, int]) -> Owners:
    return filesystem.owners("ext4", str(image), extents, SystemRunner())


def places(image: Path, content: bytes) -> list[int]:
    """Where the blocks of a file are, in bytes."""
    data = image.read_bytes()
    return [data.index(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]


@pytest.mark.parametrize("name", [*NAMES, ODD])
def test_every_block_of_a_file_leads_to_its_name(image: Path, contents: dict[str, bytes], name: str) -> None:
    """Whatever the name is: names are what users of the volume chose."""
    for place in places(image, contents[name]):
        assert Owners((f"/{name}",), 0, 0) == owners(image, (place, 1))


def test_files_of_many_pieces_are_named_once(image: Path, contents: dict[str, bytes]) -> None:
    """Also where more is asked than one question can have."""
    found = owners(image, (0, SIZE))

    assert {f"/{name}" for name in NAMES} <= set(found.files)
    assert len(set(found.files)) == len(found.files)
    assert {"/", "/deep", "/deep/er", "/lost+found"} <= set(found.files)
    files = sum(map(len, contents.values()))
    assert SIZE - files - 16 * BLOCK < found.own + found.unused <= SIZE - files


def test_questions_are_divided(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = owners(image, (0, SIZE))
    monkeypatch.setattr(ext4_owners, "_BLOCKS", 3000)
    monkeypatch.setattr(ext4_owners, "_INODES", 7)
    monkeypatch.setattr(ext4_owners, "MOST_KEPT", 64 * 1000)
    found = owners(image, (0, SIZE))
    assert (len(whole.files), whole.own, whole.unused) == (len(found.files), found.own, found.unused)
    assert set(whole.files) ^ set(found.files) <= {"/odd", f"/{ODD}"}


def test_inodes_of_the_file_system_are_no_files(tmp_path: Path) -> None:
    """Debian 13's mkfs makes an orphan file; quotas of projects have one too."""
    image = tmp_path / "ext4"
    with image.open("wb") as file:
        file.truncate(SIZE)
    features = ("-O", "orphan_file,quota,project", "-E", "quotatype=prjquota")
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", *features, image], check=True, capture_output=True)

    assert {"/", "/lost+found"} == set(owners(image, (0, SIZE)).files)


def test_unused_space_and_the_file_systems_own_are_told_apart(image: Path) -> None:
    """By what dumpe2fs says of the only group."""
    found = owners(image, (SIZE - 10 * BLOCK, 10 * BLOCK))
    assert Owners((), 0, 10 * BLOCK) == found
    assert Owners((), BLOCK, 0) == owners(image, (0, 1))  # the super block
    assert Owners((), BLOCK, 0) == owners(image, (BLOCK, BLOCK))  # the group descriptors


def test_what_lies_behind_the_file_system_is_nothing(image: Path) -> None:
    assert Owners((), 0, 0) == owners(image, (SIZE, 1 << 20))


def spoiled(image: Path, copy: Path, place: int, length: int) -> Path:
    content = bytearray(image.read_bytes())
    content[place : place + length] = random.Random(place).randbytes(length)
    copy.write_bytes(content)
    return copy


def test_damaged_inodes_do_not_hide_other_files(image: Path, contents: dict[str, bytes], tmp_path: Path) -> None:
    """Damage is where somebody asks: checksums that do not fit are no reason to say nothing."""
    told = subprocess.run(["debugfs", "-R", "imap <12>", image], check=True, capture_output=True, text=True).stdout
    block = int(told.split("located at block ")[1].split(",")[0])
    copy = spoiled(image, tmp_path / "copy", block * BLOCK, 300)

    assert () == owners(copy, (block * BLOCK, BLOCK)).files
    named = {owners(copy, (places(image, content)[0], 1)).files for content in contents.values()}
    assert len([files for files in named if files]) >= len(contents) - 2


def test_damaged_bitmaps_promise_nothing(image: Path, tmp_path: Path) -> None:
    """Space counts as unused only where a bitmap can be believed."""
    told = subprocess.run(["dumpe2fs", image], check=True, capture_output=True, text=True).stdout
    bitmap = int(told.split("Block bitmap at ")[1].split(" ")[0])
    copy = spoiled(image, tmp_path / "copy", bitmap * BLOCK, BLOCK)

    assert Owners((), 10 * BLOCK, 0) == owners(copy, (SIZE - 10 * BLOCK, 10 * BLOCK))


def test_no_file_system_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(1 << 20))
    with pytest.raises(Unavailable, match="the super block of the ext4 in the image is damaged"):
        owners(tmp_path / "noise", (0, 1))


def test_a_debugfs_that_does_not_answer_is_no_answer(image: Path, tmp_path: Path) -> None:
    """It exits with 0 all the same."""
    copy = spoiled(image, tmp_path / "copy", 1024 + 0x18, 2)
    with pytest.raises(Unavailable):
        owners(copy, (0, SIZE))


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_kinds_that_cannot_tell_say_so(kind: str, image: Path) -> None:
    with pytest.raises(Unavailable, match=f"cannot name the files in damaged pieces for {kind}"):
        filesystem.owners(kind, str(image), ((0, 1),), SystemRunner())

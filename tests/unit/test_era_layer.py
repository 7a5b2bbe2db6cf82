"""The recorder of the kernel engine, without a kernel: its commands, its files, what it does where it cannot record."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import evolve

from lukshook.errors import LukshookError, Unavailable
from lukshook.layers import era, era_metadata
from lukshook.layers.base import Opening, Recording, Records, Trust
from lukshook.layers.engines import ENGINES
from lukshook.layers.era_metadata import BLOCK
from lukshook.system import kernel
from lukshook.system.command import Result
from lukshook.system.secret import Secret
from support.fake_runner import FakeRunner

GIB = 1 << 30
#: As versions 0.9 and 1.0 of thin-provisioning-tools print it.
LISTS = {
    "0.9": b'<blocks>\n  <block block="3"/>\n  <range begin="5" end = "8"/>\n</blocks>\n',
    "1.0": b'<blocks>\n  <block block="3"/>\n  <range begin="5" end="8"/>\n</blocks>\n',
}


def opening(tmp_path: Path, runner: FakeRunner | None = None, *, fresh: bool = True) -> Opening:
    """With a recording, of a volume that is not there."""
    recording = Recording(tmp_path / "recorder", BLOCK, fresh)
    asked = Opening("v", runner or FakeRunner(), Path("/run/x"), lambda: Secret(b""), "cat key", cast(Trust, None))
    return evolve(asked, recording=recording)


def handle(tmp_path: Path) -> era.Handle:
    """Of a target that does not stand."""
    place = (
        "/dev/mapper/lukshook-v+era",
        "lukshook-v+era",
        "LUKSHOOK-ERA-x",
        "254:0",
        "7:0",
        str(tmp_path),
        100 * BLOCK,
    )
    return era.Handle(*place, Records.THIS_OPENING.value)


@pytest.mark.parametrize("version", LISTS)
def test_the_list_is_read_as_every_version_prints_it(version: str) -> None:
    """The end of a range is not in it."""
    assert [(3, 4), (5, 8)] == era_metadata.listed(io.BytesIO(LISTS[version]))


@pytest.mark.parametrize("cut", range(1, len(LISTS["0.9"]) - 1, 7))
def test_a_list_that_is_cut_off_is_none(cut: int) -> None:
    """A disk that is full ends it anywhere."""
    with pytest.raises(Unavailable, match="incomplete"):
        era_metadata.listed(io.BytesIO(LISTS["0.9"][:cut]))


def test_an_empty_list_is_one() -> None:
    """Nothing was written."""
    assert [] == era_metadata.listed(io.BytesIO(b"<blocks>\n</blocks>\n"))


def test_extents_are_joined_and_end_with_the_image() -> None:
    """Those of two files can overlap, and the last block of an image can be short."""
    size = 9 * BLOCK + 4096
    found = era_metadata.extents([(8, 10), (1, 3), (2, 4), (4, 5), (6, 7)], size, successors=False)
    assert ((BLOCK, 4 * BLOCK), (6 * BLOCK, BLOCK), (8 * BLOCK, BLOCK + 4096)) == found


def test_with_discards_the_block_behind_counts() -> None:
    """A discard begins in one block and ends in the next."""
    found = era_metadata.extents([(1, 2), (9, 10)], 10 * BLOCK, successors=True)
    assert ((BLOCK, 2 * BLOCK), (9 * BLOCK, BLOCK)) == found


@pytest.mark.parametrize("size", [1, BLOCK, GIB, 1024 * GIB])
def test_metadata_have_twice_the_room_that_they_need(size: int) -> None:
    """4.1 bytes for each block were in use right after creation."""
    length = era_metadata.needed(size)
    assert length >= max(4 << 20, 2 * 4.1 * size / BLOCK)
    assert 0 == length % 4096
    assert length <= 41 << 20


def write_superblock(file: Path, *, magic: int = 2126579579, block: int = BLOCK // 512, blocks: int = 4) -> None:
    """What the kernel writes when a target is loaded."""
    file.write_bytes(struct.pack("<IIQ16sQI128sIII", 1, 0, 0, b"", magic, 1, b"", block, 8, blocks).ljust(8192, b"\0"))


def test_what_no_target_was_loaded_over_is_no_record(tmp_path: Path) -> None:
    """Nothing was written through it."""
    file = tmp_path / "era.0"
    for content in (b"", bytes(4096)):
        file.write_bytes(content)
        assert era_metadata.superblock(file) is None
    write_superblock(file, blocks=0)
    assert era_metadata.superblock(file) is None
    write_superblock(file)
    assert era_metadata.Superblock(BLOCK, 4) == era_metadata.superblock(file)
    write_superblock(file, magic=7)
    with pytest.raises(Unavailable, match="is not what dm-era writes"):
        era_metadata.superblock(file)


def test_files_follow_each_other_by_number(tmp_path: Path) -> None:
    """The eleventh comes after the tenth; others in the folder are none."""
    assert tmp_path / "era.0" == era_metadata.following(tmp_path)
    for name in ("era.10", "era.9", "era.written", "other", "era.x"):
        (tmp_path / name).touch()
    assert [tmp_path / "era.9", tmp_path / "era.10"] == list(era_metadata.files_in(tmp_path))
    assert tmp_path / "era.11" == era_metadata.following(tmp_path)
    era_metadata.forget(tmp_path)
    assert ["era.written", "era.x", "other"] == sorted(os.listdir(tmp_path))
    assert () == era_metadata.files_in(tmp_path / "absent")


def test_metadata_are_made_with_all_blocks_and_for_us_alone(tmp_path: Path) -> None:
    """A hole in them could find no room later."""
    file = tmp_path / "recorder/era.0"
    era_metadata.make(file, GIB)
    found = file.stat()
    assert found.st_blocks * 512 >= found.st_size == era_metadata.needed(GIB)
    assert (0o600, 0o700) == (found.st_mode & 0o777, file.parent.stat().st_mode & 0o777)
    with pytest.raises(FileExistsError):
        era_metadata.make(file, GIB)


def test_a_file_that_could_not_be_filled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be taken for one without a record."""
    monkeypatch.setattr("lukshook.store.liveness.copies_on_write", lambda file: "zfs")
    with pytest.raises(Unavailable, match="lies on zfs"):
        era_metadata.make(tmp_path / "era.0", GIB)
    assert [] == os.listdir(tmp_path)


def test_where_nobody_asks_there_is_no_layer(tmp_path: Path) -> None:
    """No command, no handle, no tool; also not for what only reads."""
    runner = FakeRunner()
    for asked in (evolve(opening(tmp_path, runner), recording=None), evolve(opening(tmp_path, runner), read_only=True)):
        assert () == era.Spec().open_commands("/dev/loop7", asked)
        assert era.Spec().expect("/dev/loop7", asked) is None
        assert era.Spec().open("/dev/loop7", asked) is None
    assert [] == runner.commands


def test_it_lies_between_the_loop_device_and_the_mapping() -> None:
    """Its blocks are then those of the image, header included."""
    layers = ENGINES["kernel"].layers
    assert ("loop", "era", "dmcrypt") == layers[layers.index("era") - 1 : layers.index("era") + 2]


def test_a_dry_run_shows_how_it_is_done(tmp_path: Path) -> None:
    """In one shell, and the name is that of no volume's mapping."""
    (command,) = era.Spec().open_commands("/dev/loop7", opening(tmp_path))
    assert command.argv[-3:] == ("/dev/loop7", str(tmp_path / "recorder/era.0"), "lukshook-v+era")
    assert f"era $m $1 {BLOCK // 512}" in command.argv[2]
    expected = era.Spec().expect("/dev/loop7", opening(tmp_path))
    assert expected is not None
    assert "/dev/mapper/lukshook-v+era" == expected.path
    assert ["dmsetup remove --verifyudev --retry -- lukshook-v+era"] == [
        str(each) for each in expected.close_commands()
    ]


@pytest.mark.parametrize(
    ("release", "works"), [("5.11.22-1-amd64", False), ("4.19", False), ("x", False), ("5.12", True), ("6.1.0-9", True)]
)
def test_kernels_with_faults_are_not_used(monkeypatch: pytest.MonkeyPatch, release: str, works: bool) -> None:
    """Before Linux 5.12 a crash lost what was written last."""
    monkeypatch.setattr(era_metadata, "TOOLS", ())
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    if works:
        assert era.Spec().can_record(FakeRunner())
    else:
        with pytest.raises(Unavailable, match="has faults"):
            era.Spec().can_record(FakeRunner())


def fail(error: Exception) -> Callable[..., None]:
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    "error",
    [Unavailable("no such tool", hint="install it"), OSError(28, "No space left on device"), OSError(5, "EIO", "/x")],
    ids=["tool", "full", "failing"],
)
def test_whatever_it_lacks_the_opening_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """One line says why; what earlier openings left is removed, since it lacks what is written from now on."""
    said: list[str] = []
    asked = evolve(opening(tmp_path, fresh=False), warn=said.append)
    (tmp_path / "recorder").mkdir()
    write_superblock(tmp_path / "recorder/era.0")
    monkeypatch.setattr(era, "_opened", fail(error))
    assert era.Spec().open("/dev/loop7", asked) is None
    (line,) = said
    assert "volume v: nothing records what is written (" in line
    assert "closing reads the whole image instead" in line
    assert [] == os.listdir(tmp_path / "recorder")


def test_a_clean_close_before_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old list is gone before anything can fail."""
    (tmp_path / "recorder").mkdir()
    write_superblock(tmp_path / "recorder/era.0")
    seen: list[list[str]] = []

    def opened(*_: object) -> era.Handle:
        seen.append(os.listdir(tmp_path / "recorder"))
        return handle(tmp_path)

    monkeypatch.setattr(era, "_opened", opened)
    era.Spec().open("/dev/loop7", opening(tmp_path))
    assert [[]] == seen


@pytest.mark.parametrize(
    "said",
    [
        "0 1048576 era Error",
        "0 1048576 era Fail",
        "0 1048576 linear ",
        "",
        "0 1048576 era 8 1500/2048 3 -\n",
    ],
)
def test_a_target_that_cannot_record_is_found(said: str) -> None:
    """Failed, replaced, gone, or with metadata that are more than half full."""
    with pytest.raises(Unavailable):
        era._check_room("x", FakeRunner({"dmsetup status": Result(0, said)}))


def test_a_snapshot_that_a_killed_run_left_is_dropped_first() -> None:
    """The kernel keeps one only."""
    runner = FakeRunner({"dmsetup status": Result(0, "0 1048576 era 8 30/2048 3 273\n")})
    with era._snapshot("x", runner):
        pass
    messages = [line.rpartition(" ")[2] for line in runner.lines if "message" in line]
    assert ["drop_metadata_snap", "take_metadata_snap", "drop_metadata_snap"] == messages


def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Then everything counts as written."""
    for answer in (Result(1, "", "Device does not exist"), Result(0, "0 800 linear 7:0 0\n")):
        with pytest.raises(LukshookError):
            handle(tmp_path).written(FakeRunner({"dmsetup table": answer}))
    with pytest.raises(LukshookError):
        evolve(handle(tmp_path), folder="").written(FakeRunner())


def test_a_target_that_is_gone_is_closed(tmp_path: Path) -> None:
    """Without a command."""
    runner = FakeRunner()
    handle(tmp_path).close(runner)
    assert [] == runner.commands


def test_discards_are_limited_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that keeps another limit is not believed."""
    files = {name: tmp_path / name for name in ("small", "large")}
    files["small"].write_text("0\n")
    files["large"].write_text("4294966784\n")
    monkeypatch.setattr(era, "Path", lambda place: files["small" if "7:1" in place else "large"])
    era.limit_discards("7:1", 0)
    era.limit_discards("7:2", BLOCK)
    assert str(BLOCK) == files["large"].read_text()
    monkeypatch.setattr(kernel, "value", lambda place: "4294966784")
    with pytest.raises(Unavailable, match="lets discards of 4294966784 bytes"):
        era.limit_discards("7:2", BLOCK)


@pytest.mark.parametrize(
    ("version", "usage", "option", "faulty"),
    [
        ("0.9.0", "  {--metadata-snapshot}", "--metadata-snapshot", False),
        ("1.1.0", "      --metadata-snapshot <METADATA_SNAPSHOT>", "--metadata-snapshot=yes", True),
        ("era_invalidate 1.2.0", "      --metadata-snapshot    Use the snapshot", "--metadata-snapshot", True),
    ],
)
def test_each_version_is_asked_as_it_understands(version: str, usage: str, option: str, faulty: bool) -> None:
    """1.1.0 of Debian 13 wants a value for the option, and has a fault where all writes are old."""
    runner = FakeRunner(
        {"era_invalidate --version": Result(0, version + "\n"), "era_invalidate --help": Result(0, usage)}
    )
    assert era_metadata._Tool(version, option, faulty) == era_metadata._tool(runner)


def test_a_list_that_the_tool_would_leave_out_is_lost(tmp_path: Path) -> None:
    """All writes are in the array of old ones, which version 1.1.0 does not read then: its list would be empty."""
    file = tmp_path / "era.0"
    runner = FakeRunner({"era_invalidate --version": Result(0, "1.1.0\n")})
    for entries in (0, 1):
        write_superblock(file)
        with file.open("r+b") as opened:
            opened.seek(200)
            opened.write(struct.pack("<Q", 1))
            opened.seek(4096 + 16)
            opened.write(struct.pack("<I", entries))
        assert bool(entries) is era_metadata._has_writesets(file)
    with file.open("r+b") as opened:
        opened.seek(4096 + 16)
        opened.write(bytes(4))
    with pytest.raises(Unavailable, match=r"era_invalidate 1\.1\.0 cannot list"):
        era_metadata.written(file, runner)


def test_metadata_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.9 reads what is live."""
    starts = iter([b"1", b"2", b"2", b"2"])
    monkeypatch.setattr(era_metadata, "_start", lambda file: next(starts))
    monkeypatch.setattr(era_metadata, "_invalidated", lambda *_: [(1, 2)])
    assert [(1, 2)] == era_metadata.written_live(tmp_path / "era.0", "/dev/loop7", FakeRunner())
    assert [] == list(starts)
    monkeypatch.setattr(era_metadata, "_start", lambda file: os.urandom(8))
    with pytest.raises(Unavailable, match="changes while it is read"):
        era_metadata.written_live(tmp_path / "era.0", "/dev/loop7", FakeRunner())

"""A new kind of file system is one line in a table: everything else asks that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, Refused, Unavailable, Usage
from lukshook.filesystems import kinds, mounts
from lukshook.filesystems.kind import Facts, Kind
from lukshook.filesystems.kinds import KINDS
from lukshook.layers import filesystem, mount
from lukshook.layers.base import Opening
from lukshook.resize.plan import check_leap
from lukshook.store.room import Room
from lukshook.system import kernel
from lukshook.system.command import Command, Result, SystemRunner, change
from lukshook.system.secret import Secret
from lukshook.volume import create, engine_choice
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known
from support.fake_runner import FakeRunner

MIB = 1 << 20


def _facts(descriptor: int) -> Facts | None:
    return Facts("its-uuid", 64 * MIB, 4096, False, None) if os.pread(descriptor, 6, 0) == b"newfs!" else None


def _resize(place: str, size: int) -> Command:
    return change("newfs-resize", place, str(size))


NEW = Kind(
    make=("mkfs.newfs", "--quiet"),
    facts=_facts,
    least=48 * MIB,
    tools=("mkfs.newfs", "newfs-check"),
    resize=_resize,
    read_only=("ro", "noreplay"),
    options=("strict", "tidy"),
    check=("newfs-check", "--fix"),
    look=("newfs-check",),
    own_numbers=True,
    largest_step=lambda length: length * 2,
)


@pytest.fixture(name="new")
def _new(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    """A kind that nothing but the table knows of."""
    monkeypatch.setitem(KINDS, "newfs", NEW)
    yield NEW


def volume(folder: Path, **options: object) -> Volume:
    """A volume with that kind of file system."""
    table = {"image": f"{folder}/image", "mountpoint": f"{folder}/mount", "key": f"file:{folder}/key"}
    named = {**table, "filesystem": "newfs", "engine": "kernel", **options}
    return config.parse({"volumes": {"v": named}}, folder / "config.toml").volumes["v"]


def opening(folder: Path, runner: FakeRunner | None = None, *, read_only: bool = False) -> Opening:
    """One opening of it."""
    key, trust = Secret(b""), Accepting("v", Known())
    return Opening("v", runner or FakeRunner(), folder, lambda: key, "", trust, read_only=read_only)


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> str:
    image = tmp_path / "image"
    image.write_bytes(b"newfs!")
    return str(image)


def test_the_table_decides_what_the_configuration_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused while the table has no such line, taken once it has."""
    with pytest.raises(BadConfiguration, match=r'filesystem: \'newfs\' is not one of "ext4", "xfs", "btrfs"'):
        volume(tmp_path)

    monkeypatch.setitem(KINDS, "newfs", NEW)

    assert "newfs" == volume(tmp_path).filesystem.filesystem == volume(tmp_path).mount.filesystem


def test_only_a_kind_that_can_keeps_a_second_host_out(
    new: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the message names those that can."""
    with pytest.raises(BadConfiguration, match=r"mmp: only ext4 has it"):
        volume(tmp_path, mmp=True)

    monkeypatch.setitem(KINDS, "newfs", evolve(new, protect=("newfs-protect",)))

    assert volume(tmp_path, mmp=True).filesystem.mmp


@pytest.mark.usefixtures("new")
def test_check_names_its_tools(tmp_path: Path) -> None:
    """Each with its package where it is missing: its own name where system/platforms.py has no other."""
    assert ("mkfs.newfs", "newfs-check") == engine_choice.tools_of(volume(tmp_path))[-2:]
    with pytest.raises(Unavailable, match=r"mkfs\.newfs is not installed") as caught:
        SystemRunner().run(change("mkfs.newfs"))
    assert "install mkfs.newfs" in caught.value.hint


@pytest.mark.usefixtures("new")
@pytest.mark.parametrize(
    ("read_only", "options"),
    [(False, "nodev,nosuid,noexec,noatime,strict,tidy"), (True, "nodev,nosuid,noexec,noatime,ro,noreplay")],
)
def test_it_is_mounted_with_its_options(tmp_path: Path, read_only: bool, options: str) -> None:
    """Besides those of every mount."""
    commands = volume(tmp_path).mount.open_commands("/dev/x", opening(tmp_path, read_only=read_only))

    argv = next(command.argv for command in commands if "-t" in command.argv)
    assert ("mount", "-t", "newfs", "-o", options) == argv[:5]


@pytest.mark.usefixtures("new")
def test_it_is_made_checked_and_found(tmp_path: Path, image: str) -> None:
    """With its own commands, by its own super block."""
    runner = FakeRunner({"newfs-check": Result(0)})
    spec = volume(tmp_path).filesystem

    handle = spec.open(image, opening(tmp_path, runner))

    assert ("newfs", "its-uuid", True) == (handle.kind, handle.uuid, handle.whole)
    assert [("newfs-check", "--fix", image)] == [command.argv for command in runner.commands]
    assert [("mkfs.newfs", "--quiet", image)] == [c.argv for c in filesystem.make_commands(spec, image)]
    assert "newfs" == filesystem.kind_of(image)
    assert 64 * MIB == filesystem.size("newfs", image, "/mnt", runner)


@pytest.mark.usefixtures("new")
def test_a_check_that_is_not_passed_is_damage(tmp_path: Path, image: str) -> None:
    """What e2fsck means by its exit statuses holds for ext4 only."""
    for code in (1, 8):
        with pytest.raises(Refused, match="is damaged and cannot be repaired automatically"):
            volume(tmp_path).filesystem.open(image, opening(tmp_path, FakeRunner({"newfs-check": Result(code)})))


@pytest.mark.usefixtures("new")
def test_it_has_a_least_size(tmp_path: Path) -> None:
    """The header comes on top of that."""
    with pytest.raises(BadConfiguration, match="too small") as caught:
        create._wanted_size(volume(tmp_path, size="40MiB"))
    assert "a header and newfs need at least 64MiB" == caught.value.hint


@pytest.mark.usefixtures("new")
def test_it_grows_mounted_in_steps_and_does_not_shrink() -> None:
    """As its Kind says, and with no option of another kind."""
    grow = filesystem.resize_command("newfs", "/dev/x", "/mnt", 96 * MIB)
    assert ("newfs-resize", "/mnt", str(96 * MIB)) == grow.argv
    assert (grow,) == mount.growing("newfs", "/mnt", grow)
    assert not KINDS["newfs"].shrinks
    with pytest.raises(Usage, match="newfs-resize fails"):
        check_leap(200 * MIB, Room(64 * MIB, 0, 1 << 40, 1 << 40), "newfs")


def test_its_mounts_may_have_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they name their device."""
    found = kernel.Mount("0:44", "/sub", "/mnt", "newfs", "/dev/x", frozenset(), frozenset())
    monkeypatch.setattr(kernel, "number", lambda path: "253:7")
    assert not mounts.lies_on(found, "253:7")

    monkeypatch.setitem(KINDS, "newfs", NEW)

    assert mounts.lies_on(found, "253:7") and mounts.shows_all(found, "253:7")
    assert "ext4, xfs, btrfs or newfs" == kinds.in_words()

"""`lukshook init`: what is asked, what is written, and what is never touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_schema import TAPLO

from lukshook import config, hosts
from lukshook.cli import init
from lukshook.cli.paths import new_config
from lukshook.errors import Exists
from lukshook.options import written
from lukshook.report import proposals
from lukshook.system import command
from lukshook.volume import engine_choice
from support.terminal import answered
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "qemu-img")


@pytest.fixture
def volume(tmp_path: Path) -> CliVolume:
    """No configuration, an empty store, and a folder for the configuration that is still to be made."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    made.config.unlink()
    made.key.unlink()
    return made


def options(volume: CliVolume, **more: str) -> list[str]:
    """All options, with *more* in place of some."""
    given = {
        "image": str(volume.image),
        "mountpoint": str(volume.mountpoint),
        "size": "64MiB",
        "key": f"file:{volume.key}",
        "tool": "cron",
        **more,
    }
    return [NAME, *(word for name, value in given.items() for word in (f"--{name}", value))]


def test_without_a_terminal_it_asks_nothing(volume: CliVolume) -> None:
    assert "init asks questions, and there is no terminal" == volume.refusal(64, "init", *options(volume))
    assert not volume.config.exists()


def test_all_options_and_yes(volume: CliVolume) -> None:
    """The configuration is its owner's alone, and says what was given; nothing is created."""
    said = volume.do("init", *options(volume), "--yes", "--no-create")

    found = config.load(volume.config).volumes[NAME]
    assert (volume.image, volume.mountpoint, "64MiB") == (found.image.image, found.mountpoint, found.image.size)
    assert (f"file:{volume.key}",) == found.key
    assert 0o600 == volume.config.stat().st_mode & 0o777
    assert "Lines for cron:" in said
    assert [] == list(volume.image.parent.glob("*.img"))
    assert not volume.key.exists()


@pytest.mark.parametrize(
    ("library", "code", "said"),
    [
        ("2.9.9", 0, "is written"),
        ("3.17.2", 69, "this fuse2fs does not support direct_io"),
        ("", 69, "fuse2fs is not installed"),
    ],
)
def test_a_fuse2fs_that_nobody_can_accept(
    volume: CliVolume, tmp_path: Path, library: str, code: int, said: str
) -> None:
    """That of Debian 13, or none: it ends before anything is written. Debian 12's is a question."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/fuse2fs"
    tool.write_text(f"#!/bin/sh\necho 'fuse2fs 1.47.0 (5-Feb-2023)'; echo 'FUSE library version: {library}'\n")
    tool.chmod(0o755 if library else 0o644)

    def as_a_user() -> None:
        engine_choice.stack_of = lambda volume: ("image", "qemu", "fuse2fs")
        command.TOOL_PATH = f"{tool.parent}:{command.TOOL_PATH}" if library else str(tool.parent)

    words = ("init", *options(volume), "--yes", "--no-create", "--old-fuse2fs")
    done = volume.start(*words, prepare=as_a_user).wait()

    assert (code, True) == (done.returncode, said in done.stdout + done.stderr), (done.stdout, done.stderr)
    assert (code == 0) == volume.config.exists()


def test_a_bare_machine_is_told_all_at_once(volume: CliVolume, tmp_path: Path) -> None:
    """One line installs every program; the ledger is there for the time after that, and the next steps are named."""

    def bare() -> None:
        command.TOOL_PATH = str(tmp_path / "none")

    done = volume.start("init", *options(volume), "--yes", prepare=bare).wait()

    assert 69 == done.returncode, done.stderr
    (missing,) = [line for line in done.stdout.splitlines() if line.startswith("  fail ")]
    assert all(program in missing for program in ("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4"))
    assert config.load(volume.config).volumes[NAME].ledger
    assert f"after you repair that, run: lukshook create {NAME}" in done.stderr
    for later in (f"lukshook run {NAME} -- cp", f"lukshook verify {NAME}", f"lukshook hooks cron {NAME}"):
        assert later in done.stdout


def test_a_relative_path_in_the_environment(volume: CliVolume, tmp_path: Path) -> None:
    """It is below the caller's folder, as for every other command."""
    words = ("init", *options(volume), "--yes", "--no-create")
    done = volume.start(*words, prepare=lambda: os.chdir(tmp_path), LUKSHOOK_CONFIG="relative.toml").wait()
    assert f"{tmp_path}/relative.toml is written" == done.stdout.splitlines()[0]
    assert (tmp_path / "relative.toml").is_file()


def test_an_editor_finds_the_schema_and_nothing_wrong(volume: CliVolume) -> None:
    volume.do("init", *options(volume), "--yes", "--no-create")

    assert volume.config.read_text().startswith(f"#:schema {written.schema_file()}\n")
    done = subprocess.run([TAPLO, "check", volume.config], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def test_a_configuration_that_is_there_stays_and_the_lines_are_printed(volume: CliVolume) -> None:
    volume.do("init", *options(volume), "--yes", "--no-create")
    before = volume.config.read_bytes(), volume.config.stat().st_mtime_ns
    other = {"image": f"{volume.image}2", "mountpoint": f"{volume.mountpoint}2"}

    again = volume.lukshook("init", *options(volume), "--yes")
    second = volume.lukshook("init", "second", *options(volume, **other)[1:], "--yes")
    same = volume.lukshook("init", "second", *options(volume)[1:], "--yes")

    assert [73, 73, 78] == [again.returncode, second.returncode, same.returncode]
    assert f"volume {NAME} is configured already" in again.stderr
    assert f"{volume.config} already exists, and init changes nothing in it" in second.stderr
    assert f"is the image of volumes.{NAME} too" in same.stderr
    assert before == (volume.config.read_bytes(), volume.config.stat().st_mtime_ns)
    volume.config.write_text(f"{volume.config.read_text()}\n{second.stdout}")
    assert [NAME, "second"] == list(config.load(volume.config).volumes)


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        ("image", "backup.img", 78, "an absolute path"),
        ("image", "/nowhere/backup.img", 69, "/nowhere does not exist"),
        ("mountpoint", "/proc", 69, "is mounted on /proc"),
        ("mountpoint", "mnt", 78, "an absolute path"),
        ("size", "64M", 78, "write 64MiB"),
        ("size", "1MiB", 78, "too small"),
        ("size", "900PiB", 69, "the store has"),
        ("key", "fil:/k", 78, "is not a key source"),
        ("tool", "tar", 64, 'there are no lines for the backup tool "tar"'),
    ],
)
def test_a_wrong_answer_is_refused_before_anything_is_written(
    volume: CliVolume, option: str, value: str, code: int, said: str
) -> None:
    assert said in volume.refusal(code, "init", *options(volume, **{option: value}), "--yes")
    assert not volume.config.exists()


@pytest.mark.parametrize("name", ["-x", "a b", "../x", "x" * 200, ""])
def test_a_wrong_name_is_refused(volume: CliVolume, name: str) -> None:
    done = volume.lukshook("init", *options(volume)[1:], "--yes", "--", name)
    assert 78 == done.returncode
    assert "a volume's name has up to" in done.stderr


def test_an_image_that_is_there_is_refused(volume: CliVolume) -> None:
    volume.image.write_bytes(b"x")
    assert "already exists" in volume.refusal(73, "init", *options(volume), "--yes")
    assert b"x" == volume.image.read_bytes()


def test_a_known_volume_is_refused(volume: CliVolume) -> None:
    """Its image may only be away, and its header backup is all that opens it."""
    volume.state_folder.mkdir(mode=0o700)
    (volume.state_folder / f"{NAME}.header").write_bytes(b"")
    assert "this host already has state" in volume.refusal(73, "init", *options(volume), "--yes")


def test_a_dry_run_shows_what_would_be_written(volume: CliVolume) -> None:
    shown = volume.do("--dry-run", "init", *options(volume), "--yes")
    assert not volume.config.exists()
    volume.do("init", *options(volume), "--yes", "--no-create")
    assert shown == volume.config.read_text()


def test_answers_on_a_terminal(volume: CliVolume) -> None:
    """A wrong one is told and asked for again; nothing is created if the person does not want it."""
    answers = ["a b", NAME, "backup.img", str(volume.image), str(volume.mountpoint), "64M", "64MiB"]
    session = answered(volume, ["init"], [*answers, f"file:{volume.key}", "tar", "none", "n"])

    assert 0 == session.returncode, session.seen
    for wrong in ("a volume's name", "an absolute path", "write 64MiB", 'there are no lines for the backup tool "tar"'):
        assert wrong in session.seen
    assert "64MiB" == config.load(volume.config).volumes[NAME].image.size
    assert f"to create it: lukshook create {NAME}" in session.seen
    assert not volume.image.exists()


def test_a_person_who_leaves_leaves_nothing(volume: CliVolume) -> None:
    session = answered(volume, ["init"], [NAME])
    assert 130 == session.returncode
    assert not volume.config.exists()


def test_a_configuration_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Two people at once; the one who is later is told, and no half of a file is left."""
    file = tmp_path / "config.toml"
    file.write_text("mine")
    with pytest.raises(Exists):
        init._write(file, "yours")
    assert ["config.toml"] == [entry.name for entry in tmp_path.iterdir()]
    assert "mine" == file.read_text()


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    init._write(tmp_path / "new/lukshook/config.toml", "text")
    assert 0o700 == (tmp_path / "new/lukshook").stat().st_mode & 0o777


def test_where_a_first_configuration_is_written() -> None:
    environment = {"HOME": "/home/a"}
    assert Path("/etc/lukshook/config.toml") == new_config(environment, 0, None)
    assert Path("/home/a/.config/lukshook/config.toml") == new_config(environment, 1000, None)
    assert Path("/x/lukshook/config.toml") == new_config({**environment, "XDG_CONFIG_HOME": "/x"}, 1000, None)
    assert Path("/c.toml") == new_config({**environment, "LUKSHOOK_CONFIG": "/c.toml"}, 1000, None)
    assert Path("/d.toml") == new_config({**environment, "LUKSHOOK_CONFIG": "/c.toml"}, 1000, Path("/d.toml"))


@pytest.mark.parametrize(
    ("files", "proposed", "question"),
    [
        ((), "", " (here: borg, rsync)"),
        (("etc/rsnapshot.conf",), "rsnapshot", ""),
        (("home/.config/borgmatic.d/a.yaml", "etc/borgmatic/config.yaml"), "borgmatic", ""),
        (("etc/rsnapshot.conf", "etc/borgmatic.d/a.yml"), "", " (here: borgmatic, rsnapshot)"),
    ],
)
def test_the_tool_that_is_proposed(
    files: tuple[str, ...], proposed: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is configured here; a tool that is only installed, or one of several, is left to the person."""
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    for name in (*files, "bin/rsync", "bin/borg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(0o755)

    tools = proposals.tools(f":{tmp_path}/nowhere:{tmp_path}/bin", tmp_path / "home")

    assert proposed == tools.proposed
    assert f"Backup tool to print lines for, or none{question}" == init._which_tool(tools)


def test_a_tool_by_the_old_name_of_the_option(volume: CliVolume) -> None:
    """`--host` was the name of `--tool`."""
    words = ["--host" if word == "--tool" else word for word in options(volume)]
    assert "Lines for cron:" in volume.do("init", *words, "--yes", "--no-create")


@pytest.mark.parametrize(
    "path", ['/srv/"quoted"\\.img', "/srv/Übung \u2603.img", "/srv/it's.img", "/srv/#not [a] = b.img"]
)
def test_what_is_written_is_read_as_it_was(path: str) -> None:
    text = written.whole(
        written.block("a.b", {"image": path, "mountpoint": "/mnt/x", "key": "prompt"}, {"ledger": True})
    )
    found = config.parse(config.table_of(text, Path("/c")), Path("/c")).volumes["a.b"]
    assert Path(path) == found.image.image

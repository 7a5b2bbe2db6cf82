"""What a person in their first ten minutes types, and what is answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook import hosts
from lukshook.cli.main import COMMANDS
from support.volume import NAME, CliVolume

RECOVERY = Path(__file__).resolve().parents[2] / "docs/recovery.md"
KEY_NEW = (sys.executable, "-m", "lukshook", "key", "new")


@pytest.fixture
def volume(tmp_path: Path) -> CliVolume:
    """A configured volume without an image."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    return made


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("mount", NAME), "open"),
        (("umount", NAME), "close"),
        (("list",), "status"),
        (("format",), "create"),
        (("help",), "lukshook --help"),
        (("help", "run"), "lukshook run --help"),
        (("offsite", "open"), "open offsite"),
        (("stauts",), "status"),
    ],
)
def test_a_word_of_another_tool(volume: CliVolume, words: tuple[str, ...], meant: str) -> None:
    assert volume.refusal(64, *words).endswith(f"Did you mean '{meant}'?")


def test_a_word_that_means_nothing(volume: CliVolume) -> None:
    assert "Did you mean" not in volume.refusal(64, "xyzzy")


def test_the_help_shows_whole_sentences(volume: CliVolume) -> None:
    """Each command with its first sentence, and none is cut."""
    shown = volume.do("--help")
    assert "...\n" not in shown.replace("[ARGS]...", "")
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


@pytest.mark.parametrize("group", ["key", "header"])
def test_the_help_of_a_group_does_too(volume: CliVolume, group: str) -> None:
    assert "...\n" not in volume.do(group, "--help").replace("[ARGS]...", "")


def test_hooks_alone_lists_the_tools(volume: CliVolume) -> None:
    """One line each, and whether the lines were run with the real tool."""
    *tools, last = volume.do("hooks").splitlines()

    assert list(hosts.hosts()) == [line.split()[0] for line in tools]
    for name, line in zip(hosts.hosts(), tools, strict=True):
        about = hosts.about(name)
        assert about.summary in line
        assert (f"; run with {about.tried}" if about.tried else "; NOT RUN by us: ") in line
    assert "lukshook hooks TOOL NAME" in last


def test_hooks_needs_a_volume(volume: CliVolume) -> None:
    assert "the lines for which volume?" == volume.refusal(64, "hooks", "cron")


@pytest.mark.parametrize(
    ("words", "status", "hint"),
    [
        (("open", "borgmatic", NAME), 64, "the lines for a backup tool: lukshook hooks borgmatic NAME"),
        (("open", NAME, "borgmatic"), 64, "the lines for a backup tool: lukshook hooks borgmatic NAME"),
        (("open", NAME, "other"), 64, "lukshook open --help"),
        (
            ("hooks", NAME, "cron"),
            64,
            f"the tool comes first: lukshook hooks cron {NAME}; lukshook hooks lists all tools",
        ),
        (("hooks", NAME), 64, f"the tool comes first: lukshook hooks TOOL {NAME}; lukshook hooks lists all tools"),
        (("resize", "+1GiB", NAME), 66, f"the volume comes first: lukshook resize {NAME} +1GiB"),
        (("copy", "/srv/a copy", NAME), 66, f"the volume comes first: lukshook copy {NAME} '/srv/a copy'"),
        (("resize", "+1GiB", "other"), 66, f"configured are: {NAME}"),
    ],
)
def test_swapped_words(volume: CliVolume, words: tuple[str, ...], status: int, hint: str) -> None:
    done = volume.lukshook(*words)
    assert (status, f"hint: {hint}") == (done.returncode, done.stderr.splitlines()[-1].strip())


def test_a_missing_image_of_a_new_volume(volume: CliVolume) -> None:
    done = volume.lukshook("open", NAME)
    assert 69 == done.returncode
    assert f"hint: is the store mounted? to create a new image: lukshook create {NAME}\n" in done.stderr


def test_a_missing_image_of_a_known_volume(volume: CliVolume) -> None:
    """`create` would refuse, and a person who believes the hint would lose the old header backup."""
    volume.state_folder.mkdir(mode=0o700)
    (volume.state_folder / f"{NAME}.header").write_bytes(b"")
    for command in ("open", "check", "verify"):
        done = volume.lukshook(command, NAME)
        assert 69 == done.returncode
        assert "lukshook create" not in done.stdout + done.stderr
        assert f"to put a copy of the image back: {RECOVERY}" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["check", "status"])
def test_no_configuration(tmp_path: Path, command: str) -> None:
    """78, with each place that was looked at, and a page that is there."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    done = run_by(environment, command)
    assert (78, "") == (done.returncode, done.stdout)
    assert re.search(r"no configuration at /etc/\S+\.toml or /\S+/\.config/lukshook/config\.toml\n", done.stderr)
    page = re.search(r"hint: lukshook init .*: (\S+) has a short example, then lukshook create NAME\n", done.stderr)
    assert page is not None
    assert Path(page[1]).read_text().startswith("# Configuration")


def test_a_configuration_that_was_named_is_the_only_place(tmp_path: Path) -> None:
    done = run_by({**os.environ, "LUKSHOOK_CONFIG": f"{tmp_path}/none.toml"}, "check")
    assert f"no configuration at {tmp_path}/none.toml\n" in done.stderr


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_check_of_no_volume(tmp_path: Path, option: tuple[str, ...]) -> None:
    """Nothing was checked, so this is no success."""
    (tmp_path / "empty.toml").touch()
    done = run_by({**os.environ, "LUKSHOOK_CONFIG": f"{tmp_path}/empty.toml"}, "check", *option)
    assert (78, "") == (done.returncode, done.stdout)
    assert f"no volume is configured in {tmp_path}/empty.toml\n" in done.stderr


def run_by(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = (sys.executable, "-m", "lukshook", *words)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_check_says_once_that_the_image_is_missing(volume: CliVolume) -> None:
    assert 1 == volume.lukshook("check", NAME).stdout.count(f"the image {volume.image} is not there")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_is_printed_into_a_file(tmp_path: Path, mode: int) -> None:
    """A shell makes it with the umask, which lets others read it."""
    file = tmp_path / "key"
    file.touch()
    file.chmod(mode)
    with file.open("w") as out:
        done = subprocess.run(KEY_NEW, stdout=out, stderr=subprocess.PIPE, text=True, check=True)
    assert 0o600 == file.stat().st_mode & 0o777
    assert "others could read it" in done.stderr
    assert 45 == file.stat().st_size


def test_a_key_that_is_printed_into_a_private_file_or_a_pipe(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with open(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as out:
        done = subprocess.run(KEY_NEW, stdout=out, stderr=subprocess.PIPE, check=True)
    piped = subprocess.run(KEY_NEW, capture_output=True, check=True)
    assert (b"", b"") == (done.stderr, piped.stderr)

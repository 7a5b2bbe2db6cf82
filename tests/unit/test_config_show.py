"""`lukshook config`: each option with its value, and where that comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lukshook.options import shown
from lukshook.options.table import FILE_OPTIONS, OPTIONS
from support.volume import NAME, CliVolume

TEXT = f'''# A comment: [volumes.{NAME}]
metrics = "/var/lib/m.prom"

[volumes.{NAME}]   # the first
image = "/srv/a.img"
mountpoint = "/mnt/a"
key = [
  "command:pass show secret-word",  # [not.a.table]
  "file:/root/a key",
]
ledger = true
header_backup_at = """\\
[volumes.other]"""
[volumes.{NAME}.drill]
key = "command:gpg --decrypt secret-word"

[volumes."the.other"]
image = "/srv/b.img"
mountpoint = "/mnt/b"
key = "prompt"

[notify.check]
kind = "healthchecks"
url = "https://hc-ping.com/secret-word"

[notify.phone]
kind = "ntfy"
url = "file:/etc/lukshook/url"
token = "secret-word"
'''


@pytest.fixture
def volume(tmp_path: Path) -> CliVolume:
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    made.config.write_text(TEXT)
    return made


def answer(volume: CliVolume, *words: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(volume.do("config", "show", "--json", *words))
    return said


def test_every_option_has_a_value_and_an_origin(volume: CliVolume) -> None:
    said = answer(volume)
    first, second = said["volumes"]

    assert str(volume.config) == said["source"]
    assert [NAME, "the.other"] == [first["name"], second["name"]]
    assert list(OPTIONS) == list(first["options"]) == list(second["options"])
    assert list(FILE_OPTIONS) == list(said["options"])
    assert {"value": "fallocate", "origin": "default", "line": None} == first["options"]["fill"]
    assert {"value": None, "origin": "default", "line": None} == second["options"]["drill"]


def test_a_value_is_found_in_its_line(volume: CliVolume) -> None:
    """Comments, lists over several lines and texts that look like tables do not mislead."""
    rows = TEXT.split("\n")
    said = answer(volume)
    options = {("", name): each for name, each in said["options"].items()}
    options |= {(one["name"], name): each for one in said["volumes"] for name, each in one["options"].items()}

    for (_, name), each in options.items():
        assert each["line"] is None or rows[each["line"] - 1].startswith((name, f"[volumes.{NAME}.{name}]")), name
    assert 2 == options["", "metrics"]["line"]
    assert 11 == options[NAME, "ledger"]["line"]
    assert rows.index('image = "/srv/b.img"') + 1 == options["the.other", "image"]["line"]


def test_no_argument_of_a_key_command_is_shown(volume: CliVolume) -> None:
    for words in ((), ("--json",)):
        said = volume.do("config", "show", *words)
        assert "secret-word" not in said
        assert "command:pass ..." in said
        assert "file:/root/a key" in said
        assert "file:/etc/lukshook/url" in said
        assert 2 == said.count("(not shown)")


def test_the_text_names_lines(volume: CliVolume) -> None:
    said = volume.do("config", "show", NAME)
    assert "  ledger            true  (line 11)\n" in said
    assert '  fill              "fallocate"  (default)\n' in said
    assert "the.other" not in said


def test_a_wrong_configuration_is_not_shown(volume: CliVolume) -> None:
    volume.config.write_text(TEXT.replace("ledger", "siz = 1\nledger"))
    assert 'siz: unknown (did you mean "size"?)' in volume.refusal(78, "config", "show")
    assert "there is no volume other" in volume_without(volume, "siz = 1\n").refusal(66, "config", "show", "other")


def volume_without(volume: CliVolume, line: str) -> CliVolume:
    """The same volume once *line* is gone from its configuration."""
    volume.config.write_text(volume.config.read_text().replace(line, ""))
    return volume


def test_lines_of_a_text_that_ends_in_the_middle() -> None:
    """What was whole until there is known."""
    assert {("a",): 1} == shown.lines('a = 1\nb = [\n"x"')

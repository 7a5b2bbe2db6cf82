"""The JSON schema of the configuration: an editor that uses it takes what lukshook takes, and refuses wrong shapes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from test_config import GOOD, parsed, test_a_bad_value_says_what_a_good_one_is, test_every_option_arrives
from test_config_fuzz import TABLES

from lukshook import config
from lukshook.errors import BadConfiguration
from lukshook.notify import channel
from lukshook.options.names import LONGEST_NAME
from lukshook.options.table import FILE_OPTIONS, OPTIONS

TOP = Path(__file__).parents[2]
KEPT = TOP / "docs/config.schema.json"
EXAMPLES = sorted(TOP.glob("examples/**/config.toml"))
PAGES = [page for page in sorted(TOP.glob("**/*.md")) if "```toml" in page.read_text()]
TAPLO = Path(sys.executable).with_name("taplo")
#: A line that is refused for what only a look at more than its shape shows.
BEYOND_A_SHAPE = (
    *('size = "1000001B"', 'snapshot = "command:"', 'prune_command = ""\nsnapshot = "command:a"'),
    *('copies = {disk = {path = "sftp://-x/a"}}', 'copies = {a = {path = "/a"}, b = {path = "/a"}}'),
    'drill = {sources = ["/home:../etc"]}',
)
BAD_CHANNELS = (
    *(
        "kind = 'smoke'",
        "url = 'https://h/x'",
        "kind = 'ntfy'",
        "kind = 'ntfy'\nurl = 'here'",
        "kind = 'mail'\nto = 'a, b'",
    ),
    *("kind = 'mail'\nto = 'a'\nurl = 'https://h'", "kind = 'mail'\nto = 'a'\nevents = ['now']"),
    *("kind = 'mail'\nto = 'a'\nevents = []", "kind = 'mail'\nto = 'a'\nvolumes = 'offsite'"),
)


def cases_of(test: Any) -> list[str]:
    """The lines that a test in another file is called with."""
    return [case[0] for case in test.pytestmark[0].args[1]]


def of_whole(validator: Any, pattern: str, instance: Any, _: Any) -> Any:
    """As other languages read it: for Python alone, "$" is before a line break as well."""
    if validator.is_type(instance, "string") and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


Validator = jsonschema.validators.extend(jsonschema.Draft7Validator, {"pattern": of_whole})


def faults(table: dict[str, Any]) -> list[str]:
    """What the schema says of a table."""
    return [fault.message for fault in Validator(config.schema()).iter_errors(table)]


def test_it_is_a_schema() -> None:
    Validator.check_schema(config.schema())


@pytest.mark.parametrize("kind", channel.KINDS)
def test_every_channel_is_taken(kind: str) -> None:
    """With all of its options."""
    values = {"url": "file:/etc/url", "token": "t", "template": "{event}", "content_type": "text/plain"}
    values |= {"to": "root", "from": "a@example.org"}
    table: dict[str, Any] = {name: values[name] for part in channel.KINDS[kind][:2] for name in part}
    table = {"kind": kind, "events": ["failure"], "volumes": ["offsite"], "details": True, **table}
    whole = {**tomllib.loads(GOOD), "notify": {"x": table}}
    assert config.parse(whole, Path("/c.toml")).notify
    assert [] == faults(whole)


def test_the_file_that_is_installed_is_up_to_date() -> None:
    """What the first line of a configuration names."""
    assert config.schema() == json.loads(KEPT.read_text()), "run .venv/bin/python docs/man/build.py"


@pytest.mark.parametrize("line", cases_of(test_every_option_arrives))
def test_what_lukshook_takes_is_taken(line: str) -> None:
    assert [] == faults(tomllib.loads(GOOD + line))


@pytest.mark.parametrize(
    "line", [line for line in cases_of(test_a_bad_value_says_what_a_good_one_is) if line not in BEYOND_A_SHAPE]
)
def test_what_lukshook_refuses_for_its_shape_is_refused(line: str) -> None:
    assert [] != faults(tomllib.loads(GOOD + line))


@pytest.mark.parametrize(
    "text",
    [
        *("offsit = 1", "volumes = 1", 'metrics = "here"', "[volumes]\noffsite = 1"),
        *("[volumes.offsite]", f"[volumes.{'x' * (LONGEST_NAME + 1)}]", '[volumes."-rf"]', '[volumes.".x"]'),
        *(f"{GOOD}mountpont = 1", f"{GOOD}mmp = true\nfilesystem = 'xfs'", f"{GOOD}copies = {{a = {{path = '/a'}}}}"),
        *(f"[notify.x]\n{line}\n{GOOD}" for line in BAD_CHANNELS),
        *(GOOD.replace("/srv", "srv"), GOOD.replace("/mnt", "mnt"), GOOD.replace("file:", "fil:")),
        GOOD.replace('"file:/root/key"', "[]"),
    ],
)
def test_a_wrong_shape_is_refused_by_both(text: str) -> None:
    with pytest.raises(BadConfiguration):
        parsed(text)
    assert [] != faults(tomllib.loads(text))


@settings(max_examples=100, deadline=None)
@given(TABLES)
def test_the_schema_refuses_nothing_that_lukshook_takes(table: dict[str, Any]) -> None:
    try:
        config.parse(table, Path("/c.toml"))
    except BadConfiguration:
        return
    assert [] == faults(table)


@pytest.mark.parametrize(("name", "option"), [item for item in OPTIONS.items() if item[1].default is not None])
def test_a_default_is_what_holds_without_the_option(name: str, option: Any) -> None:
    """And it can be written so."""
    more = 'snapshot = "zfs"\n' if name == "keep_snapshots" or name == "snapshot_hard" else ""
    line = f"{name} = {json.dumps(option.default)}"

    assert parsed(GOOD + more).volumes == parsed(GOOD + more + line).volumes


@pytest.mark.parametrize("option", [*OPTIONS.values(), *FILE_OPTIONS.values()])
def test_an_option_is_described_in_a_sentence(option: Any) -> None:
    """An editor shows it beside the option."""
    assert re.fullmatch(r"[A-Z`k].*\.", option.about)


def taplo(*files: Path) -> str:
    """What taplo says of configurations, "" for nothing."""
    argv = [str(TAPLO), "check", "--schema", KEPT.as_uri(), *map(str, files)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_taplo_takes_the_examples(file: Path) -> None:
    """A TOML tool of others, with the file that is installed."""
    assert "" == taplo(file)


def test_taplo_refuses_what_is_wrong_and_reads_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(GOOD + 'size = "500G"\n')
    assert '"500G" does not match' in taplo(file)
    file.write_text(f"#:schema {KEPT}\n{GOOD}mountpont = 1\n")
    done = subprocess.run([TAPLO, "check", file], capture_output=True, text=True, check=False)
    assert "mountpont" in done.stderr
    assert 0 != done.returncode


def whole(part: dict[str, Any]) -> dict[str, Any]:
    """A configuration with what a page shows of one: options of a volume, or tables."""
    table: dict[str, Any] = (
        part if set(part) <= {"volumes", "notify", *FILE_OPTIONS} else {"volumes": {"offsite": part}}
    )
    good = {**tomllib.loads(GOOD)["volumes"]["offsite"], "ledger": True}  # copies need one
    return {**table, "volumes": {name: {**good, **given} for name, given in table.get("volumes", {}).items()}}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_what_the_pages_show_fits(page: Path) -> None:
    """Whole configurations, and parts of them."""
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    tables = [tomllib.loads(block) for block in blocks]
    assert [] == [fault for table in tables if "project" not in table for fault in faults(whole(table))]

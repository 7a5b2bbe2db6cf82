"""What `status` says without a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

from attrs import fields

from lukshook import config
from lukshook.report import check, status
from lukshook.report.check import Finding
from lukshook.report.copies import CopyStatus
from lukshook.report.status import OpenCopy, VolumeStatus
from lukshook.system.secret import Secret
from lukshook.volume.context import Site
from support.fake_runner import FakeRunner


def test_a_damaged_state_file_is_one_volumes_problem(tmp_path: Path) -> None:
    """The others are shown all the same."""
    table = {"image": str(tmp_path / "b.img"), "mountpoint": str(tmp_path / "mnt"), "key": "prompt"}
    volume = config.parse({"volumes": {"offsite": table}}, tmp_path / "c.toml").volumes["offsite"]
    (tmp_path / "offsite.json").write_text("{")

    site = Site(tmp_path, tmp_path, FakeRunner(), lambda volume: Secret(b""), print)

    fact = status.of(volume, site)

    assert (fact.problem or "").startswith(f"{tmp_path}/offsite.json is damaged")
    assert "closed" == fact.state
    assert fact.size is None


PAGE = Path(__file__).parents[2] / "docs/status-json.md"


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the tables under a heading of the page, by field."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {first.strip("`"): [first, *rest] for first, *rest in cells}


def test_each_field_of_the_json_is_described() -> None:
    """In the order in which it is printed, with what makes it null where it can be."""
    described = rows("`lukshook status --json`")
    hints = typing.get_type_hints(VolumeStatus)

    assert [field.name for field in fields(VolumeStatus)] == list(described)
    nullable = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    assert nullable == {name for name, row in described.items() if not row[3].startswith("never")}


def test_each_type_of_the_json_is_described() -> None:
    """As a program meets it."""
    words = {
        "str": {"text"},
        "bool": {"true or false"},
        "int": {"number", "bytes"},
        "float": {"time", "seconds", "share"},
        "tuple[str, ...]": {"list of texts"},
        "tuple[CopyStatus, ...]": {"list of objects"},
        "tuple[OpenCopy, ...]": {"list of objects"},
    }
    for name, row in rows("`lukshook status --json`").items():
        kind = str(VolumeStatus.__annotations__[name]).removesuffix(" | None")
        assert row[1] in words[kind], name


def test_each_field_of_an_open_copy_is_described() -> None:
    """What lies in the list `open_copies`."""
    assert [field.name for field in fields(OpenCopy)] == list(rows("Other copies that are open"))


def test_each_field_of_a_copy_is_described() -> None:
    """In the order in which it is printed."""
    assert [field.name for field in fields(CopyStatus)] == list(rows("Each copy of a volume"))


def test_each_field_of_the_findings_is_described() -> None:
    """Of `check --json`."""
    described = list(rows("`lukshook check --json`"))

    assert ["schema", "name", "exit_status", "findings", *(field.name for field in fields(Finding))] == described


def test_the_pages_schema_is_that_of_the_code() -> None:
    """A program looks at it first."""
    assert f"`schema` is {status.SCHEMA}." in PAGE.read_text()
    assert status.SCHEMA == check.SCHEMA


def test_check_prints_what_the_page_describes(tmp_path: Path) -> None:
    """The exit status is the same with and without --json."""
    (tmp_path / "config.toml").write_text(
        f'[volumes.offsite]\nimage = "{tmp_path}/b.img"\nmountpoint = "{tmp_path}/mnt"\nkey = "prompt"\n'
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LUKSHOOK_CONFIG": str(tmp_path / "config.toml")}
    environment |= {"LUKSHOOK_RUN_DIR": str(tmp_path / "run"), "LUKSHOOK_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "lukshook", "check"]
    plain, machine = (
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        for more in ((), ("--json",))
    )

    (found,) = json.loads(machine.stdout)
    assert ["schema", "name", "exit_status", "findings"] == list(found)
    assert plain.returncode == machine.returncode == found["exit_status"] != 0
    assert [field.name for field in fields(Finding)] == list(found["findings"][0])
    for finding in found["findings"]:
        assert f"  {finding['level']:<8} {finding['text']}\n" in plain.stdout

"""The files around the code say the same as the code, and as each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lukshook
from test_linters import CHECKS

TOP = Path(__file__).parents[2]


def text(name: str) -> str:
    """A file of the project."""
    return (TOP / name).read_text()


def settings() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads(text("pyproject.toml"))


def test_the_build_reads_the_version_from_the_code() -> None:
    """There is one place to change for a release."""
    project = settings()

    assert ["version"] == project["project"]["dynamic"]
    assert f'VERSION = "{lukshook.__version__}"' in text(project["tool"]["hatch"]["version"]["path"])


@pytest.mark.parametrize(("command", "function"), [("lukshook", "main"), ("lukshook-resize", "resize_main")])
def test_each_command_tells_the_version(command: str, function: str) -> None:
    """As the script that pip makes for it would."""
    assert f"lukshook.__main__:{function}" == settings()["project"]["scripts"][command]

    start = f"import sys; from lukshook.__main__ import {function}; sys.argv[1:] = ['--version']; {function}()"
    shown = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)

    assert f"{command}, version {lukshook.__version__}\n" == shown.stdout


def test_asking_for_the_version_imports_no_command() -> None:
    """The answer is a constant, so nothing else has to be read for it."""
    start = (
        "import sys; from lukshook.__main__ import main; sys.argv[1:] = ['--version']; main(); "
        "print([name for name in ('click', 'attrs', 'pluggy', 'lukshook.cli') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)

    assert "[]" == shown.stdout.splitlines()[-1]


def test_the_man_page_names_the_version() -> None:
    """In its first line, from where man(1) shows it at the bottom."""
    assert f'"lukshook {lukshook.__version__}"' in text("docs/man/lukshook.1").splitlines()[0]


def test_the_debian_package_has_the_version() -> None:
    """It is a native package: its version is that of the newest entry of its changelog, and ours."""
    assert text("debian/changelog").startswith(f"lukshook ({lukshook.__version__}) ")


def test_the_table_of_supported_versions_has_this_one() -> None:
    """A person who finds a hole sees whether it will be closed."""
    series = ".".join(lukshook.__version__.split(".")[:2])

    assert f"| {series} | yes |" in text("SECURITY.md")


CI = (".github/workflows/ci.yml", ".forgejo/workflows/ci.yml")


def test_both_forges_run_the_same() -> None:
    """But for the name that each has for a machine with Docker."""
    github, forgejo = (text(name) for name in CI)

    assert github.replace("runs-on: ubuntu-latest", "runs-on: docker") == forgejo


def test_ci_runs_what_a_developer_runs() -> None:
    """The steps beside the fetching are the commands of docs/testing.md."""
    commands = re.findall(r"^      - run: (.*)$", text(CI[0]), re.MULTILINE)

    assert ["tests/run linters unit files", "tests/run --coverage", ".ci/run"] == commands
    assert [] == [command for command in commands if command.split()[0] not in text("docs/testing.md")]


def test_ci_runs_every_python_that_is_promised() -> None:
    """In the classifiers, and the oldest in requires-python and for the linters."""
    project = settings()
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["project"]["classifiers"]))
    (matrix,) = re.findall(r"python: \[(.*)\]", text(CI[0]))

    assert promised == re.findall(r"3\.\d+", matrix)
    assert f">={promised[0]}" == project["project"]["requires-python"]
    assert f"py{promised[0].replace('.', '')}" == project["tool"]["ruff"]["target-version"]
    assert f"Python {promised[0]} to {promised[-1]}" in text("SECURITY.md")


def test_commits_are_checked_as_the_linters_tier_does() -> None:
    """By the same commands, and with what is installed in .venv."""
    entries = re.findall(r"entry: \.venv/bin/python -m (.*)$", text(".pre-commit-config.yaml"), re.MULTILINE)

    assert [" ".join(check) for check in CHECKS] == entries


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "RELEASING.md"])
def test_what_is_named_is_there(document: str) -> None:
    """Files and folders, and the names in them that a contributor is sent to."""
    words = re.findall(r"`([^`\n ]+)`", text(document))
    places = [word for word in words if re.match(r"(plugin|tests|docs|hooks)/", word) and "NAME" not in word]
    names = [word for word in words if re.fullmatch(r"_?[A-Z][A-Z_]+", word)]
    sources = "\n".join(file.read_text() for file in (TOP / "plugin").rglob("*.py"))

    assert places
    assert [] == [place for place in places if not (TOP / place).exists()]
    assert [] == [name for name in names if not re.search(rf"^{name}\b.* = ", sources, re.MULTILINE)]

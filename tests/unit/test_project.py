"""The files around the code say the same as the code, and as each other."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lukshook

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

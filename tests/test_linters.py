"""Style and types, held by the tools that pyproject.toml sets up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
#: Modules of Python with their arguments; .pre-commit-config.yaml has the same.
CHECKS = (
    ("ruff", "check", ".", "tests/run"),
    ("ruff", "format", "--check", ".", "tests/run"),
    ("mypy",),
    ("mypy", "--scripts-are-modules", "tests/run"),
)


@pytest.mark.parametrize("check", CHECKS, ids=" ".join)
def test_linter_finds_nothing(check: tuple[str, ...]) -> None:
    """The whole project is clean; the tool's own report is shown where it is not."""
    result = subprocess.run(
        [sys.executable, "-m", *check],
        check=False,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert 0 == result.returncode, result.stdout

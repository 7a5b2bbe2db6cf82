"""What packaging/name_version.py changes before a release."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

import lukshook

TOP = Path(__file__).parents[2]
PROGRAM = TOP / "packaging/name_version.py"
#: What people read.
READ = ("*.md", "debian/*", "docs/**/*", "examples/**/*", "hooks/**/*", "packaging/*", "completions/*", ".github/**/*")
NOW = datetime(2027, 1, 31, 12, 0, 5, tzinfo=UTC)


@pytest.fixture(name="program")
def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("name_version", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="copy")
def _copy(program: ModuleType, tmp_path: Path) -> Path:
    """The files that it changes, as they are now, with something unreleased."""
    for name, _, _ in program.edits("1.2.3", NOW):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- x\n")
    return tmp_path


def test_every_file_names_the_new_version(program: ModuleType, copy: Path) -> None:
    """And the day, where a file has one; what was there stays."""
    old = (copy / "debian/changelog").read_text()
    program.name_version(copy, "1.2.3", NOW)

    assert (copy / "plugin/lukshook/version.py").read_text().endswith('\nVERSION = "1.2.3"\n')
    assert (copy / "docs/man/lukshook.1").read_text().startswith('.TH LUKSHOOK 1 2027-01-31 "lukshook 1.2.3" "User')
    assert "# Changelog\n\n## 1.2.3 - 2027-01-31\n\n- x\n" == (copy / "CHANGELOG.md").read_text()
    assert "| 1.2 | yes |\n" in (copy / "SECURITY.md").read_text()
    assert "/lukshook-1.2.3-py3-none-any.whl " in (copy / "examples/ansible/hosts.yml").read_text()
    new = (copy / "debian/changelog").read_text()
    assert new.startswith("lukshook (1.2.3) unstable; urgency=medium\n\n  * ")
    assert new.endswith(f">  Sun, 31 Jan 2027 12:00:05 +0000\n\n{old}")
    assert " -- The lukshook authors <maintainers@lukshook.invalid>  Sun, 31 Jan" in new


def test_no_other_file_names_the_version(program: ModuleType) -> None:
    """A reader would meet the old one after the release."""
    named = re.compile(rf"lukshook[- ]\(?{re.escape(lukshook.__version__)}\b")
    files = [file for place in READ for file in TOP.glob(place) if file.is_file() and "__pycache__" not in file.parts]
    found = {str(file.relative_to(TOP)) for file in files if named.search(file.read_text(errors="replace"))}

    written = {name for name, _, _ in program.edits("1.2.3", NOW)}
    written.add("RELEASING.md")  # its examples
    pages = {str(file.relative_to(TOP)) for file in (TOP / "docs/man").glob("lukshook*")}  # docs/man/build.py
    assert {"debian/changelog", "docs/man/lukshook-run.1"} <= found
    assert set() == found - written - pages


def test_what_is_not_known_is_said(program: ModuleType, tmp_path: Path) -> None:
    """To whoever releases: an address that is a placeholder, a page without links."""
    (tmp_path / "debian").mkdir()
    for name in ("debian/control", "debian/changelog"):
        (tmp_path / name).write_text("Maintainer: A <a@lukshook.invalid>\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "lukshook"\n')
    assert ["debian/control", "debian/changelog", "pyproject.toml"] == [
        line.partition(":")[0] for line in program.unfinished(tmp_path)
    ]

    for name in ("debian/control", "debian/changelog"):
        (tmp_path / name).write_text("Maintainer: A <a@example.org>\n")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nSource = "https://example.org"\n')
    assert [] == program.unfinished(tmp_path)


def test_nothing_changes_without_something_unreleased(program: ModuleType, copy: Path) -> None:
    """A release without a line in the changelog is a mistake."""
    (copy / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2027-01-31\n")
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}

    with pytest.raises(ValueError, match="Unreleased"):
        program.name_version(copy, "1.2.3", NOW)

    assert before == {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}


@pytest.mark.parametrize("arguments", [[], ["0.2"], ["v0.2.0"], ["0.2.0", "now"]])
def test_what_is_no_version_is_refused(arguments: list[str]) -> None:
    """Before anything changes."""
    done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)

    assert 64 == done.returncode
    assert "name_version.py 0.2.0" in done.stderr

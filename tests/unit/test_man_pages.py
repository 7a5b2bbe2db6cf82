"""The manual pages say what `--help` and docs/configuration.md say, and man(1) shows them without a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lukshook.cli.main import COMMANDS

TOP = Path(__file__).parents[2]
MAN = TOP / "docs/man"
OVERVIEW = MAN / "lukshook.1"
PAGES = sorted(MAN.glob("*.[1-8]"))
AGAIN = "not as --help and docs/configuration.md have it now; run .venv/bin/python docs/man/build.py"


def text_of(folder: Path) -> dict[str, str]:
    """The text of each page in *folder* by its name, without the overview, which is written by hand."""
    return {page.name: page.read_text() for page in folder.glob("*.[1-8]") if page.name != OVERVIEW.name}


def test_the_pages_are_up_to_date(tmp_path: Path) -> None:
    """A user reads the same in man(1), in --help, and in the documentation."""
    subprocess.run([sys.executable, str(MAN / "build.py"), str(tmp_path)], check=True)
    fresh, kept = text_of(tmp_path), text_of(MAN)

    assert sorted(fresh) == sorted(kept), AGAIN
    assert [] == [name for name in fresh if fresh[name] != kept[name]], AGAIN


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_clean(page: Path) -> None:
    """It looks right wherever it is shown; mandoc reports what other programs may show differently."""
    linted = subprocess.run(["mandoc", "-T", "lint", str(page)], capture_output=True, text=True, check=False)

    assert "" == linted.stdout + linted.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_markdown_is_left(page: Path) -> None:
    """What marks code, links and tables in Markdown means nothing to man(1)."""
    assert not re.search(r"`|\*\*|\]\(|^\| |^#(?!:)", page.read_text(), re.MULTILINE)


def test_every_command_has_a_page_that_the_overview_names() -> None:
    """A user who looks into lukshook(1) finds all others."""
    see_also = OVERVIEW.read_text().partition(".SH SEE ALSO")[2].replace("\\-", "-")
    named = [
        f"{name}.{section}" for name, section in re.findall(r"^\.BR (lukshook\S*) \((\d)\)", see_also, re.MULTILINE)
    ]

    assert {f"lukshook-{name}.1" for name in COMMANDS} | {"lukshook.toml.5"} == set(named)
    assert sorted(named) == sorted(text_of(MAN))


def test_a_wheel_brings_every_page() -> None:
    """To the folder of its section."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    data = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    wanted = {f"docs/man/{page.name}": f"share/man/man{page.suffix[1:]}/{page.name}" for page in PAGES}

    assert wanted == {place: target for place, target in data.items() if "share/man" in target}

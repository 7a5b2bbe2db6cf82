"""Pages that messages name are there, for whoever has installed lukshook in whatever way."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import code_strings, name_of, sources

from lukshook.cli import main
from lukshook.errors import Refused
from lukshook.system import documentation

TOP = Path(__file__).resolve().parents[2]
PAGE = re.compile(r"[\w/.<>-]*\bdocs/[\w/.-]+|[\w/-]+\.md\b")


def named() -> Iterator[tuple[str, str]]:
    """Each page that a string of ours names, with the module; docstrings of commands are shown too."""
    for source in sources():
        for text in code_strings(source):
            yield from ((name_of(source), page) for page in PAGE.findall(text))


def test_each_page_that_a_message_names_is_found() -> None:
    """Under its one name, docs/NAME.md, which is replaced by its place."""
    pages = [(module, page) for module, page in named() if module not in ("hosts", "system.documentation")]

    assert len(pages) > 20
    assert [] == [(module, page) for module, page in pages if documentation.located(page) != str(TOP / page)]


def test_the_help_names_no_page_by_a_path() -> None:
    """It is the same for all, and in the man pages."""
    for file in (TOP / "docs/man").glob("lukshook-*.1"):
        assert [] == re.findall(r"docs/[\w/-]+\.md", file.read_text().replace("\\-", "-").replace("\\&", "")), file.name


def test_the_wheel_brings_the_pages() -> None:
    """To where they are looked for."""
    built = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["hatch"]["build"]

    assert "share/doc/lukshook/docs" == built["targets"]["wheel"]["shared-data"]["docs"]


@pytest.mark.parametrize("package", ["lib/python3.11/site-packages", "lib/python3/dist-packages"])
def test_an_installed_lukshook_names_its_own_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Below the prefix: of an environment, or of Debian."""
    module = tmp_path / package / "lukshook/system/documentation.py"
    page = tmp_path / "share/doc/lukshook/docs/recovery.md"
    for file in (module, page):
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setattr(documentation, "__file__", str(module))

    assert f"repair it: {page}" == documentation.located("repair it: docs/recovery.md")
    shutil.rmtree(tmp_path / "share")
    assert "docs/" not in documentation.located("repair it: docs/recovery.md")
    assert "which is not installed here" in documentation.located("repair it: docs/recovery.md")


def test_paths_of_others_stay_as_they_are() -> None:
    """A user may have a folder of that name."""
    for text in ("/srv/docs/recovery.md", "my-docs/recovery.md", "docs/../recovery.md", "docs/recovery.mdx"):
        assert text == documentation.located(text)


def test_hints_and_warnings_are_shown_with_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    main.report(Refused("it is damaged", hint="repair it: docs/recovery.md"))
    main.warn("it takes long; docs/verify.md")

    shown = capsys.readouterr().err
    assert f"  hint: repair it: {TOP}/docs/recovery.md\n" in shown
    assert f"warning: it takes long; {TOP}/docs/verify.md\n" in shown


def test_each_extra_that_a_hint_names_is_in_its_table() -> None:
    """Who has to install a library finds it under that name, and the name is one that pip knows."""
    (table,) = re.findall(r"^## Extras\n(.*?)^## ", (TOP / "docs/install.md").read_text(), re.MULTILINE | re.DOTALL)
    known = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    hinted = {
        name
        for source in sources()
        for text in code_strings(source)
        for name in re.findall(r"install the extra (\w+)", text)
    }

    assert hinted == set(re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE))
    assert hinted == set(known) - {"docs", "test"}

"""The documents keep up with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest

from lukshook import errors, hookspecs
from lukshook.cli import main
from lukshook.keys import key_sources
from lukshook.layers.engines import ENGINES
from lukshook.options.table import OPTIONS

TOP = Path(__file__).parents[2]


def text(name: str) -> str:
    """A document."""
    return (TOP / name).read_text()


def documents() -> list[Path]:
    """Every document that a person reads."""
    patterns = ("*.md", "docs/**/*.md", "hooks/**/*.md", "examples/**/*.md")
    return [page for pattern in patterns for page in sorted(TOP.glob(pattern))]


def headings(name: str) -> set[str]:
    """The headings of a document, without marks."""
    return {line.lstrip("# ").replace("`", "") for line in text(name).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_its_heading(option: str) -> None:
    """A new option is not there before it is described."""
    assert option in headings("docs/configuration.md")


@pytest.mark.parametrize("form", key_sources.forms())
def test_every_key_source_has_its_heading(form: str) -> None:
    """In the form in which it is written."""
    assert form in headings("docs/keys.md")


@pytest.mark.parametrize("form", key_sources.forms())
def test_every_key_source_is_listed_with_the_option(form: str) -> None:
    """Who reads about the option `key` sees what there is."""
    option = text("docs/configuration.md").partition("### `key`")[2].partition("###")[0]

    assert f"`{form}`" in option


def codes() -> dict[str, int]:
    """Every class of error and its exit status."""
    return {
        name: found.exit_code
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.LukshookError) and found is not errors.LukshookError
    } | {"": errors.SOFT_EXIT_CODE}


def rows_of_codes(name: str) -> list[tuple[str, int]]:
    """The rows of a document's tables that begin with an exit code of a failure: what is in the next cell, the code."""
    return [(cell, int(code)) for code, cell in re.findall(r"^\| (6[4-9]|7\d) \| *`?(.*?)`? *\|", text(name), re.M)]


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    """With the name that the code has for it; a script may rely on each row."""
    assert sorted(codes().items()) == sorted(rows_of_codes("docs/exit-codes.md"))


def test_the_man_page_has_the_same_exit_codes() -> None:
    """The only second list: a man page has to be complete without the other documents."""
    listed = re.findall(r"^(\d+)\|", text("docs/man/lukshook.1"), re.M)

    assert [str(code) for code in sorted({0, *codes().values()})] == listed


def test_no_other_document_lists_exit_codes() -> None:
    """A second table would be wrong one day."""
    table = TOP / "docs/exit-codes.md"
    pages = [page.relative_to(TOP).as_posix() for page in documents() if page != table]

    assert [] == [page for page in pages if rows_of_codes(page)]


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs.Hooks) if not name.startswith("_")])
def test_every_hook_has_its_exact_signature_as_heading(hook: str) -> None:
    """What a plugin's author copies has to be right."""
    arguments = ", ".join(list(inspect.signature(getattr(hookspecs.Hooks, hook)).parameters)[1:])

    assert f"{hook}({arguments})" in headings("docs/plugins.md")


def commands(group: click.Group) -> dict[str, click.Command]:
    """All commands of a group, by name."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize(("name", "command"), commands(main.group).items())
def test_every_command_is_in_the_man_page_and_helps(name: str, command: click.Command) -> None:
    """With each of its options; and its help says what it does in a line of its own."""
    page = text("docs/man/lukshook.1").replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")

    assert re.search(rf"\n{name}\b", page)
    assert command.get_short_help_str(200).endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in page, f"{name} {parameter.opts[0]}"
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_links_lead_somewhere() -> None:
    """Every relative link in a document names a file that is there."""
    broken = [
        f"{document.relative_to(TOP)}: {link}"
        for document in documents()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / link).exists()
    ]

    assert [] == broken


@pytest.mark.parametrize(("column", "engine"), list(enumerate(ENGINES)))
def test_the_picture_of_the_layers_is_that_of_the_code(column: int, engine: str) -> None:
    """From the mount at the top to the image; each engine has a column, and each layer a box that begins with it."""
    picture = next(block for block in text("docs/architecture.md").split("```") if "kernel engine" in block)
    lines = [line[28 * column : 28 * column + 28].strip() for line in picture.splitlines()]
    boxes = re.findall(r"^\+-+\+\n\| (\w+)", "\n".join(lines), re.M)

    assert list(reversed(ENGINES[engine].layers)) == boxes


def test_the_changelog_has_the_version_or_a_head_for_the_next() -> None:
    """Keep a Changelog's form."""
    assert re.search(r"^## (Unreleased|\[?\d)", text("CHANGELOG.md"), re.MULTILINE)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """A page that is listed nowhere is read by nobody."""
    pages = [path.relative_to(TOP).as_posix() for path in (*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"))]

    assert [] == [page for page in pages if f": {page}\n" not in text("mkdocs.yml")]

"""The documents keep up with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest

from lukshook import config, errors, hookspecs
from lukshook.cli import main
from lukshook.keys import key_sources

TOP = Path(__file__).parents[2]


def text(name: str) -> str:
    """A document."""
    return (TOP / name).read_text()


def headings(name: str) -> set[str]:
    """The headings of a document, without marks."""
    return {line.lstrip("# ").replace("`", "") for line in text(name).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("option", config.OPTIONS)
def test_every_option_has_its_heading(option: str) -> None:
    """A new option is not there before it is described."""
    assert option in headings("docs/configuration.md")


@pytest.mark.parametrize("form", key_sources.forms())
def test_every_key_source_has_its_heading(form: str) -> None:
    """In the form in which it is written."""
    assert form in headings("docs/keys.md")


def codes() -> dict[str, int]:
    """Every class of error and its exit status."""
    return {
        name: found.exit_code
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.LukshookError) and found is not errors.LukshookError
    } | {"": errors.SOFT_EXIT_CODE}


@pytest.mark.parametrize(("name", "code"), codes().items())
def test_every_exit_code_is_documented(name: str, code: int) -> None:
    """With the name that the code has for it, and in the man page."""
    row = rf"\| {code} \| {f'`{name}`' if name else ''} ?\|"

    assert re.search(row, text("docs/exit-codes.md"))
    assert f"\n{code}|" in text("docs/man/lukshook.1")


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
        for document in [
            *TOP.glob("*.md"),
            *TOP.glob("docs/**/*.md"),
            *TOP.glob("hooks/**/*.md"),
            *TOP.glob("examples/**/*.md"),
        ]
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / link).exists()
    ]

    assert [] == broken


def test_the_changelog_has_the_version_or_a_head_for_the_next() -> None:
    """Keep a Changelog's form."""
    assert re.search(r"^## (Unreleased|\[?\d)", text("CHANGELOG.md"), re.MULTILINE)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """A page that is listed nowhere is read by nobody."""
    pages = [path.relative_to(TOP).as_posix() for path in (*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"))]

    assert [] == [page for page in pages if f": {page}\n" not in text("mkdocs.yml")]

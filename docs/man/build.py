#!/usr/bin/env python3
"""Write the manual pages into docs/man, one for each command and lukshook.toml(5), and docs/config.schema.json.

    .venv/bin/python docs/man/build.py [FOLDER]

A command's page says what its `--help` says; lukshook.toml(5) is docs/configuration.md. lukshook.1 is written by hand,
and its first line has the date and the version of all pages. Each page is written with the macros of man(7). With a
FOLDER, only the pages are written, to there.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "plugin"))  # this lukshook, not one that is installed

from lukshook import config  # noqa: E402
from lukshook.cli import main  # noqa: E402
from lukshook.cli.resize import standalone_command  # noqa: E402

WIDTH = 80  # bytes of a line; `mandoc -T lint` reports longer ones
ESCAPES = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}  # groff_char(7)
MARKDOWN = re.compile(r"`(?P<code>[^`]+)`|\*\*?(?P<strong>[^*]+)\*\*?|\[(?P<text>[^]]+)\]\((?P<page>[^)#]*)[^)]*\)")
USAGE = re.compile(r"(?P<option>(?<![\w-])--?[a-z][a-z-]*)|(?P<value>\b[A-Z]{2,}\b)")
BULLET = r"\(bu"
SEE_ALSO = ".SH SEE ALSO\n.BR lukshook (1),\n.BR lukshook.toml (5)"
Commands = dict[str, click.Command]  # as they are called, such as "lukshook key add"


def escaped(text: str) -> str:
    """*text*, which roff shows as it is."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def marked(pattern: re.Pattern[str], shown: Callable[[re.Match[str]], str], text: str) -> str:
    """*text* for roff; *shown* gives what stands for each match of *pattern*."""
    pieces, end = [], 0
    for match in pattern.finditer(text):
        pieces += [escaped(text[end : match.start()]), shown(match)]
        end = match.end()
    return "".join([*pieces, escaped(text[end:])])


def inline(text: str) -> str:
    """A piece of Markdown: code is bold, and a link names its page."""

    def shown(match: re.Match[str]) -> str:
        if match["text"]:
            page = f"docs/{match['page']}"
            return escaped(page if match["text"] == match["page"] else f"{match['text']}: {page}")
        return rf"\fB{escaped(match['code'])}\fR" if match["code"] else rf"\fI{escaped(match['strong'])}\fR"

    return marked(MARKDOWN, shown, " ".join(text.split()))


def usage(text: str) -> str:
    """A piece of a command line: options are bold, and what the user chooses is italic."""
    return marked(USAGE, lambda match: rf"\f{'B' if match['option'] else 'I'}{escaped(match[0])}\fR", text)


def wrapped(text: str, join: str = "\n") -> str:
    """*text*, which is escaped, on lines that are short enough and are no requests of roff."""
    lines = textwrap.wrap(text, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return join.join(rf"\&{line}" if line[0] in ".'" else line for line in lines)


def paragraph(text: str) -> str:
    return f".PP\n{wrapped(text)}"


def item(tag: str, text: str) -> str:
    """*text* below *tag*, both escaped."""
    return f".TP\n{wrapped(tag)}\n{wrapped(text)}"


def verbatim(lines: list[str]) -> str:
    """Lines that stay as they are. A backslash at the end of a line joins it with the next one."""
    shown = (wrapped(escaped(line), " \\\n") for line in lines)
    return "\n".join([".PP", ".nf", ".RS 4", *shown, ".RE", ".fi"])


def page(title: str, section: int, manual: str, summary: str, parts: list[str]) -> str:
    """A whole page; no paragraph begins right after a heading."""
    date_and_version = " ".join((HERE / "lukshook.1").read_text().splitlines()[0].split(" ")[3:6])
    head = f".TH {escaped(title.upper())} {section} {date_and_version} {manual}"
    name = wrapped(rf"{escaped(title)} \- {inline(summary)}")
    text = "\n".join([r".\" Written by docs/man/build.py", head, ".nh", ".SH NAME", name, *parts, ""])
    return re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", text, flags=re.MULTILINE)


# Commands


#: What every page says: the options of the group are on one page alone.
GENERAL = [paragraph(inline("Options of lukshook itself, such as `--dry-run`, stand before the command: lukshook(1)."))]


def help_of(command: click.Command) -> list[str]:
    """The paragraphs of its `--help`. One that begins with a line of its own with \\b stays as it is (click)."""
    blocks = re.split(r"\n\n+", inspect.cleandoc(command.help or ""))
    kept = {block: textwrap.dedent(block[2:]).split("\n") for block in blocks if block.startswith("\b\n")}
    return [verbatim(kept[block]) if block in kept else paragraph(inline(block)) for block in blocks]


def records(command: click.Command) -> Iterator[tuple[click.Option, str, str]]:
    """Each option with how it is written and what it does, as `--help` shows them; not `--help` itself."""
    for parameter in command.params:
        record = parameter.get_help_record(click.Context(command))
        if isinstance(parameter, click.Option) and record:
            yield parameter, *record


def options_of(command: click.Command) -> list[str]:
    """Its options, each with what it does."""
    return [item(usage(written), inline(text)) for _, written, text in records(command)]


def synopsis(path: str, command: click.Command) -> str:
    """How *command* is called."""
    words = []
    for option, written, _ in records(command):
        word = re.sub(r"\[(.*)\]", r"\1", written.split(", ")[-1])
        words.append(word if option.required else f"[{word}]")
    for parameter in command.params:
        words += parameter.get_usage_pieces(click.Context(command))
    return item(rf"\fB{escaped(path)}\fR", usage(" ".join(words)))


def command_page(name: str, command: click.Command) -> str:
    """The page of one command, or of a group and all that is in it."""
    members = members_of(name, command)
    parts = [
        *(".SH SYNOPSIS", *(synopsis(path, member) for path, member in members.items())),
        *(described(command) if len(members) == 1 else described_together(command, members)),
        *(".SH EXIT STATUS", paragraph("0 means done. lukshook(1) lists the others.")),
        SEE_ALSO,
    ]
    return page(f"lukshook-{name}", 1, '"User Commands"', summary(command), parts)


def summary(command: click.Command) -> str:
    """The first sentence of its `--help`, as the NAME of a page has it."""
    first = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    return first[0].lower() + re.split(r"\. |\.$", first[1:])[0]


def described(command: click.Command) -> list[str]:
    """A page's parts about its only command."""
    options = options_of(command)
    return [".SH DESCRIPTION", *help_of(command), *GENERAL, *([".SH OPTIONS", *options] if options else [])]


def described_together(command: click.Command, members: Commands) -> list[str]:
    """A page's parts about several commands: what the group says, then each with its options."""
    parts = help_of(command) if isinstance(command, click.Group) else []
    parts = [".SH DESCRIPTION", *parts, *GENERAL, ".SH COMMANDS"]
    for path, member in members.items():
        parts += [f".SS {escaped(path)}", *help_of(member), *options_of(member)]
    return parts


def members_of(name: str, command: click.Command) -> Commands:
    """All that is described on the page of *command*."""
    if isinstance(command, click.Group):
        return {f"lukshook {name} {each}": member for each, member in command.commands.items()}
    standalone: Commands = {"lukshook-resize": standalone_command} if name == "resize" else {}
    return {f"lukshook {name}": command, **standalone}


# The configuration


def table(rows: list[str]) -> Iterator[str]:
    """Each row as an item. Where it has more than two cells, each is named by the head of its column."""
    head, _, *body = ([cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows)
    for tag, *cells in body:
        named = [f"{title.capitalize()}: {cell}." for title, cell in zip(head[1:], cells, strict=True)]
        yield item(inline(tag), inline(" ".join(named) if len(cells) > 1 else cells[0]))


def block(text: str) -> Iterator[str]:
    """What stands between two empty lines of a Markdown file."""
    lines = text.split("\n")
    if text.startswith("#"):
        level, _, title = text.partition(" ")
        yield f".SH {escaped(title.upper())}" if level == "##" else f".SS {inline(title.strip('`'))}"
    elif text.startswith("```"):
        yield verbatim(lines[1:-1])
    elif text.startswith("| "):
        yield from table(lines)
    elif re.match(r"(-|\d+\.) ", text):
        for mark, words in re.findall(r"^(-|\d+\.) (.*(?:\n .*)*)", text, re.MULTILINE):
            yield f".IP {mark.replace('-', BULLET)} 3\n{wrapped(inline(words))}"
    else:
        yield paragraph(inline(text))


def configuration_page(markdown: str) -> str:
    """lukshook.toml(5)."""
    blocks = re.split(r"\n\n+", markdown.strip())[1:]  # without the title
    parts = [".SH DESCRIPTION", *(part for text in blocks for part in block(text))]
    see_also = ".SH SEE ALSO\n.BR lukshook (1),\n.BR lukshook\\-check (1)"
    return page("lukshook.toml", 5, '"File Formats"', "configuration file of lukshook", [*parts, see_also])


def pages() -> dict[str, str]:
    """The text of each page by the name of its file."""
    context = click.Context(main.group)
    found = {name: main.group.get_command(context, name) for name in main.group.list_commands(context)}
    written = {f"lukshook-{name}.1": command_page(name, command) for name, command in found.items() if command}
    return {**written, "lukshook.toml.5": configuration_page((HERE.parent / "configuration.md").read_text())}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else HERE
    for file, text in pages().items():
        (folder / file).write_text(text)
    if folder == HERE:
        (HERE.parent / "config.schema.json").write_text(json.dumps(config.schema(), indent=2) + "\n")

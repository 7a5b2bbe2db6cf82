"""The messages that docs/troubleshooting.md quotes are messages of the source.

The page quotes them in the first column of its tables, several in one cell with "; " between them, and elsewhere in
double quotes. "..." stands for any text.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs/troubleshooting.md"
SOURCE = TOP / "plugin/lukshook"

#: What stands for any text, in a quote and in a string of the source.
ANY = "\0"
#: Messages of the kernel, which the page quotes as well.
SYSTEM = frozenset(os.strerror(number) for number in range(1, 134))


def quotes(page: str) -> Iterator[str]:
    """Every message that a page quotes."""
    for line in page.splitlines():
        if line.startswith("| ") and not re.match(r"\| (message|warning|problem|---)", line):
            yield from line.split(" | ")[0].removeprefix("| ").split("; ")
    prose = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    for found in re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", "", prose)):
        yield from " ".join(found.split()).split("; ")


@cache
def strings() -> tuple[str, ...]:
    """Every string and f-string of the source, with `ANY` for each placeholder."""
    found: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.update(map("".join, product(*map(choices, node.values))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
                found.add(re.sub(r"\{\w*\}", ANY, node.value))
    return tuple(found)


def choices(part: ast.expr) -> tuple[str, ...]:
    """What a part of an f-string can be: itself, either text of `'a' if b else 'c'`, or anything."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    both = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
    return tuple(str(one.value) if isinstance(one, ast.Constant) else ANY for one in both)


def letters(text: str) -> int:
    """How many letters and digits a text has."""
    return sum(map(str.isalnum, text))


def cost(quote: str, string: str) -> float:
    """How many letters of *quote*, as a part of *string*, only a placeholder can stand for; infinity for no match."""
    after: list[float] = [0.0] * (len(string) + 1)
    for wanted in reversed(quote):
        here = [math.inf] * (len(string) + 1)
        here[-1] = after[-1] if wanted == ANY else math.inf
        for at in reversed(range(len(string))):
            if wanted == ANY:
                here[at] = min(after[at], here[at + 1])
            elif string[at] == ANY:
                here[at] = min(here[at + 1], after[at] + wanted.isalnum())
            elif wanted == string[at]:
                here[at] = after[at + 1]
        after = here
    return min(after)


def is_in_source(quote: str) -> bool:
    """Whether a string of the source can be *quote*, or two, one within the other, can be its two parts."""
    pattern = re.sub(r" ?\.\.\.", ANY, quote)
    parts = ((pattern[: gap.start()], pattern[gap.end() :]) for gap in re.finditer("[,:]? ", pattern))
    return is_in_one(pattern) or any(min(map(letters, both)) > 4 and all(map(is_in_one, both)) for both in parts)


@cache
def is_in_one(pattern: str) -> bool:
    """Whether one string of the source can be *pattern*, with a third of its letters at most from placeholders."""
    words, most = re.findall(r"\w+", pattern), letters(pattern) / 3
    return any(
        sum(letters(word) for word in words if word not in string) <= most and cost(pattern, string) <= most
        for string in strings()
    )


@pytest.mark.parametrize("quote", sorted(set(quotes(PAGE.read_text())) - SYSTEM))
def test_every_quoted_message_is_in_the_source(quote: str) -> None:
    """Who looks for a message in the page finds it as it was printed."""
    assert is_in_source(quote)


def test_a_page_is_read_as_it_is_written() -> None:
    """Tables and prose, without what is code."""
    page = '| message | what |\n| --- | --- |\n| the a ... b; is c | d |\n\nSee "e\nf" and `key = "g"`.\n'

    assert list(quotes(page)) == ["the a ... b", "is c", "e f"]


@pytest.mark.parametrize(
    ("quote", "string", "letters_of_placeholders"),
    [
        ("the image ... is gone", f"the image {ANY} is gone: {ANY}", 0),
        ("image a is gone", f"the image {ANY} is gone", 1),
        ("the image ... went", f"the image {ANY} is gone", 4),
        ("an image ...", "the image is gone", math.inf),
        ("a ... d", "a b c d", 0),
    ],
)
def test_a_quote_is_compared_with_a_string(quote: str, string: str, letters_of_placeholders: float) -> None:
    """Where the page has "...", anything may be; where the source has a placeholder, what it shows costs letters."""
    assert cost(quote.replace("...", ANY), string) == letters_of_placeholders

"""Names of others on one line, and which paths are taken."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lukshook.system.text import clipped, fault_of_path, is_one_line, one_line
from support import odd_names

anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(anything)
@example("\udcff\ud800\u2028\x85\n\x1b[2J\u202e")
def test_whatever_it_is_it_becomes_one_printable_line(text: str) -> None:
    """That can be written in UTF-8, and that stays as it is when it is shown once more."""
    shown = one_line(text)

    assert shown.isprintable()
    assert shown == one_line(shown)
    assert len((shown + "x").splitlines()) == 1
    shown.encode()


@given(anything)
def test_what_is_printable_stays(text: str) -> None:
    """Letters of all languages, blanks and backslashes; and of the rest nothing goes without a trace."""
    kept = "".join(character for character in text if character.isprintable())

    assert kept == one_line(kept)
    assert (one_line(text) == text) == text.isprintable()
    assert len(one_line(text)) >= len(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nwarning: b", "a\\nwarning: b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("B\u00fcro \u65e5\u672c", "B\u00fcro \u65e5\u672c"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("a\u2028b\u202ec", "a\\u2028b\\u202ec"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_it_looks_like(text: str, shown: str) -> None:
    """Escapes as in Python; a byte that is no text by its number."""
    assert shown == one_line(text)


@given(anything, st.integers(1, 40))
def test_a_long_text_is_clipped(text: str, most: int) -> None:
    """Before it is escaped, and it says so."""
    assert clipped(text, most) == one_line(text[:most]) + ("..." if len(text) > most else "")


@pytest.mark.parametrize("separator", [s for s in odd_names.SEPARATORS if len(f"a{s}b".splitlines()) > 1], ids=ascii)
def test_no_path_has_a_line_separator(separator: str) -> None:
    """Not one of those that str.splitlines knows."""
    assert not is_one_line(f"/a{separator}b")
    assert fault_of_path(f"/a{separator}b")


@pytest.mark.parametrize("path", ["/srv/B\u00fcro/a b", "/a\\b,c%d#e'f\"g", "/\u65e5\u672c/\u200c", "/a\u00a0b\u3000c"])
def test_paths_that_people_have_are_taken(path: str) -> None:
    """Blanks, other alphabets, what means something to shells and to qemu."""
    assert "" == fault_of_path(path)

"""Text that others wrote, such as names of files and processes and output of tools: as one printable line."""

from __future__ import annotations

#: Python decodes a byte that is no text to one of these (PEP 383).
_BYTES = range(0xDC80, 0xDD00)


def one_line(text: str) -> str:
    """*text* on one line, all of it printable: everything else is written as an escape, such as "\\n" or "\\x1b".

    Letters of any language stay as they are, and so does a backslash. What one_line gives, it does not change.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    if ord(character) in _BYTES:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def clipped(text: str, most: int) -> str:
    """`one_line` of the first *most* characters of *text*, with "..." behind it where there are more."""
    return one_line(text[:most]) + ("..." if len(text) > most else "")

"""Text that others wrote, such as names of files and processes and output of tools: as one printable line."""

from __future__ import annotations

import os
import re

#: Control characters (C0, C1, DEL), the two separators of Unicode that end a line as well, and bytes that are not text.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Bytes in a name: file systems take 255, and what is being written has a longer name until it is whole.
_LONGEST = 240
#: Python decodes a byte that is not text to one of these (PEP 383).
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


def is_one_line(text: str) -> bool:
    """Whether *text* is text, without line breaks and control characters of any kind."""
    return _UNFIT.search(text) is None


def fault_of_path(path: str) -> str:
    """What a path from a configuration or the environment has to be, where *path* is something else; else "".

    The kernel, tools, logs and our own files have it on one line, and a name beside it has to fit as well.
    """
    if not is_one_line(path):
        return "a path on one line, without control characters"
    if len(os.fsencode(path)) > _LONGEST and any(len(os.fsencode(part)) > _LONGEST for part in path.split("/")):
        return f"a path of names with up to {_LONGEST} bytes"
    return ""

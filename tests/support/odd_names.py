"""Names with every byte and separator that a path, a process or a swap file can have; and how the kernel shows them."""

from __future__ import annotations

import os

from hypothesis import strategies as st

#: What ends a line or a word for str.splitlines and str.split beside the line feed, blank and tab.
SEPARATORS = [
    chr(code) for code in range(0x110000) if len(f"a{chr(code)}b".splitlines()) > 1 or not f"{chr(code)}".split()
]
#: A name for each byte but NUL and the slash, and for each separator: alone in the middle, and at both ends.
NAMES = [
    *(b"a%cb" % byte for byte in range(1, 256) if byte != ord("/")),
    *(separator.encode() + b"a" + separator.encode() for separator in SEPARATORS if separator != "\0"),
    b"\xffwarning: forged\n",
    b"\x1b[2J\x1b]0;title\x07",
]

#: Any name of a file.
names = st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"|"))


def mangled(name: bytes, which: bytes = b" \t\n\\") -> bytes:
    """*name* as the kernel writes it into a file of /proc: the bytes *which* as octal numbers (fs/seq_file.c)."""
    return b"".join(b"\\%03o" % byte if byte in which else bytes([byte]) for byte in name)


def text(name: bytes) -> str:
    """*name* as Python has a path."""
    return os.fsdecode(name)

"""A stand-in for a device behind age: a plugin that does what age-plugin-yubikey does, without a YubiKey.

Run as `age-plugin-standin` (C2SP, age-plugin). It "wraps" a file key by turning it round: it protects nothing.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator

NAME = "standin"
_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def recipient() -> str:
    """Who a file is encrypted to."""
    return _bech32(f"age1{NAME}")


def identity() -> str:
    """The line of an identity file that says which device to ask."""
    return _bech32(f"age-plugin-{NAME}-").upper()


def _bech32(prefix: str) -> str:
    """*prefix* and 32 zero bits, as BIP 173 writes them."""
    values = [0] * 7
    expanded = [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values, *[0] * 6]
    check = 1
    for value in expanded:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    check ^= 1
    values += [check >> 5 * (5 - number) & 31 for number in range(6)]
    return f"{prefix}1{''.join(_LETTERS[value] for value in values)}"


def _stanzas() -> Iterator[tuple[list[str], str]]:
    """What age says until it is done."""
    while line := sys.stdin.readline():
        words, body = line.split()[1:], ""
        while True:
            part = sys.stdin.readline().rstrip("\n")
            body += part
            if len(part) < 64:
                break
        if words == ["done"]:
            return
        yield words, body


def _turned(body: str) -> str:
    """The bytes of a body the other way round; age pads no base64."""
    content = base64.b64decode(body + "=" * (-len(body) % 4))
    return base64.b64encode(content[::-1]).decode().rstrip("=")


def _say(words: str, body: str = "") -> None:
    sys.stdout.write(f"-> {words}\n{body}\n")
    sys.stdout.flush()


def main() -> None:
    """One conversation."""
    heard = list(_stanzas())
    if sys.argv[1:] == ["--age-plugin=recipient-v1"]:
        answers = [
            (f"recipient-stanza 0 {NAME}", _turned(body)) for words, body in heard if words[0] == "wrap-file-key"
        ]
    else:
        mine = [body for words, body in heard if words[0] == "recipient-stanza" and words[2] == NAME]
        answers = [("file-key 0", _turned(body)) for body in mine]
    for words, body in answers:
        _say(words, body)
        sys.stdin.readline(), sys.stdin.readline()
    _say("done")


if __name__ == "__main__":
    main()

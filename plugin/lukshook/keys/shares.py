"""`shares` or `shares:FILE...`: the key from as many shares of it as are needed, typed or in files.

A share is 33 words of SLIP-39 (github.com/satoshilabs/slips, slip-0039.md), whose last three find any mistake in
three words. The library's messages repeat words of a share, so none of them is shown.
"""

from __future__ import annotations

import base64
import getpass
import importlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lukshook.errors import Denied, Refused, Unavailable
from lukshook.keys.key_sources import MOST_BYTES, Asking, read_private
from lukshook.system.secret import KEY_BYTES, Secret
from lukshook.system.text import fault_of_path

store = staged = replace = by_hand = None
#: Words of a share of 32 bytes.
WORDS = 33
#: The most shares that SLIP-39 has of a key.
MOST_SHARES = 16
_HOW = "docs/keys.md, Shares: what is typed, and in which order"


def check(argument: str) -> str:
    """Nothing, or files, as a shell splits words."""
    try:
        names = shlex.split(argument)
    except ValueError as error:
        return str(error).lower()
    for name in names:
        fault = fault_of_path(name) or ("" if name.startswith("/") else "an absolute path")
        if fault:
            return f"each file has to be {fault}"
    return ""


def obtain(argument: str, asking: Asking) -> bytes:
    """The key, from the files, or typed on the terminal."""
    names = shlex.split(argument)
    return _in_files(names) if names else _typed(asking)


def shown(argument: str) -> str:
    """The command that combines them, which asks for the shares where no file is named."""
    names = " ".join(map(shlex.quote, shlex.split(argument)))
    return f"cat {names} | lukshook key combine" if names else "lukshook key combine"


def made(key: Secret, needed: int, total: int) -> tuple[str, ...]:
    """*total* shares of *key*, of which any *needed* give it. Raises `Unavailable` without the library, `Refused`."""
    library = _library("shamir_mnemonic")
    (shares,) = library.generate_mnemonics(1, [(needed, total)], bytes(key.reveal()), iteration_exponent=0)
    for some in (shares[:needed], shares[-needed:]):
        if library.combine_mnemonics(some) != key.reveal():
            raise Refused("the shares do not give the key", hint="nothing was changed; is another version installed?")
    return tuple(shares)


def combined(text: str, source: str) -> bytes:
    """The key, in base64, from all shares in *text*, such as recovery sheets. Raises `Denied`, `Unavailable`."""
    collected = _Collected()
    for words in _shares_in(text, collected.known):
        fault = collected.add(words)
        if fault:
            raise Denied(f"share {collected.count + 1} from {source} is not usable: {fault}", hint=_HOW)
    if not collected.is_complete():
        raise Denied(
            f"not enough shares from {source}: {collected.count} of {collected.needed or '2 or more'}", hint=_HOW
        )
    return collected.key()


def _in_files(names: list[str]) -> bytes:
    hint = "is its disk plugged in?"
    texts = [read_private("the file with a share,", name, hint, MOST_BYTES * 4) for name in names]
    return combined("\n\n".join(text.decode(errors="replace") for text in texts), ", ".join(names))


class _Collected:
    """The shares so far."""

    def __init__(self) -> None:
        self._state = _library("shamir_mnemonic.recovery").RecoveryState()
        self._share = _library("shamir_mnemonic").Share
        self._wrong = _library("shamir_mnemonic").MnemonicError
        self._words = frozenset(_library("shamir_mnemonic.wordlist").WORDLIST)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self._state.groups.values()))

    @property
    def needed(self) -> int:
        """How many are needed; 0 as long as that is not known."""
        return self._state.last_share.member_threshold if self._state.last_share else 0

    def known(self, word: str) -> bool:
        """Whether a share can have that word."""
        return word in self._words

    def add(self, words: Iterable[str]) -> str:
        """Take in a share. What is wrong with it, or ""."""
        try:
            share = self._share.from_mnemonic(" ".join(words))
        except self._wrong:
            return "a word is wrong or missing, or two are swapped"
        if (share.group_count, len(share.value)) != (1, KEY_BYTES):
            return "lukshook did not make it"
        if not self._state.matches(share):
            return "it is a share of a different key"
        if share not in self._state:  # the same once more is no mistake
            self._state.add_share(share)
        return ""

    def is_complete(self) -> bool:
        """Whether they give the key."""
        complete: bool = self._state.is_complete()
        return complete

    def key(self) -> bytes:
        """The key, in base64. Raises `Denied`."""
        try:
            return base64.b64encode(self._state.recover(b""))
        except self._wrong:
            raise Denied("the shares do not fit together", hint="are they all of the same split?") from None


def _shares_in(text: str, known: Callable[[str], bool]) -> Iterator[list[str]]:
    """The words of each share: lines that have nothing but such words and numbers; an empty line ends a share."""
    share: list[str] = []
    for line in [*text.lower().splitlines(), ""]:
        words = [word for word in line.split() if not re.fullmatch(r"\d+[.:]?", word)]
        if words and all(map(known, words)):
            share += words
        elif share:
            yield share
            share = []
        while len(share) >= WORDS:
            yield share[:WORDS]
            share = share[WORDS:]


def _typed(asking: Asking) -> bytes:
    """Ask on /dev/tty without echo, for one share after the other."""
    try:
        with Path("/dev/tty").open():
            pass
    except OSError as error:
        raise Denied(
            "cannot ask for the shares of a key: there is no terminal", hint="name files instead: shares:FILE FILE"
        ) from error
    collected, told = _Collected(), ""
    while not collected.is_complete():
        number = f"Share {collected.count + 1}" + (f" of {collected.needed}" if collected.needed else "")
        before = collected.count
        fault = collected.add(_typed_share(told + number, asking, collected.known))
        if not fault and collected.count == before:
            fault = "that share was there already"
        told = f"{fault}. Once more, from its first word:\n" if fault else ""
    return collected.key()


def _typed_share(title: str, asking: Asking, known: Callable[[str], bool]) -> list[str]:
    """The words of a share, in one line or in several. Raises `Denied` if nothing is entered."""
    words: list[str] = []
    what = f"{title} of volume {asking.volume}" if asking.volume else title
    while len(words) < WORDS:
        typed = _line(f"{what} [from word {len(words) + 1} of {WORDS}]: ").lower().split()
        typed = [word for word in typed if not re.fullmatch(r"\d+[.:]?", word)]
        right = next((number for number, word in enumerate(typed) if not known(word)), len(typed))
        words += typed[:right]
        wrong = f"word {len(words) + 1} is in no share. Go on from it:\n" if right < len(typed) else ""
        what = f"{wrong}{what.rpartition(chr(10))[2]}"
    return words


def _line(prompt: str) -> str:
    try:
        typed = getpass.getpass(prompt)
    except (EOFError, UnicodeError):  # the text of a UnicodeError has what was typed
        typed = ""
    if not typed:
        raise Denied("no share was entered", hint=_HOW)
    return typed


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(
            "shares of a key need the shamir-mnemonic library",
            hint="install the extra shares: docs/install.md, Extras",
        ) from error

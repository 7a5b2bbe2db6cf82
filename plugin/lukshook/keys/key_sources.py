"""Where a key comes from: one file per source, the same functions in each.

`obtain(argument, asking)` gives what the source holds, in base64; `shown(argument)` is the line a person would type
to see it; `store(argument, text)` keeps a new key there and is None where the source cannot take one.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from attrs import frozen

from lukshook.errors import BadConfiguration, Denied, Exists, LukshookError, Unavailable
from lukshook.system import files, ownership
from lukshook.system.secret import KEY_BYTES, Secret, decode_key
from lukshook.system.text import is_one_line

#: The sources, and what the argument of each is called; "" for those that take none, in brackets if it may be left out.
SOURCES = {
    "file": "PATH",
    "age": "FILE",
    "command": "ARGV",
    "fd": "N",
    "stdin": "",
    "credential": "NAME",
    "container": "NAME",
    "env": "NAME",
    "keyring": "SERVICE/USER",
    "prompt": "",
    "shares": "[FILE...]",
}
#: More than any source's text of a key has; what is longer is not a key.
MOST_BYTES = 4096
_WORD = re.compile(r"[a-z-]{1,20}")
_READ_ONCE = ("stdin", "fd")


@frozen(eq=False, repr=False)
class Asking:
    """What a source may look at: the caller's environment, the volume's name for a prompt, a way to warn."""

    environment: Mapping[str, str]
    volume: str
    warn: Callable[[str], None]


class ByHand(Protocol):
    """What a person does in a shell to keep a key in a source; dry runs print it."""

    def is_missing(self, argument: str) -> bool:
        """Whether there is nothing yet, so that `store` would make it."""
        ...

    def making(self, line: str, argument: str) -> str:
        """The command that keeps there what *line* prints."""
        ...

    def kept(self, argument: str) -> str:
        """The argument for the old key while `replacing` takes its place."""
        ...

    def replacing(self, argument: str, fresh: str) -> list[str]:
        """The commands that put the key from *fresh* there, and the old one where `kept` says."""
        ...


class Source(Protocol):
    """The shape of a source file. What a source that cannot keep a key has not is None.

    `store` keeps a new key; `staged` names the place beside it where the next key waits, and `replace` moves it from
    there in place of the old one, at once; without one waiting it does nothing. `by_hand` does these in a shell.
    """

    store: Callable[[str, str], None] | None
    staged: Callable[[str], str] | None
    replace: Callable[[str], None] | None
    by_hand: ByHand | None

    def check(self, argument: str) -> str:
        """What is wrong with *argument*, or ""."""
        ...

    def obtain(self, argument: str, asking: Asking) -> bytes | bytearray:
        """The key in base64. Raises `Denied` or `Unavailable`."""
        ...

    def shown(self, argument: str) -> str:
        """The command line that prints the key."""
        ...


def parse(text: str) -> tuple[Source, str]:
    """The source and argument of "file:/root/key" and the like.

    Raises `BadConfiguration`, which shows nothing but the source's name: what is written there by mistake may be a key.
    """
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        what = f'"{name}"' if _WORD.fullmatch(name) else "what is written there"
        raise BadConfiguration(f"{what} is not a key source", hint="one of: " + ", ".join(forms()))
    source = source_named(name)
    fault = source.check(argument) if is_one_line(argument) else "it has to be on one line, without control characters"
    if fault:
        raise BadConfiguration(
            f"the key source {name} cannot be used: {fault}", hint="docs/keys.md describes every source"
        )
    return source, argument


def source_named(name: str) -> Source:
    """The source of that name, one of `SOURCES`."""
    return cast(Source, importlib.import_module(f"lukshook.keys.{name}"))


def forms() -> tuple[str, ...]:
    """How each source is written."""
    return tuple(f"{name}{_with_colon(argument)}" for name, argument in SOURCES.items())


def _with_colon(argument: str) -> str:
    if not argument:
        return ""
    return f"[:{argument[1:]}" if argument.startswith("[") else f":{argument}"


def obtain(sources: Sequence[str], asking: Asking) -> Secret:
    """The key from the first source that has one. Raises what the only source raised, or `Denied` with all reasons."""
    failures: list[LukshookError] = []
    for text in sources:
        source, argument = parse(text)
        try:
            return _decoded(source.obtain(argument, asking), name_of(text))
        except LukshookError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise Denied(
        "no key source has a usable key: " + "; ".join(error.message for error in failures),
        hint="they were tried in the order of the configuration",
    )


def _decoded(raw: bytes | bytearray, name: str) -> Secret:
    """The key; what it was decoded from is overwritten where it can be."""
    try:
        return decode_key(raw, name)
    finally:
        if isinstance(raw, bytearray):
            raw[:] = bytes(len(raw))


def name_of(text: str) -> str:
    """How a source is named in messages: without the arguments of a command."""
    return text.split(" ", maxsplit=1)[0]


def is_read_once(text: str) -> bool:
    """Whether a second reading of this source finds nothing: what is piped in is read to its end."""
    return text.partition(":")[0] in _READ_ONCE


def shown(sources: Sequence[str]) -> str:
    """The pipeline that gives the decoded key, for dry runs and the recovery sheet."""
    source, argument = parse(sources[0])
    return f"{source.shown(argument)} | base64 -d"


def is_to_be_made(text: str) -> bool:
    """Whether there is nothing in a source yet, and a shell can make it."""
    source, argument = parse(text)
    return source.by_hand is not None and source.by_hand.is_missing(argument)


def making(text: str) -> str:
    """The line that makes a new key: in the source, where a shell can do that, else on standard output."""
    line = f"head --bytes={KEY_BYTES} /dev/urandom | base64"
    source, argument = parse(text) if text else (None, "")
    return line if source is None or source.by_hand is None else source.by_hand.making(line, argument)


def no_argument(argument: str) -> str:
    """The `check` of a source without argument."""
    return "it takes no argument" if argument else ""


def is_file_name(argument: str) -> bool:
    """Whether *argument* can be the name of a credential or secret: one plain name of a file."""
    return re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,254}", argument) is not None


def read_private(what: str, path: str, hint: str, most: int = MOST_BYTES) -> bytes:
    """What is in a file that only its owner can read. *what*: it, in words; *hint*: what to do where it is not there.

    Raises `Unavailable`, `Denied`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Unavailable(f"{what} {path} is not there", hint=hint) from error
    except OSError as error:
        raise Denied(
            f"{what} {path} cannot be read: {error.strerror}", hint="it has to belong to the user who runs lukshook"
        ) from error
    try:
        ownership.check_private(f"{what} {path}", path, os.fstat(descriptor))
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def write_new(path: str, content: bytes) -> None:
    """Make a key file, mode 0600, whole or not at all, and never over an old one. Raises `Exists`, `Unavailable`."""
    try:
        files.write_whole(Path(path), content, durable=True, replace=False)
    except FileExistsError as error:
        raise Exists(f"the key file {path} already exists", hint="move it away, or name another") from error
    except OSError as error:
        raise Unavailable(
            f"the key file {path} cannot be written: {error.strerror}",
            hint="does its folder exist, and is it writable?",
        ) from error


def put_in_place(fresh: str, path: str) -> None:
    """Rename *fresh* over a key file, so that it outlives a power cut, if it is there. Raises `Unavailable`."""
    if not Path(fresh).exists():
        return
    try:
        files.rename(Path(fresh), Path(path))
    except OSError as error:
        raise Unavailable(
            f"the key file {path} cannot be replaced: {error.strerror}",
            hint="does its folder exist, and is it writable?",
        ) from error


def drain(descriptor: int, source: str, most: int = MOST_BYTES) -> bytearray:
    """All that comes from a descriptor, up to *most* bytes. Raises `Denied`."""
    read = bytearray()
    try:
        while len(read) < most and (part := os.read(descriptor, most)):
            read += part
    except OSError as error:
        hint = "is it open and readable in this process?"
        raise Denied(f"no key from {source}: {error.strerror}", hint=hint) from error
    return read

"""How values are written, each kind with what reads it: a value that does not fit raises ValueError with what would."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from attrs import frozen

from lukshook import size
from lukshook.keys import key_sources
from lukshook.options import reader
from lukshook.options.names import is_name
from lukshook.options.reader import Reader, Schema, Shape, shaped
from lukshook.snapshots import kinds as snapshot_kinds
from lukshook.system.text import fault_of_path, is_one_line

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:"
_CEPH_USER = r"[A-Za-z0-9_][A-Za-z0-9_.@-]*"
_DAY = 86400.0
#: Snapshots that are kept; each is looked at when one is taken.
_MOST_KEPT = 1000
#: Files that a drill reads; they are remembered until then.
_MOST_FILES = 1_000_000
_ONE_LINE = r"[^\x00-\x1f\x7f-\x9f]"
_MODE = "0?7[0145][0145]"
_SECONDS = r"([0-9]{1,6})\s?s"
_DURATION = r"([0-9]{1,6})\s?(m|h|d|w)"
_PERCENT = r"([0-9]{1,2}(?:\.[0-9])?)%"


@frozen(repr=False)
class Grow:
    """Growing by itself: *when_free_below* percent are free, *by* bytes, never over *up_to* bytes."""

    when_free_below: float
    by: int
    up_to: int


@frozen(repr=False)
class Drill:
    """What a drill of a volume does where the command line does not say.

    *image*: the copy that is drilled, None for the volume's own image. *key*: the key sources that have to open it,
    empty for all of the volume. *files*: how many files are read. *sources*: folders of this machine and what they were
    backed up to, as paths within the volume. *check*: a command to which the folder is added, or put in place of {}.
    *newer_than*: seconds that the last write to the image may be old, None for any.
    """

    image: Path | None = None
    key: tuple[str, ...] = ()
    files: int = 100
    sources: tuple[tuple[Path, str], ...] = ()
    check: tuple[str, ...] = ()
    newer_than: float | None = None


@frozen(repr=False)
class Copy:
    """A copy of the image elsewhere, at *path*, that is brought up to date after each close. *mode*: "soft" or "hard",
    what a copy that fails means for the backup: a warning, or a failure.
    """

    name: str
    path: str
    mode: str


@shaped(lambda: reader.text(f"/{_ONE_LINE}*"))
def path(value: Any) -> Path:
    """An absolute path."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError('an absolute path, such as "/srv/backup.img"')
    fault = fault_of_path(value)
    if fault:
        raise ValueError(fault)
    return Path("/" + os.path.normpath(value).lstrip("/"))  # POSIX lets two slashes in front stand


@shaped(lambda: reader.text(f"(/|{_SCHEME}){_ONE_LINE}*"))
def image(value: Any) -> Any:
    """A path, or the image at a remote place that a URL names."""
    if not isinstance(value, str) or not re.match(_SCHEME, value):
        return path(value)
    from lukshook.store.remote import kinds  # noqa: PLC0415 - only for remote images

    return kinds.parse(value)


@shaped(path.shape)
def mountpoint(value: Any) -> Path:
    """The kernel knows mounts by paths without links, so the folders above are resolved; the folder itself is not."""
    found = path(value)
    folder, above = os.path.realpath(found.parent), os.fspath(found.parent)
    return found if folder == above else path(f"{folder}/{found.name}")  # a name it leads to counts too


@shaped(lambda: reader.text(_MODE))
def mode(value: Any) -> int:
    """Permissions that let only the owner write: a user who can write there can replace the folder `data`."""
    if not isinstance(value, str) or not re.fullmatch(_MODE, value):
        raise ValueError(
            'a mode in quotes that gives the owner full access and others no write access, such as "0700" or "0755"'
        )
    return int(value, 8)


@shaped(lambda: {"type": "boolean"})
def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


@shaped(lambda: reader.text(rf"\s*{size.pattern()}\s*"))
def image_size(value: Any) -> str:
    """A size that an image can have, as it is written."""
    if not isinstance(value, str):
        raise ValueError('a size in quotes, such as "500GiB"')
    size.parse_aligned(value)
    return value


def choice(choices: Collection[str]) -> Reader[str]:
    """One of several words."""

    def chosen(value: Any) -> str:
        if value not in tuple(choices):  # in a mapping, a list cannot be looked up
            raise ValueError("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return Reader(chosen, lambda: {"enum": list(choices)})


def _one_or_more(one: Shape) -> Shape:
    return lambda: {"anyOf": [one(), reader.several(one())]}


def _source() -> Schema:
    written = (
        name + (f"(:{_ONE_LINE}+)?" if argument.startswith("[") else f":{_ONE_LINE}+" if argument else "")
        for name, argument in key_sources.SOURCES.items()
    )
    return reader.text("|".join(written))


@shaped(_one_or_more(_source))
def sources(value: Any) -> tuple[str, ...]:
    """One or more key sources."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(s, str) for s in given):
        raise ValueError('a key source such as "file:/root/offsite.key", or a list of them')
    for source in given:
        key_sources.parse(source)
    return tuple(given)


@shaped(lambda: reader.text(f"{_SECONDS}|{_DURATION}"))
def patience(value: Any) -> float:
    """A time that may be seconds."""
    match = re.fullmatch(_SECONDS, value) if isinstance(value, str) else None
    return float(match[1]) if match else duration(value)


@shaped(lambda: reader.text(_DURATION))
def duration(value: Any) -> float:
    """Seconds of a time such as "7d". Raises ValueError."""
    match = re.fullmatch(_DURATION, value) if isinstance(value, str) else None
    if not match:
        raise ValueError('a time such as "12h", "7d" or "2w"')
    return int(match[1]) * {"m": 60.0, "h": 3600.0, "d": _DAY, "w": 7 * _DAY}[match[2]]


@shaped(lambda: reader.text(_PERCENT))
def percent(value: Any) -> float:
    """A percentage."""
    match = re.fullmatch(_PERCENT, value) if isinstance(value, str) else None
    if not match:
        raise ValueError('a percentage such as "10%"')
    return float(match[1])


_GROW: dict[str, Reader[Any]] = {"when_free_below": percent, "by": image_size, "up_to": image_size}


@shaped(lambda: reader.table(_GROW, needed=tuple(_GROW)))
def grow(value: Any) -> Grow:
    """When, by how much and how far a volume grows."""
    if not isinstance(value, dict) or set(value) != set(_GROW):
        raise ValueError('{when_free_below = "10%", by = "50GiB", up_to = "1TiB"}')
    by, up_to = (size.parse(image_size(value[name])) for name in ("by", "up_to"))
    return Grow(percent(value["when_free_below"]), by, up_to)


def _kinds_of_snapshot() -> Schema:
    return reader.text("|".join(form.replace(":ARGV", f":{_ONE_LINE}+") for form in snapshot_kinds.forms()))


@shaped(_kinds_of_snapshot)
def snapshot(value: Any) -> tuple[str, str]:
    """The kind of snapshot and its argument."""
    return snapshot_kinds.parse(value if isinstance(value, str) else "")


@shaped(lambda: reader.number(1, _MOST_KEPT))
def count(value: Any) -> int:
    """How many snapshots."""
    if type(value) is not int or not 1 <= value <= _MOST_KEPT:
        raise ValueError(f"a number from 1 to {_MOST_KEPT}")
    return value


@shaped(lambda: reader.text(f"{_ONE_LINE}+"))
def argv(value: Any) -> tuple[str, ...]:
    """A command, as a shell splits it."""
    try:
        words = shlex.split(value) if isinstance(value, str) and is_one_line(value) else []
    except ValueError:
        words = []
    if not words:
        raise ValueError('a command such as "/usr/local/bin/remove-copy", which is not run by a shell')
    return tuple(words)


@shaped(_one_or_more(path.shape))
def patterns(value: Any) -> tuple[str, ...]:
    """One or more paths with wildcards."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ValueError('a path with wildcards such as "/mnt/store/.zfs/snapshot/*/backup.img", or a list of them')
    return tuple(os.fspath(path(one)) for one in given)


@shaped(lambda: reader.text(f"{_ONE_LINE}+"))
def line(value: Any) -> str:
    """Any text on one line."""
    if not isinstance(value, str) or not value or not is_one_line(value):
        raise ValueError("a text on one line")
    return value


@shaped(lambda: reader.text(_CEPH_USER))
def ceph_user(value: Any) -> str:
    """The name of a user of Ceph; all that clients have begin with "client."."""
    if not isinstance(value, str) or not re.fullmatch(_CEPH_USER, value) or value.startswith("client."):
        raise ValueError('the name of a user of Ceph without "client." in front, such as "host1"')
    return value


@shaped(lambda: reader.number(1, _MOST_FILES))
def files(value: Any) -> int:
    """How many files."""
    if type(value) is not int or not 1 <= value <= _MOST_FILES:
        raise ValueError(f"a number from 1 to {_MOST_FILES}")
    return value


@shaped(lambda: reader.several({"type": "string"}))
def words(value: Any) -> tuple[str, ...]:
    """A command, word by word."""
    if not isinstance(value, list) or not value or not all(isinstance(w, str) and "\0" not in w for w in value):
        raise ValueError('a list of words, such as ["borg", "check", "{}"]')
    return tuple(value)


@shaped(lambda: reader.text(f"/{_ONE_LINE}*:{_ONE_LINE}+"))
def source_of(text: Any) -> tuple[Path, str]:
    """A folder of this machine and the path within the volume that it is backed up to. Raises ValueError."""
    folder, colon, inside = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    within = os.path.normpath(inside.strip("/"))
    if not colon or not inside or within.startswith("..") or fault_of_path(within):
        raise ValueError('a folder and its place within the volume, such as "/home:data/home"')
    return path(folder), within


@shaped(lambda: {"type": "array", "items": source_of.shape()})
def all_sources(value: Any) -> tuple[tuple[Path, str], ...]:
    """Folders and their places."""
    if not isinstance(value, list):
        raise ValueError('a list such as ["/home:data/home"]')
    return tuple(map(source_of, value))


#: What the table `drill` of a volume can have, and what reads it.
DRILL: dict[str, Reader[Any]] = {
    "image": path,
    "key": sources,
    "files": files,
    "sources": all_sources,
    "check": words,
    "newer_than": duration,
}


@shaped(lambda: reader.table(DRILL))
def drill(value: Any) -> Drill:
    """What a drill does."""
    if not isinstance(value, dict) or not set(value) <= set(DRILL):
        raise ValueError("a table with some of: " + ", ".join(DRILL))
    return Drill(**{name: _of_drill(name, given) for name, given in value.items()})


def _of_drill(name: str, value: Any) -> Any:
    try:
        return DRILL[name](value)
    except ValueError as error:
        raise ValueError(f"right: {name} has to be {error}") from error


@shaped(lambda: reader.text(f"(/|{_SCHEME}){_ONE_LINE}*"))
def place(value: Any) -> str:
    """A path, or a URL."""
    if isinstance(value, str) and re.match(_SCHEME, value):
        from lukshook.replica.targets import store_of  # noqa: PLC0415 - few copies lie behind a URL

        store_of(value)
        return value
    return str(path(value))


#: What a copy has.
_COPY: dict[str, Reader[str]] = {"path": place, "mode": choice(("soft", "hard"))}


@shaped(lambda: {**reader.by_name(reader.table(_COPY, needed=("path",))), "minProperties": 1})
def copies(value: Any) -> tuple[Copy, ...]:
    """Copies by name."""
    if not isinstance(value, dict) or not value or not all(map(_is_copy, value.values())):
        raise ValueError('one or more copies by name, such as: disk = {path = "/mnt/disk/offsite.img", mode = "soft"}')
    wrong = next((name for name in value if not is_name(name)), None)
    if wrong is not None:
        raise ValueError("copies by names of letters, digits, dots, dashes and underscores")
    found = tuple(Copy(name, place(one["path"]), _COPY["mode"](one.get("mode", "soft"))) for name, one in value.items())
    if len({copy.path for copy in found}) < len(found):
        raise ValueError("copies at different paths")
    return found


def _is_copy(value: Any) -> bool:
    return isinstance(value, dict) and "path" in value and set(value) <= set(_COPY)

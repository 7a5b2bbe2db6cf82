"""The configuration: TOML to frozen `Volume` values. Reports all problems at once, each with its location."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, field, frozen

from lukshook import size
from lukshook.errors import BadConfiguration, LukshookError, UnknownVolume
from lukshook.filesystems.kinds import DEFAULT, KINDS
from lukshook.keys import key_sources
from lukshook.layers import dmcrypt, engines, era, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.layers.base import COPY
from lukshook.snapshots import kinds as snapshot_kinds
from lukshook.snapshots.kind import KEPT, Policy
from lukshook.system import files, ownership
from lukshook.system.digest import sha256
from lukshook.system.text import fault_of_path, is_one_line

if TYPE_CHECKING:
    from lukshook.notify.channel import Channel

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LONGEST_NAME = dmcrypt.longest_volume()
#: Letters of a copy's label that say which copy it is.
_COPY_LETTERS = 8
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_DAY = 86400.0
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
#: Where remote images appear if nobody says otherwise.
_RUN_FOLDER = Path("/run/lukshook")
#: Bytes of a configuration; one with 10,000 volumes has less.
_MOST_BYTES = 4 * 1024 * 1024
_WRITTEN_LIKE = "docs/configuration.md has a short example; it is written in UTF-8"
#: Snapshots that are kept; each is looked at when one is taken.
_MOST_KEPT = 1000
#: Files that a drill reads; they are remembered until then.
_MOST_FILES = 1_000_000
#: What a message shows of a wrong name or value.
_MOST_SHOWN = 60


@frozen
class Grow:
    """Growing by itself: *when_free_below* percent are free, *by* bytes, never over *up_to* bytes."""

    when_free_below: float
    by: int
    up_to: int


@frozen
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


@frozen
class Copy:
    """A copy of the image elsewhere, at *path*, that is brought up to date after each close. *mode*: "soft" or "hard",
    what a copy that fails means for the backup: a warning, or a failure.
    """

    name: str
    path: str
    mode: str


@frozen
class Volume:
    """One configured volume. A layer finds its own part under its own name.

    *label*: names its record and what the kernel shows of it; another copy of the volume has a label of its own
    (`copy_at`), so that both can be open.
    """

    name: str
    image: image.Spec
    mount: mount.Spec
    filesystem: filesystem.Spec
    dmcrypt: dmcrypt.Spec
    qemu: qemu.Spec
    fuse2fs: fuse2fs.Spec
    key: tuple[str, ...]
    loop: loop.Spec = field(factory=loop.Spec)
    era: era.Spec = field(factory=era.Spec)
    engine: str = "auto"
    soft: bool = False
    stale_after: float = 7 * _DAY
    read_only: bool = False
    space: str = "refuse"
    ledger: bool = False
    drill: Drill = field(factory=Drill)
    header_backup_at: str = ""
    copies: tuple[Copy, ...] = ()
    grow: Grow | None = None
    snapshot: Policy | None = None
    versions: tuple[str, ...] = ()
    label: str = field(default=Factory(lambda self: self.name, takes_self=True))

    @property
    def mountpoint(self) -> Path:
        """The folder where the volume appears."""
        return self.mount.mountpoint

    def trimming(self) -> Volume:
        """The same with its layers letting discards through."""
        return evolve(self, dmcrypt=evolve(self.dmcrypt, discard=True), era=evolve(self.era, discard=True))

    @property
    def data(self) -> Path:
        """The folder inside the volume that backups are pointed to: it does not exist while the volume is closed."""
        return self.mount.mountpoint / DATA_FOLDER

    @property
    def label_of_copies(self) -> str:
        """How the labels of this volume's copies begin. No volume can have such a name."""
        return f"{self.name[: LONGEST_NAME - _COPY_LETTERS - 1]}{COPY}"

    def copy_at(self, mountpoint: Path, image: Path) -> Volume:
        """Another copy of this volume: what is in *image*, read-only, to be mounted at *mountpoint*."""
        place = _mountpoint(os.fspath(mountpoint))
        which = sha256(os.fsencode(f"{self.name}/{place}")).hexdigest()[:_COPY_LETTERS]
        written = _path(os.fspath(mountpoint))
        return evolve(
            self,
            label=self.label_of_copies + which,
            image=evolve(self.image, image=image, remote=self.image.remote if image == self.image.image else None),
            mount=evolve(self.mount, mountpoint=place, as_written=written, mode=None),
            fuse2fs=evolve(self.fuse2fs, mountpoint=place, as_written=written, mode=None),
            read_only=True,
            grow=None,
        )


#: Made by `create`. A backup tool that is pointed here fails instead of filling the bare mount point.
DATA_FOLDER = "data"
#: Permissions of a volume's root folder where the configuration names none.
_DEFAULT_MODE = 0o700


def is_name(text: str) -> bool:
    """Whether a volume can be called *text*: a mapping, files and metrics have that in their names."""
    return len(text) <= LONGEST_NAME and bool(_NAME.fullmatch(text))


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError('an absolute path, such as "/srv/backup.img"')
    fault = fault_of_path(value)
    if fault:
        raise ValueError(fault)
    return Path("/" + os.path.normpath(value).lstrip("/"))  # POSIX lets two slashes in front stand


def _image(value: Any) -> Any:
    """A path, or the image at a remote place that a URL names."""
    if not isinstance(value, str) or not _SCHEME.match(value):
        return _path(value)
    from lukshook.store.remote import kinds  # noqa: PLC0415 - only for remote images

    return kinds.parse(value)


def _mountpoint(value: Any) -> Path:
    """The kernel knows mounts by paths without links, so the folders above are resolved; the folder itself is not."""
    path = _path(value)
    return _path(os.path.join(os.path.realpath(path.parent), path.name))  # noqa: PTH118 - a name it leads to counts too


def _mode(value: Any) -> int:
    """Permissions that let only the owner write: a user who can write there can replace the folder `data`."""
    if not isinstance(value, str) or not re.fullmatch("0?7[0145][0145]", value):
        raise ValueError(
            'a mode in quotes that gives the owner full access and others no write access, such as "0700" or "0755"'
        )
    return int(value, 8)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _size(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('a size in quotes, such as "500GiB"')
    size.parse_aligned(value)
    return value


def _choice(choices: Collection[str]) -> Callable[[Any], str]:
    def chosen(value: Any) -> str:
        if value not in tuple(choices):  # in a mapping, a list cannot be looked up
            raise ValueError("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return chosen


def _sources(value: Any) -> tuple[str, ...]:
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, list) or not sources or not all(isinstance(s, str) for s in sources):
        raise ValueError('a key source such as "file:/root/offsite.key", or a list of them')
    for source in sources:
        key_sources.parse(source)
    return tuple(sources)


def _patience(value: Any) -> float:
    """A time that may be seconds."""
    match = re.fullmatch(r"([0-9]{1,6})\s?s", value) if isinstance(value, str) else None
    return float(match[1]) if match else duration(value)


def duration(value: Any) -> float:
    """Seconds of a time such as "7d". Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,6})\s?(m|h|d|w)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError('a time such as "12h", "7d" or "2w"')
    return int(match[1]) * {"m": 60.0, "h": 3600.0, "d": _DAY, "w": 7 * _DAY}[match[2]]


def _percent(value: Any) -> float:
    match = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9])?)%", value) if isinstance(value, str) else None
    if not match:
        raise ValueError('a percentage such as "10%"')
    return float(match[1])


def _grow(value: Any) -> Grow:
    if not isinstance(value, dict) or set(value) != {"when_free_below", "by", "up_to"}:
        raise ValueError('{when_free_below = "10%", by = "50GiB", up_to = "1TiB"}')
    return Grow(_percent(value["when_free_below"]), size.parse(_size(value["by"])), size.parse(_size(value["up_to"])))


def _snapshot(value: Any) -> tuple[str, str]:
    """The kind of snapshot and its argument."""
    return snapshot_kinds.parse(value if isinstance(value, str) else "")


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_KEPT:
        raise ValueError(f"a number from 1 to {_MOST_KEPT}")
    return value


def _argv(value: Any) -> tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) and is_one_line(value) else []
    except ValueError:
        words = []
    if not words:
        raise ValueError('a command such as "/usr/local/bin/remove-copy", which is not run by a shell')
    return tuple(words)


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not patterns or not all(isinstance(one, str) for one in patterns):
        raise ValueError('a path with wildcards such as "/mnt/store/.zfs/snapshot/*/backup.img", or a list of them')
    return tuple(os.fspath(_path(one)) for one in patterns)


def _line(value: Any) -> str:
    if not isinstance(value, str) or not value or not is_one_line(value):
        raise ValueError("a text on one line")
    return value


def _files(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_FILES:
        raise ValueError(f"a number from 1 to {_MOST_FILES}")
    return value


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(w, str) and "\0" not in w for w in value):
        raise ValueError('a list of words, such as ["borg", "check", "{}"]')
    return tuple(value)


def source_of(text: Any) -> tuple[Path, str]:
    """A folder of this machine and the path within the volume that it is backed up to. Raises ValueError."""
    folder, colon, inside = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    within = os.path.normpath(inside.strip("/"))
    if not colon or not inside or within.startswith("..") or fault_of_path(within):
        raise ValueError('a folder and its place within the volume, such as "/home:data/home"')
    return _path(folder), within


def _all_sources(value: Any) -> tuple[tuple[Path, str], ...]:
    if not isinstance(value, list):
        raise ValueError('a list such as ["/home:data/home"]')
    return tuple(map(source_of, value))


#: What the table `drill` of a volume can have, and what reads it.
DRILL: dict[str, Callable[[Any], Any]] = {
    "image": _path,
    "key": _sources,
    "files": _files,
    "sources": _all_sources,
    "check": _words,
    "newer_than": duration,
}


def _drill(value: Any) -> Drill:
    if not isinstance(value, dict) or not set(value) <= set(DRILL):
        raise ValueError("a table with some of: " + ", ".join(DRILL))
    return Drill(**{name: _of_drill(name, given) for name, given in value.items()})


def _of_drill(name: str, value: Any) -> Any:
    try:
        return DRILL[name](value)
    except ValueError as error:
        raise ValueError(f"right: {name} has to be {error}") from error


def _copies(value: Any) -> tuple[Copy, ...]:
    if not isinstance(value, dict) or not value or not all(map(_is_copy, value.values())):
        raise ValueError('one or more copies by name, such as: disk = {path = "/mnt/disk/offsite.img", mode = "soft"}')
    wrong = next((name for name in value if not is_name(name)), None)
    if wrong is not None:
        raise ValueError("copies by names of letters, digits, dots, dashes and underscores")
    mode = _choice(("soft", "hard"))
    copies = tuple(Copy(name, _place(one["path"]), mode(one.get("mode", "soft"))) for name, one in value.items())
    if len({copy.path for copy in copies}) < len(copies):
        raise ValueError("copies at different paths")
    return copies


def _place(value: Any) -> str:
    """A path, or a URL."""
    if isinstance(value, str) and "://" in value:
        from lukshook.replica.targets import check_url  # noqa: PLC0415 - few copies lie behind a URL

        check_url(value)
        return value
    return str(_path(value))


def _is_copy(value: Any) -> bool:
    return isinstance(value, dict) and "path" in value and set(value) <= {"path", "mode"}


#: Every option of a volume, and what reads it: a value that does not fit raises ValueError with what would.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "image": _image,
    "patience": _patience,
    "ssh_config": _path,
    "mountpoint": _mountpoint,
    "key": _sources,
    "size": _size,
    "fill": _choice(image.FILLS),
    "filesystem": _choice(KINDS),
    "engine": _choice(engines.CHOICES),
    "soft": _boolean,
    "stale_after": duration,
    "read_only": _boolean,
    "discard": _boolean,
    "mmp": _boolean,
    "ledger": _boolean,
    "drill": _drill,
    "header_backup_at": _line,
    "copies": _copies,
    "space": _choice(("refuse", "warn")),
    "grow": _grow,
    "old_fuse2fs": _boolean,
    "mode": _mode,
    "snapshot": _snapshot,
    "keep_snapshots": _count,
    "snapshot_hard": _boolean,
    "prune_command": _argv,
    "versions": _patterns,
}
_NEEDED = ("image", "mountpoint", "key")
#: What the file has at its top.
_TABLES = ("volumes", "metrics", "notify")


@frozen
class Configuration:
    """All that a configuration file says. *metrics*: where a Prometheus text file is kept, or None.

    *notify*: whom to tell of backups.
    """

    source: Path
    volumes: Mapping[str, Volume]
    metrics: Path | None = field(default=None)
    notify: tuple[Channel, ...] = ()

    def volume(self, name: str) -> Volume:
        """The volume of that name. Raises `UnknownVolume`."""
        if name in self.volumes:
            return self.volumes[name]
        near = _nearest(name, self.volumes)
        known = ", ".join(self.volumes) or "none"
        raise UnknownVolume(
            f"there is no volume {shlex.quote(name)} in {self.source}",
            hint=f"did you mean {near}?" if near else f"configured are: {known}",
        )


def load(source: Path, run_folder: Path = _RUN_FOLDER) -> Configuration:
    """Read a configuration file; remote images appear below *run_folder*.

    Raises `BadConfiguration` with every problem in it, each on a line of its own.
    """
    try:
        table = tomllib.loads(_text(source))
    except FileNotFoundError as error:
        raise BadConfiguration(
            f"there is no configuration at {source}", hint="docs/configuration.md has a short example"
        ) from error
    except OSError as error:
        raise BadConfiguration(
            f"{source} cannot be read: {error.strerror}", hint="it must be a file that this user can read"
        ) from error
    except RecursionError as error:
        raise BadConfiguration(
            f"{source} is not TOML that lukshook can read: it is nested too deeply", hint=_WRITTEN_LIKE
        ) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are; so is a number of 5000 digits
        raise BadConfiguration(f"{source} is not TOML: {_clipped(str(error))}", hint=_WRITTEN_LIKE) from error
    return parse(table, source, run_folder)


def _text(source: Path) -> str:
    """What is in *source*, which is opened once. Raises `BadConfiguration` where another user could have written it.

    A configuration names commands and files, and root runs and reads them.
    """
    with ownership.reached(source, os.geteuid()) as found:
        if found.faults:
            raise BadConfiguration(
                f"{source} is not safe from other users: {ownership.in_words(found.faults)}",
                hint=f"check what is in it, then: {ownership.remedies(found.faults)}",
            )
        return files.read_found(found.descriptor, _MOST_BYTES).decode("utf-8")


def parse(table: Mapping[str, Any], source: Path, run_folder: Path = _RUN_FOLDER) -> Configuration:
    """A configuration from its TOML table. Raises `BadConfiguration`."""
    problems: list[str] = [f"{_part(name)}: unknown{_near(name, _TABLES)}" for name in table if name not in _TABLES]
    metrics = _value("metrics", table["metrics"], _path, problems) if "metrics" in table else None
    tables = table.get("volumes", {})
    if not isinstance(tables, dict):
        problems.append("volumes: must be tables, [volumes.NAME]")
        tables = {}
    volumes = {name: _volume(name, options, run_folder, problems) for name, options in tables.items()}
    whole = {name: volume for name, volume in volumes.items() if volume is not None}
    problems += _shared(whole)
    channels = _channels(table["notify"], tables, problems) if "notify" in table else ()
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise BadConfiguration(
            f"{source} has {count}: " + "; ".join(problems),
            hint="every option is described in docs/configuration.md",
        )
    return Configuration(source, whole, metrics, channels)


def _channels(tables: Any, volumes: Mapping[str, Any], problems: list[str]) -> tuple[Channel, ...]:
    """Whom to tell of backups."""
    from lukshook.notify import channel  # noqa: PLC0415 - only where somebody is to be told

    found, faults = channel.parse(tables, volumes)
    problems += faults
    return found


def _volume(name: str, options: Any, run_folder: Path, problems: list[str]) -> Volume | None:
    at = f"volumes.{_part(name)}"
    before = len(problems)
    if not is_name(name):
        problems.append(
            f"{at}: a name has up to {LONGEST_NAME} letters, digits, dots, dashes, underscores, no dot or dash first"
        )
    if not isinstance(options, dict):
        problems.append(f"{at}: must be a table")
        return None
    problems += [f"{at}.{_part(key)}: unknown{_near(key, OPTIONS)}" for key in options if key not in OPTIONS]
    problems += [f"{at}.{key}: missing" for key in _NEEDED if key not in options]
    values = {
        key: _value(f"{at}.{key}", value, OPTIONS[key], problems) for key, value in options.items() if key in OPTIONS
    }
    if values.get("mmp") and not _has_mmp(values.get("filesystem", DEFAULT)):
        problems.append(f"{at}.mmp: only {' and '.join(filter(_has_mmp, KINDS))} has it")
    problems += _without_snapshot(at, options)
    problems += _not_to_be_reserved(at, values)
    if len(problems) > before:
        return None
    values |= _placed(name, values, run_folder)
    return _assemble(name, {"mode": _DEFAULT_MODE, "as_written": _path(options["mountpoint"]), **values})


def _without_snapshot(at: str, options: Mapping[str, Any]) -> list[str]:
    """Options that say how to take snapshots where none are taken, or are for another kind of them."""
    if "snapshot" not in options:
        lone = [key for key in ("keep_snapshots", "snapshot_hard", "prune_command") if key in options]
        return [f"{at}.{key}: there is no option snapshot" for key in lone]
    if "prune_command" in options and not str(options["snapshot"]).startswith("command:"):
        return [f'{at}.prune_command: only for snapshot = "command:..."; lukshook removes all other snapshots itself']
    return []


def _policy(values: Mapping[str, Any]) -> Policy | None:
    """How snapshots are taken, None for not at all."""
    if "snapshot" not in values:
        return None
    kind, argument = values["snapshot"]
    keep, hard, prune = (values.get(key) for key in ("keep_snapshots", "snapshot_hard", "prune_command"))
    return Policy(kind, argument, keep or KEPT, bool(hard), prune or ())


def _placed(name: str, values: Mapping[str, Any], run_folder: Path) -> dict[str, Any]:
    """Where a remote image appears, for a volume that has one."""
    remote = values["image"]
    if isinstance(remote, Path):
        return {}
    fill = {} if remote.abilities.reserve else {"fill": "sparse"}
    image = run_folder / f"{name}.remote" / "image"
    return {"image": image, "remote": remote.with_config(values.get("ssh_config")), **fill}


def _not_to_be_reserved(at: str, values: Mapping[str, Any]) -> list[str]:
    """A way to fill the image that its store does not have."""
    image = values.get("image")
    if image is None or isinstance(image, Path) or image.abilities.reserve or values.get("fill", "sparse") == "sparse":
        return []
    return [f'{at}.fill: only "sparse"; nothing can be reserved at {image.url.partition(":")[0]}://']


def _has_mmp(kind: str | None) -> bool:
    """Whether the kind of file system is one that can keep a second host out."""
    return kind in KINDS and bool(KINDS[kind].protect)


def _value(address: str, value: Any, reader: Callable[[Any], Any], problems: list[str]) -> Any:
    try:
        return reader(value)
    except UnicodeError:
        problems.append(f"{address}: cannot be written in this locale; use a UTF-8 locale, such as LC_ALL=C.UTF-8")
    except ValueError as error:
        problems.append(f"{address}: {_shown(value)} is not {error}")
    except LukshookError as error:
        problems.append(f"{address}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return None


def _shown(value: Any) -> str:
    """A wrong value as it is written, or only what it is: what is in it may be long, or a key."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    if isinstance(value, int) and value.bit_length() > 64:  # Python shows none of more than 4300 digits
        return "a large number"
    return repr(_clipped(value)) if isinstance(value, str) else str(value).lower()


def _clipped(text: str) -> str:
    """*text* on one line, its begin only where it is long."""
    line = "".join(character if character.isprintable() else "?" for character in text[: _MOST_SHOWN + 1])
    return line if len(text) <= _MOST_SHOWN else line[:_MOST_SHOWN] + "..."


def _part(name: str) -> str:
    """A name within an address, in quotes where TOML needs them."""
    return name if _BARE_KEY.fullmatch(name) else repr(_clipped(name))


def _assemble(name: str, values: dict[str, Any]) -> Volume:
    """Give each layer the options it knows; the rest are the volume's own."""

    def part(spec: type[Any]) -> Any:
        return spec(**{a.name: values[a.name] for a in spec.__attrs_attrs__ if a.name in values})

    own = (
        *("key", "engine", "soft", "stale_after", "read_only", "space", "grow", "ledger", "versions", "drill"),
        *("header_backup_at", "copies"),
    )
    return Volume(
        name=name,
        **{layer: part(kind.spec) for layer, kind in engines.LAYERS.items()},
        **{option: values[option] for option in own if option in values},
        snapshot=_policy(values),
    )


def _shared(volumes: Mapping[str, Volume]) -> list[str]:
    """Two volumes must have neither image nor mount point in common, nor one mount point inside another's."""
    problems = []
    seen: dict[tuple[str, str], str] = {}
    mountpoints = {volume.mountpoint: name for name, volume in volumes.items()}
    for name, volume in volumes.items():
        for what, path in (("image", volume.image.shown), ("mountpoint", os.fspath(volume.mountpoint))):
            if (what, path) in seen:
                problems.append(f"volumes.{name}.{what}: {path} is the {what} of volumes.{seen[what, path]} too")
            seen[what, path] = name
        outer = next((mountpoints[above] for above in volume.mountpoint.parents if above in mountpoints), None)
        if outer is not None:
            problems.append(f"volumes.{name}.mountpoint: lies inside the mount point of volumes.{outer}")
        if volume.image.image.is_relative_to(volume.mountpoint):
            problems.append(f"volumes.{name}.image: lies inside its own mount point")
        problems += [f"volumes.{name}.copies.{copy.name}: {fault}" for copy, fault in _misplaced(volume)]
    return problems


def _misplaced(volume: Volume) -> Iterable[tuple[Copy, str]]:
    """The copies that cannot be made, and why."""
    for copy in volume.copies:
        if not volume.ledger:
            yield copy, "needs ledger = true, which tells what has changed"
        elif copy.path == str(volume.image.image):
            yield copy, "is the image itself"
        elif Path(copy.path).is_relative_to(volume.mountpoint):
            yield copy, "lies inside the mount point of its own volume"


def _near(name: str, known: Iterable[str]) -> str:
    near = _nearest(name, known)
    return f' (did you mean "{near}"?)' if near else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    """The one of *known* that was probably meant, or "" where none is near."""
    import difflib  # noqa: PLC0415

    return next(iter(difflib.get_close_matches(name, known, 1)), "")

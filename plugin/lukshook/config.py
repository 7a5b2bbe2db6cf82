"""The configuration: TOML to frozen `Volume` values. Reports all problems at once, each with its location."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, field, fields_dict, frozen

from lukshook.errors import BadConfiguration, LukshookError, UnknownVolume
from lukshook.filesystems.kinds import DEFAULT, KINDS
from lukshook.layers import dmcrypt, engines, era, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.layers.base import COPY
from lukshook.options import kept
from lukshook.options import values as forms
from lukshook.options.names import LONGEST_NAME, is_name
from lukshook.options.table import FILE_OPTIONS, NEEDED, OF_SNAPSHOTS, OPTIONS, Option, has_mmp
from lukshook.options.values import Copy, Drill, Grow
from lukshook.snapshots.kind import KEPT, Policy
from lukshook.store.access import Access
from lukshook.system import files, ownership
from lukshook.system.digest import sha256
from lukshook.system.path_walk import ways

if TYPE_CHECKING:
    from lukshook.notify.channel import Channel
    from lukshook.store.remote.kind import Store

#: Letters of a copy's label that say which copy it is.
_COPY_LETTERS = 8
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
#: Where remote images appear if nobody says otherwise.
_RUN_FOLDER = Path("/run/lukshook")
#: Bytes of a configuration; one with 10,000 volumes has less.
_MOST_BYTES = 4 * 1024 * 1024
_WRITTEN_LIKE = "docs/configuration.md has a short example; it is written in UTF-8"
#: What a message shows of a wrong name or value.
_MOST_SHOWN = 60


@frozen(repr=False)
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
    stale_after: float = 7 * 86400.0
    max_open: float | None = None
    read_only: bool = False
    space: str = "refuse"
    ledger: bool = False
    drill: Drill = field(factory=Drill)
    header_backup_at: str = ""
    copies: tuple[Copy, ...] = ()
    access: Access = field(factory=Access)
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
        place = forms.mountpoint(os.fspath(mountpoint))
        which = sha256(os.fsencode(f"{self.name}/{place}")).hexdigest()[:_COPY_LETTERS]
        written = forms.path(os.fspath(mountpoint))
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


#: The options that each layer knows.
_PARTS = {name: tuple(fields_dict(layer.spec)) for name, layer in engines.LAYERS.items()}
#: What the file has at its top.
_TABLES = ("volumes", *FILE_OPTIONS, "notify")


@frozen(eq=False, repr=False)
class Configuration:
    """All that a configuration file says. *metrics*: where a Prometheus text file is kept, or None.

    *notify*: whom to tell of backups. *tables*: the volumes as they are written. They are read when they are asked for,
    so that a command which names one of thousands is as quick as with that one alone. *problems*: those of the rest.
    """

    source: Path
    tables: Mapping[str, Any]
    run_folder: Path
    problems: Sequence[str] = ()
    metrics: Path | None = field(default=None)
    notify: tuple[Channel, ...] = ()

    @property
    def volumes(self) -> dict[str, Volume]:
        """All volumes. Raises `BadConfiguration` with every problem of the file, each on a line of its own."""
        problems = list(self.problems)
        volumes = {name: _volume(name, options, self.run_folder, problems) for name, options in self.tables.items()}
        whole = {name: volume for name, volume in volumes.items() if volume is not None}
        _refuse([*problems, *_shared(whole)], self.source)
        return whole

    def volume(self, name: str) -> Volume:
        """The volume of that name, whatever is wrong with others. Raises `UnknownVolume`, `BadConfiguration`."""
        if name not in self.tables:
            raise self._unknown(name)
        problems = list(self.problems)
        volume = _volume(name, self.tables[name], self.run_folder, problems)
        if volume is not None:
            problems += [*_shared({name: volume}), *_shared_as_written(volume, self.tables)]
        if volume is None or problems:
            raise _bad(problems, self.source)
        return volume

    def _unknown(self, name: str) -> UnknownVolume:
        near = _nearest(name, self.tables)
        known = ", ".join(map(_part, self.tables)) or "none"
        return UnknownVolume(
            f"there is no volume {shlex.quote(name)} in {self.source}",
            hint=f"did you mean {_part(near)}?" if near else f"configured are: {known}",
        )


def load(source: Path, run_folder: Path = _RUN_FOLDER) -> Configuration:
    """Read a configuration file; remote images appear below *run_folder*.

    What was read of a large one is kept there too. What is wrong with a volume is found when it is asked for.

    Raises `BadConfiguration` for what is no configuration.
    """
    table = table_of(text_of(source), source, lambda text: kept.table_of(text, run_folder))
    found = _read_table(table, source, run_folder)
    return _checked(found) if found.problems else found


def text_of(source: Path) -> str:
    """What is in the configuration file *source*. Raises `BadConfiguration`."""
    try:
        return _read(source)
    except FileNotFoundError as error:
        raise BadConfiguration(
            f"there is no configuration at {source}", hint="docs/configuration.md has a short example"
        ) from error
    except OSError as error:
        raise BadConfiguration(
            f"{source} cannot be read: {error.strerror}",
            hint="it must be a file that this user can read; one of root's needs root, such as with sudo",
        ) from error
    except UnicodeDecodeError as error:
        raise _no_toml(source, error) from error


def table_of(text: str, source: Path, read: Callable[[str], dict[str, Any]] = tomllib.loads) -> dict[str, Any]:
    """The TOML table that *text* is, from the file *source*. Raises `BadConfiguration`."""
    try:
        return read(text)
    except RecursionError as error:
        raise BadConfiguration(
            f"{source} is not TOML that lukshook can read: it is nested too deeply", hint=_WRITTEN_LIKE
        ) from error
    except ValueError as error:  # TOMLDecodeError is one; so is a number of 5000 digits
        raise _no_toml(source, error) from error


def _no_toml(source: Path, error: ValueError) -> BadConfiguration:
    return BadConfiguration(f"{source} is not TOML: {_clipped(str(error))}", hint=_WRITTEN_LIKE)


def _read(source: Path) -> str:
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
    """A configuration from its TOML table, with nothing wrong in it. Raises `BadConfiguration` with every problem."""
    return _checked(_read_table(table, source, run_folder))


def _checked(found: Configuration) -> Configuration:
    """The same, if nothing in it is wrong."""
    _ = found.volumes
    return found


def _read_table(table: Mapping[str, Any], source: Path, run_folder: Path) -> Configuration:
    problems: list[str] = [f"{_part(name)}: unknown{_near(name, _TABLES)}" for name in table if name not in _TABLES]
    own = _values("", table, FILE_OPTIONS, problems)
    tables = table.get("volumes", {})
    if not isinstance(tables, dict):
        problems.append("volumes: must be tables, [volumes.NAME]")
        tables = {}
    channels = _channels(table["notify"], tables, problems) if "notify" in table else ()
    return Configuration(source, tables, run_folder, problems, notify=channels, **own)


def check_apart(volumes: Mapping[str, Volume], source: Path) -> None:
    """Check that no two volumes have an image or mount point in common. Raises `BadConfiguration`."""
    _refuse(_shared(volumes), source)


def _refuse(problems: list[str], source: Path) -> None:
    if problems:
        raise _bad(problems, source)


def _bad(problems: list[str], source: Path) -> BadConfiguration:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return BadConfiguration(
        f"{source} has {count}: " + "; ".join(problems), hint="every option is described in docs/configuration.md"
    )


def schema() -> Mapping[str, Any]:
    """A JSON schema of the whole file."""
    from lukshook.notify import channel  # noqa: PLC0415 - no hook prints it
    from lukshook.options import schema as written  # noqa: PLC0415

    return written.schema({"notify": {"description": "Whom to tell of backups.", **channel.schema()}})


def _channels(tables: Any, volumes: Mapping[str, Any], problems: list[str]) -> tuple[Channel, ...]:
    """Whom to tell of backups."""
    from lukshook.notify import channel  # noqa: PLC0415 - only where a backup is to be reported

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
    problems += [f"{at}.{key}: missing" for key in NEEDED if key not in options]
    values = _values(f"{at}.", options, OPTIONS, problems)
    if values.get("mmp") and not has_mmp(values.get("filesystem", DEFAULT)):
        problems.append(f"{at}.mmp: only {' and '.join(filter(has_mmp, KINDS))} has it")
    problems += _without_snapshot(at, options)
    problems += _not_to_be_reserved(at, values)
    problems += _without_tls(at, values)
    if len(problems) > before:
        return None
    values |= _placed(name, values, run_folder)
    return _assemble(name, {"mode": _DEFAULT_MODE, "as_written": forms.path(options["mountpoint"]), **values})


def _without_snapshot(at: str, options: Mapping[str, Any]) -> list[str]:
    """Options that say how to take snapshots where none are taken, or are for another kind of them."""
    if "snapshot" not in options:
        lone = [key for key in OF_SNAPSHOTS if key in options]
        return [f"{at}.{key}: there is no option snapshot" for key in lone]
    if "prune_command" in options and not str(options["snapshot"]).startswith("command:"):
        return [f'{at}.prune_command: only for snapshot = "command:..."; lukshook removes all other snapshots itself']
    return []


def _policy(values: Mapping[str, Any]) -> Policy | None:
    """How snapshots are taken, None for not at all."""
    if "snapshot" not in values:
        return None
    kind, argument = values["snapshot"]
    keep, hard, prune = (values.get(key) for key in OF_SNAPSHOTS)
    return Policy(kind, argument, keep or KEPT, bool(hard), prune or (), values.get("remote"))


def _placed(name: str, values: Mapping[str, Any], run_folder: Path) -> dict[str, Any]:
    """Where a remote image appears, for a volume that has one."""
    remote = values["image"]
    if isinstance(remote, Path):
        return {}
    fill = {} if remote.abilities.reserve else {"fill": "sparse"}
    image = run_folder / f"{name}.remote" / "image"
    return {"image": image, "remote": Access.of(values).to(remote), **fill}


def _without_tls(at: str, values: Mapping[str, Any]) -> list[str]:
    """What TLS lacks: a server that is not verified would be anybody."""
    given = [key for key in ("tls_certificates", "tls_psk") if key in values]
    if len(given) > 1:
        return [f"{at}.tls_psk: not together with tls_certificates"]
    if given or not any(store.verifies for store in _remote(values)):
        return []
    return [f"{at}.tls_certificates: missing, to verify the server; or tls_psk"]


def _remote(values: Mapping[str, Any]) -> Iterator[Store]:
    """The remote stores of a volume: of its image, and of its copies."""
    image = values.get("image")
    if image is not None and not isinstance(image, Path):
        yield image
    urls = [copy.path for copy in values.get("copies") or () if not copy.path.startswith("/")]
    if urls:
        from lukshook.replica import targets  # noqa: PLC0415 - few copies lie behind a URL

        yield from map(targets.store_of, urls)


def _not_to_be_reserved(at: str, values: Mapping[str, Any]) -> list[str]:
    """A way to fill the image that its store does not have."""
    image = values.get("image")
    if image is None or isinstance(image, Path) or image.abilities.reserve or values.get("fill", "sparse") == "sparse":
        return []
    return [f'{at}.fill: only "sparse"; nothing can be reserved at {image.url.partition(":")[0]}://']


def _values(at: str, table: Mapping[str, Any], options: Mapping[str, Option], problems: list[str]) -> dict[str, Any]:
    """What *table* says of *options*, each read."""
    return {
        name: _value(f"{at}{name}", value, options[name].read, problems)
        for name, value in table.items()
        if name in options
    }


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


def refusal(option: str, value: Any) -> str:
    """Why *value* cannot be that of an option of a volume, "" where it can."""
    problems: list[str] = []
    _value(option, value, OPTIONS[option].read, problems)
    return "".join(problems)


def _clipped(text: str) -> str:
    """*text* on one line, its begin only where it is long."""
    line = "".join(character if character.isprintable() else "?" for character in text[: _MOST_SHOWN + 1])
    return line if len(text) <= _MOST_SHOWN else line[:_MOST_SHOWN] + "..."


def _part(name: str) -> str:
    """A name within an address, in quotes where TOML needs them."""
    return name if _BARE_KEY.fullmatch(name) else repr(_clipped(name))


def _assemble(name: str, values: dict[str, Any]) -> Volume:
    """Give each layer the options it knows; the rest are the volume's own."""

    def part(layer: str) -> Any:
        return engines.LAYERS[layer].spec(**{option: values[option] for option in _PARTS[layer] if option in values})

    own = (
        *("key", "engine", "soft", "stale_after", "max_open", "read_only", "space", "grow", "ledger", "versions"),
        *("drill", "header_backup_at", "copies"),
    )
    return Volume(
        name=name,
        **{layer: part(layer) for layer in _PARTS},
        **{option: values[option] for option in own if option in values},
        snapshot=_policy(values),
        access=Access.of(values),
    )


def _shared(volumes: Mapping[str, Volume]) -> list[str]:
    """Two volumes must have neither image nor mount point in common, nor one mount point inside another's."""
    problems = []
    seen: dict[tuple[str, str], str] = {}
    mountpoints = {os.fspath(volume.mountpoint): name for name, volume in volumes.items()}
    for name, volume in volumes.items():
        place = os.fspath(volume.mountpoint)
        for what, path in (("image", volume.image.shown), ("mountpoint", place)):
            if (what, path) in seen:
                problems.append(f"volumes.{name}.{what}: {path} is the {what} of volumes.{seen[what, path]} too")
            seen[what, path] = name
        outer = [mountpoints[above] for above in ways(place) if above in mountpoints and above != place]
        if outer:
            problems.append(f"volumes.{name}.mountpoint: lies inside the mount point of volumes.{outer[-1]}")
        if place in ways(os.fspath(volume.image.image)):
            problems.append(f"volumes.{name}.image: lies inside its own mount point")
        problems += [f"volumes.{name}.copies.{copy.name}: {fault}" for copy, fault in _misplaced(volume)]
    return problems


def _shared_as_written(volume: Volume, tables: Mapping[str, Any]) -> Iterator[str]:
    """What a volume has in common with others, whose tables are not read: only what is written alike is seen.

    Another spelling of the same path is seen where all volumes are read. A link is seen nowhere: the image is locked
    while it is in use, and an image that is not as known is refused.
    """
    image, place = volume.image.shown, os.fspath(volume.mountpoint)
    above = {os.fspath(folder) for folder in volume.mountpoint.parents}
    at = f"volumes.{_part(volume.name)}"
    for name, options in tables.items():
        if name == volume.name or not isinstance(options, dict):
            continue
        if options.get("image") == image:
            yield f"{at}.image: {image} is the image of volumes.{_part(name)} too"
        written = options.get("mountpoint")
        other = os.path.normpath(written) if isinstance(written, str) else ""
        if other == place:
            yield f"{at}.mountpoint: {place} is the mountpoint of volumes.{_part(name)} too"
        if other in above:
            yield f"{at}.mountpoint: lies inside the mount point of volumes.{_part(name)}"
        if other.startswith(f"{place}/"):
            yield f"volumes.{_part(name)}.mountpoint: lies inside the mount point of {at}"


def _misplaced(volume: Volume) -> Iterable[tuple[Copy, str]]:
    """The copies that cannot be made, and why."""
    for copy in volume.copies:
        if not volume.ledger:
            yield copy, "needs ledger = true, which tells what has changed"
        elif copy.path == volume.image.shown:
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

"""The lines a backup tool needs in its own configuration: `hooks/HOST/` with the real paths filled in.

A host is a folder there that holds one template beside its README.md and its host.toml, so no host is named in the
code. A host whose versions need different lines has a template for each, and says in its versions.toml which is for
which.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from lukshook.errors import LukshookError, Unavailable, Usage
from lukshook.system import files, ownership
from lukshook.system import installed as installed_files
from lukshook.system.command import TOOL_PATH, Runner, read

#: The file in a host's folder with what the list of hosts says of it.
ABOUT = "host.toml"
#: The file in a host's folder that knows which of its settings break hooks.
WARNINGS = "warnings.toml"
#: The file in a host's folder that says which template is for which of its versions.
VERSIONS = "versions.toml"
#: Seconds for a host to say its version; Python programs took up to 4 s on a busy machine.
_ANSWER_SECONDS = 20.0
_NUMBER = re.compile(r"\d+(?:\.\d+)+", re.ASCII)
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
#: Of another tool's configuration; a longer one is not looked at.
_MOST_BYTES = 4 * 1024 * 1024
#: Where the files of other tools begin, for tests.
ROOT = Path("/")
#: Characters that mean themselves in YAML, TOML, a shell, a crontab, a systemd unit and rsnapshot.conf alike.
_PLAIN = re.compile(r"[A-Za-z0-9_./+,-]+")


#: Of a backup tool, such as (1, 9, 14).
Version = tuple[int, ...]


@frozen
class About:
    """What the lines do, in a few words, and with which versions they were *tried*; else why they were *not_run*.

    *files*: where the configuration of the host is, as `configured` takes it.
    """

    summary: str
    tried: str = ""
    not_run: str = ""
    files: tuple[str, ...] = field(default=(), converter=tuple)


@frozen
class Lines:
    """The *template* for the versions of a host from *first* on, as far as the next newer template."""

    first: Version
    template: str


@frozen
class Versions:
    """A host whose versions need different lines: the *program* that says its version, and the lines, newest first."""

    program: str
    argument: str
    lines: tuple[Lines, ...]

    def suitable(self, version: Version | None) -> Lines:
        """The lines for *version*; the newest without one, the oldest for one that is older still."""
        return next((each for each in self.lines if version is None or each.first <= version), self.lines[-1])


def values(
    name: str,
    *,
    command: str,
    image: str,
    mountpoint: str,
    config: str | None = None,
    folders: Mapping[str, str] | None = None,
) -> Mapping[str, str]:
    """What `lines` fills in for the volume *name*; *config* only if it is not one of the usual places.

    *folders*: the variables with folders of ours that are not the usual ones. All paths are absolute. Raises `Usage`
    for a path that some host would read as something else.
    """
    variables = folders or {}
    for value in filter(None, (name, command, image, mountpoint, config, *variables.values())):
        _check_plain(value)
    return {
        "NAME": name,
        "LUKSHOOK": " ".join((*_env(variables), command)),
        "IMAGE": image,
        "MOUNTPOINT": mountpoint,
        "MOUNT_UNIT": _unit_of(mountpoint, "mount"),
        "DATA": f"{mountpoint.rstrip('/')}/data",
        "USER_CONFIG_FLAG": f"-c {config} " if config else "",
    }


def _env(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The words that set *variables* for a command; some tools want an absolute path first."""
    return ("/usr/bin/env", *(f"{name}={value}" for name, value in variables.items())) if variables else ()


def disk_values(device: str, mountpoint: str) -> Mapping[str, str]:
    """What `lines` fills in of the disk that the image lies on. Raises `Usage` as `values` does."""
    for value in (device, mountpoint):
        _check_plain(value)
    return {"DISK": device, "DISK_UNIT": _unit_of(device, "device"), "STORE": mountpoint}


def needs_disk(host: str) -> bool:
    """Whether the lines of *host* are about the disk that the image lies on. Raises `Usage`."""
    return "@DISK@" in template(host).read_text()


def _check_plain(value: str) -> None:
    if not _PLAIN.fullmatch(value):
        raise Usage(
            f'"{value}" has characters that the configuration of some backup tools does not accept',
            hint="use a path of letters, digits and _ . / + , - only",
        )


def _unit_of(path: str, kind: str) -> str:
    """The name of systemd's unit of that *kind* for a path, escaped as systemd.unit(5) says."""
    parts = [re.sub("[^A-Za-z0-9_.]", _escaped, part) for part in Path(path).parts[1:]]
    name = "-".join(parts)
    return (f"\\x2e{name[1:]}" if name.startswith(".") else name or "-") + f".{kind}"


def _escaped(character: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character[0].encode())


def hosts() -> tuple[str, ...]:
    """The hosts `lines` knows, in alphabetical order."""
    return tuple(sorted(folder.name for folder in _folder().iterdir() if folder.is_dir()))


def about(host: str) -> About:
    """What the list says of *host*. Raises `Usage`."""
    return About(**tomllib.loads((_folder_of(host) / ABOUT).read_text()))


def files_of(host: str, home: Path | None) -> Iterator[Path]:
    """The configuration files of *host* that are on this machine. *home*: what "~" is. Raises `Usage`."""
    return found_at(about(host).files, home)


def found_at(places: Iterable[str], home: Path | None) -> Iterator[Path]:
    """The files at *places*, which are patterns; those in "~" only if there is a *home*."""
    for place in places:
        base = home if place.startswith("~") else ROOT
        if base is not None:
            yield from sorted(base.glob(place.lstrip("~").lstrip("/")))


def lines(host: str, values: Mapping[str, str], version: Version | None = None) -> str:
    """The text for *version* of *host*, else for its newest, every placeholder replaced. Raises `Usage`."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template(host, version).read_text())


def template(host: str, version: Version | None = None) -> Path:
    """The file in the folder of *host* with the lines for *version*, else for its newest. Raises `Usage`."""
    folder, known = _folder_of(host), versions(host)
    if known is not None:
        return folder / known.suitable(version).template
    (file,) = (file for file in folder.iterdir() if file.name not in ("README.md", ABOUT, WARNINGS))
    return file


def versions(host: str) -> Versions | None:
    """What the versions.toml of *host* says; None where all versions have the same lines. Raises `Usage`."""
    file = _folder_of(host) / VERSIONS
    if not file.exists():
        return None
    said = tomllib.loads(file.read_text())
    found = (Lines(parsed(each["from"]), each["template"]) for each in said["lines"])
    return Versions(said["program"], said["argument"], tuple(found))


def parsed(text: str) -> Version:
    """The version that *text* is, such as "1.9". Raises `Usage`."""
    if not _NUMBER.fullmatch(text):
        raise Usage(f'"{text}" is not a version', hint="numbers with dots between them, such as 1.9 or 2.0.13")
    return tuple(map(int, text.split(".")))


def shown(version: Version) -> str:
    """*version* as it is written."""
    return ".".join(map(str, version))


def installed(host: str, runner: Runner, path: str) -> Version | None:
    """The version of *host* on this machine, as the host itself says it; None where none is found or none is said.

    *path*: the folders to look in before the usual ones, as in PATH. A program that another user can replace is not
    started. Raises `Usage` for an unknown host.
    """
    known = versions(host)
    if known is None:
        return None
    try:
        program = _program(known.program, path)
        said = runner.run(read(program, known.argument, timeout=_ANSWER_SECONDS)).out if program else ""
    except (LukshookError, OSError):
        return None
    found = _NUMBER.search(said)
    return parsed(found[0]) if found else None


def _program(name: str, path: str) -> str | None:
    """The first program of that *name* in a folder of *path* or a usual one, unless another user can replace it."""
    for folder in (*path.split(":"), *TOOL_PATH.split(":")):
        file = Path(folder, name)
        if file.is_absolute() and os.access(file, os.X_OK) and file.is_file():
            return None if ownership.unsafe_part(file, os.geteuid()) else str(file)
    return None


def warnings(mountpoint: str, runner: Runner, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is known to break hooks in the tools' own configuration files on this machine, and what to do.

    Each host's folder may have a warnings.toml: files, a pattern that would be wrong in them ("@MOUNTPOINT@" stands
    for the mount point), and what to say. With "from" or "below" it is wrong in those versions only, and the host is
    asked for its own ("@VERSION@" in what is said). With "unset" it is wrong where *environment* lacks that variable.
    """
    for host in hosts():
        notes = _folder() / host / WARNINGS
        if notes.exists():
            asked = functools.cache(functools.partial(installed, host, runner, environment.get("PATH", "")))
            for note in tomllib.loads(notes.read_text())["warning"]:
                for file in () if environment.get(note.get("unset", "")) else _matching(note, mountpoint):
                    version = _affected(note, asked)
                    if version is not None:
                        yield f"{file}: {note['text'].replace('@VERSION@', shown(version))}", note["hint"]


def _matching(note: Mapping[str, Any], mountpoint: str) -> Iterator[Path]:
    """The files that have what *note* is about."""
    pattern = re.compile(note["pattern"].replace("@MOUNTPOINT@", re.escape(mountpoint)), re.MULTILINE)
    return (file for file in found_at(note["files"], None) if pattern.search(_text(file)))


def _affected(note: Mapping[str, Any], asked: Callable[[], Version | None]) -> Version | None:
    """The installed version if *note* is about it, () if it is about all; None if it is not, or none is known."""
    if not {"from", "below"} & note.keys():
        return ()
    version = asked()
    if version is None or version < parsed(note.get("from", "0.0")):
        return None
    return None if "below" in note and version >= parsed(note["below"]) else version


def _text(file: Path) -> str:
    try:
        return files.read(file, _MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _folder_of(host: str) -> Path:
    """The folder of *host*. Raises `Usage` for an unknown one."""
    if host not in hosts():
        raise Usage(f'there are no lines for the backup tool "{host}"', hint=f"known tools: {', '.join(hosts())}")
    return _folder() / host


def _folder() -> Path:
    """The folder of all hosts. Raises `Unavailable`."""
    found = installed_files.find("hooks", "share/lukshook/hooks")
    if found is None:
        raise Unavailable("the templates for backup tools are not installed", hint="reinstall lukshook with pip")
    return found

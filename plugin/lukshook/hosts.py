"""The lines a backup tool needs in its own configuration: `hooks/HOST/` with the real paths filled in.

A host is a folder there that holds one template beside its README.md, so no host is named in the code.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lukshook.errors import Unavailable, Usage
from lukshook.system import files

#: The file in a host's folder that knows which of its settings break hooks.
WARNINGS = "warnings.toml"
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
#: Of another tool's configuration; a longer one is not looked at.
_MOST_BYTES = 4 * 1024 * 1024
#: Characters that mean themselves in YAML, TOML, a shell, a crontab, a systemd unit and rsnapshot.conf alike.
_PLAIN = re.compile(r"[A-Za-z0-9_./+,-]+")


def values(name: str, *, command: str, image: str, mountpoint: str, config: str | None = None) -> Mapping[str, str]:
    """What `lines` fills in for the volume *name*; *config* only if it is not one of the usual places.

    The four paths are absolute. Raises `Usage` for a path that some host would read as something else.
    """
    for value in filter(None, (name, command, image, mountpoint, config)):
        if not _PLAIN.fullmatch(value):
            raise Usage(
                f'"{value}" has characters that the configuration of some backup tools does not accept',
                hint="use a path of letters, digits and _ . / + , - only",
            )
    return {
        "NAME": name,
        "LUKSHOOK": command,
        "IMAGE": image,
        "MOUNTPOINT": mountpoint,
        "MOUNT_UNIT": _unit_of(mountpoint),
        "DATA": f"{mountpoint.rstrip('/')}/data",
        "USER_CONFIG_FLAG": f"-c {config} " if config else "",
    }


def _unit_of(mountpoint: str) -> str:
    """The name of systemd's mount unit for a path, escaped as systemd.unit(5) says."""
    parts = [re.sub("[^A-Za-z0-9_.]", _escaped, part) for part in Path(mountpoint).parts[1:]]
    name = "-".join(parts)
    return (f"\\x2e{name[1:]}" if name.startswith(".") else name or "-") + ".mount"


def _escaped(character: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character[0].encode())


def hosts() -> tuple[str, ...]:
    """The hosts `lines` knows, in alphabetical order."""
    return tuple(sorted(folder.name for folder in _folder().iterdir() if folder.is_dir()))


def lines(host: str, values: Mapping[str, str]) -> str:
    """The text for *host*'s configuration, every placeholder replaced. Raises `Usage` for an unknown host."""
    if host not in hosts():
        raise Usage(f'no template for host "{host}"', hint=f"known hosts: {', '.join(hosts())}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template(host).read_text())


def template(host: str) -> Path:
    """The one file beside README.md in the folder of *host*."""
    (file,) = (file for file in (_folder() / host).iterdir() if file.name not in ("README.md", WARNINGS))
    return file


def warnings(mountpoint: str) -> Iterator[tuple[str, str]]:
    """What is known to break hooks in the tools' own configuration files on this machine, and what to do.

    Each host's folder may have a warnings.toml: files, a pattern that would be wrong in them ("@MOUNTPOINT@" stands
    for the mount point), and what to say.
    """
    for host in hosts():
        notes = _folder() / host / WARNINGS
        if notes.exists():
            for note in tomllib.loads(notes.read_text())["warning"]:
                pattern = re.compile(note["pattern"].replace("@MOUNTPOINT@", re.escape(mountpoint)), re.MULTILINE)
                for file in _files(note["files"]):
                    if pattern.search(_text(file)):
                        yield f"{file}: {note['text']}", note["hint"]


def _files(patterns: list[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))


def _text(file: Path) -> str:
    try:
        return files.read(file, _MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _folder() -> Path:
    """`hooks/` of a checkout or an editable install, else where a wheel puts its data: below the prefix."""
    above = Path(__file__).resolve().parents
    places = (above[2] / "hooks", *(prefix / "share/lukshook/hooks" for prefix in above))
    for place in places:
        if place.is_dir():
            return place
    raise Unavailable("the templates for backup tools are not installed", hint="reinstall lukshook with pip")

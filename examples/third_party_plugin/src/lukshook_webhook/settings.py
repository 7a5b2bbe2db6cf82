"""The plugin's own file: which address to ping for which volume."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

Event = Literal["start", "success", "fail"]
_URL = re.compile(r"https?://[A-Za-z0-9][^\s\x00-\x1f]*")


class SettingsError(Exception):
    """The file cannot be read, or says something this plugin does not know. Never names an address."""


def _suffix(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not False and not isinstance(value, str):
        raise SettingsError(f"{attribute.name} must be a text to add to the url, or false for no ping")


def _url(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise SettingsError("url must begin with https:// or http:// and the name of a host")


def _seconds(_: object, __: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 60:
        raise SettingsError("timeout must be a number of seconds, above 0 and up to 60")


@attrs.frozen
class Target:
    """Where the pings of one volume go; the suffixes are those of Healthchecks by default."""

    url: str = attrs.field(validator=_url, repr=False)
    start: str | Literal[False] = attrs.field(default="/start", validator=_suffix)
    success: str | Literal[False] = attrs.field(default="", validator=_suffix)
    fail: str | Literal[False] = attrs.field(default="/fail", validator=_suffix)
    timeout: float = attrs.field(default=10, validator=_seconds)

    def address(self, event: Event) -> str | None:
        """The address for *event*, or None where the file says `false`."""
        suffixes = {"start": self.start, "success": self.success, "fail": self.fail}
        suffix = suffixes[event]
        return None if suffix is False else self.url.rstrip("/") + suffix


def path() -> Path:
    """LUKSHOOK_WEBHOOK, else the file in /etc/lukshook if there is one, else that below XDG_CONFIG_HOME."""
    if named := os.environ.get("LUKSHOOK_WEBHOOK"):
        return Path(named)
    system = Path("/etc/lukshook/webhook.toml")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    return system if system.is_file() else home / "lukshook/webhook.toml"


def load(file: Path) -> Mapping[str, Target]:
    """The targets by volume. No file means no pings. Raises `SettingsError`."""
    try:
        volumes = tomllib.loads(file.read_text()).get("volumes", {})
        return {name: Target(**table) for name, table in volumes.items()}
    except FileNotFoundError:
        return {}
    except SettingsError as problem:
        raise SettingsError(f"{file}: {problem}") from None
    except OSError as problem:
        raise SettingsError(f"{file}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError):
        raise SettingsError(f"{file}: not a [volumes.NAME] table of url, start, success, fail, timeout") from None

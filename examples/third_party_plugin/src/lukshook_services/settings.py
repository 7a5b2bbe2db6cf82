"""The plugin's own file: which services are stopped for which volume."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lukshook.errors import BadConfiguration

#: systemd.unit(5); nothing that systemctl could take for an option.
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\][A-Za-z0-9:_.@\\-]*\.(service|socket|timer|target)")


def path() -> Path:
    """LUKSHOOK_SERVICES, else the file in /etc/lukshook."""
    return Path(os.environ.get("LUKSHOOK_SERVICES") or "/etc/lukshook/services.toml")


def load(file: Path) -> Mapping[str, tuple[str, ...]]:
    """The services by volume; no file means none. Raises `BadConfiguration`, which stops the backup."""
    try:
        volumes = tomllib.loads(file.read_text()).get("volumes", {})
        return {name: _units(table) for name, table in volumes.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as problem:
        raise BadConfiguration(f"{file}: {problem}", hint='[volumes.NAME] with units = ["NAME.service"]') from None


def _units(table: Mapping[str, Any]) -> tuple[str, ...]:
    units = table["units"]
    if set(table) != {"units"} or not isinstance(units, list) or not all(_UNIT.fullmatch(unit) for unit in units):
        raise ValueError("units has to be a list of names such as paperless.service, and there is no other option")
    return tuple(units)

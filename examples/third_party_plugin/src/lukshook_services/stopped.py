"""What was stopped for each volume, in a file: "before" and "after" are two processes."""

from __future__ import annotations

import os
from pathlib import Path


def _file(volume: str) -> Path:
    folder = Path(os.environ.get("LUKSHOOK_SERVICES_RUN") or "/run/lukshook-services")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / volume


def of(volume: str) -> tuple[str, ...]:
    """The services that wait for the end of the backup."""
    try:
        return tuple(_file(volume).read_text().split())
    except FileNotFoundError:
        return ()


def note(volume: str, units: tuple[str, ...]) -> None:
    """Add *units* to what waits already: another job may use the volume too."""
    file = _file(volume)
    fresh = file.with_name(f"{volume}.new")
    fresh.write_text("\n".join(dict.fromkeys((*of(volume), *units))))
    fresh.replace(file)


def forget(volume: str) -> None:
    """All of them run again."""
    _file(volume).unlink(missing_ok=True)

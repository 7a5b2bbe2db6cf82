"""The processes of the userspace engine that serve a volume."""

from __future__ import annotations

from pathlib import Path

from support.volume import CliVolume

DAEMONS = ("qemu-storage-daemon", "fuse2fs")


def daemons(volume: CliVolume) -> list[int]:
    """The processes that hold the open volume, the lowest layer first."""
    found = processes(volume, *DAEMONS)
    return [found[name] for name in DAEMONS if name in found]


def processes(volume: CliVolume, *names: str) -> dict[str, int]:
    """The programs of those names that work on something of the volume."""
    found: dict[str, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = Path(line[0]).name
        if name in names and any(str(volume.folder) in word for word in line):
            found[name] = int(entry.name)
    return found

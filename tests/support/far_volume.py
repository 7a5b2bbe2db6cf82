"""A volume whose image is to lie at a remote place, and what tests of every such place do with it."""

from __future__ import annotations

import os
from pathlib import Path

from support.volume import NAME, CliVolume


def some(number: int = 3_000_000) -> bytes:
    return os.urandom(number)


def house(folder: Path, url: str, **options: object) -> CliVolume:
    """A volume in *folder*, not created yet."""
    volume = CliVolume(folder, "userspace")
    volume.prepare()
    volume.configure(image=url, **options)
    return volume


def back_up(volume: CliVolume, name: str) -> bytes:
    """Write a file *name*; what is in it."""
    content = some()
    volume.do("before-backup", NAME)
    (volume.data / name).write_bytes(content)
    volume.do("after-backup", NAME)
    return content


def nothing_stands(volume: CliVolume) -> bool:
    """Whether neither mount nor private folder is left, only locks. Processes are counted after each test."""
    left = os.listdir(volume.run_folder) if volume.run_folder.exists() else []
    return not volume.standing() and all(name.endswith(".lock") for name in left)


def in_it(volume: CliVolume, *names: str) -> list[bytes]:
    """What is in those files of the volume, opened for that and closed again."""
    volume.do("open", NAME, "--read-only")
    found = [(volume.data / name).read_bytes() for name in names]
    volume.do("close", NAME)
    return found

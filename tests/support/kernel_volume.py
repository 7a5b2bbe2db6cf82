"""A real volume for tests of a store that lies: image, header, file system, opened by the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from lukshook.config import Volume
from lukshook.keys.key_sources import Asking, obtain
from lukshook.system.command import Command, Result, Runner, SystemRunner
from lukshook.system.secret import Secret
from lukshook.volume import closing, create, opening, users
from support.direct_volume import DirectVolume, parsed, site_in

HEADER = 1 << 20  # more than both metadata copies


@frozen
class KernelVolume(DirectVolume):
    """A volume that the kernel opens; *warnings* are collected, *asked* counts how often the key was asked for."""

    warnings: list[str] = field(factory=list)
    asked: list[str] = field(factory=list)

    def open(self, *, runner: Runner | None = None) -> None:
        site = evolve(self.site, runner=runner) if runner else self.site
        opening.open_volume(self.volume, users.by_hand(), site)

    def close(self) -> None:
        closing.close_volume(self.volume, None, self.site, backup=False)

    def key(self) -> Secret:
        return obtain(self.volume.key, Asking({}, self.volume.name, self.warnings.append))

    def write(self, name: str, content: bytes) -> None:
        """A backup: open, write a file, close."""
        self.open()
        (self.volume.data / name).write_bytes(content)
        self.close()


def empty(folder: Path, **options: Any) -> KernelVolume:
    """A configured volume of which nothing is there yet; its own key source is empty."""
    volume = parsed(folder, **{"space": "warn", **options})
    warnings: list[str] = []
    asked: list[str] = []

    def ask(volume: Volume) -> Secret:
        asked.append(volume.name)
        return obtain(volume.key, Asking({}, volume.name, warnings.append))

    site = site_in(folder, ask, warnings.append, patience=5.0)
    return KernelVolume(folder, volume, site, warnings, asked)


def build(folder: Path, **options: Any) -> KernelVolume:
    """A volume as `create` makes it."""
    house = empty(folder, **options)
    create.create(house.volume, house.site, lambda done, total: None)
    return house


def change_header(image: Path, change: Callable[[bytearray], object]) -> None:
    """What a store does to a header."""
    with image.open("r+b") as file:
        start = bytearray(file.read(HEADER))
        change(start)
        file.seek(0)
        file.write(start)


class Before:
    """A runner that does something right before the first step, a tool or a call, that begins with *words*."""

    dry = False

    def __init__(self, words: str, work: Callable[[], object]) -> None:
        self.words = words
        self.work = work
        self.done = False
        self.runner = SystemRunner()

    def run(self, command: Command) -> Result:
        self._reach(" ".join(command.argv))
        return self.runner.run(command)

    def note(self, line: str) -> None:
        self._reach(line)
        self.runner.note(line)

    def _reach(self, step: str) -> None:
        if not self.done and step.startswith(self.words):
            self.done = True
            self.work()


def tool(*argv: str, given: bytes = b"") -> str:
    """Run a tool behind lukshook's back."""
    return subprocess.run(argv, input=given, stdout=subprocess.PIPE, check=True, timeout=120).stdout.decode()

"""A real volume for tests of a store that lies: image, header, file system, opened by the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from lukshook.config import Volume, parse
from lukshook.keys.key_sources import Asking, obtain
from lukshook.system.command import Command, Result, Runner, SystemRunner
from lukshook.system.secret import Secret
from lukshook.volume import create, memory, session, users
from lukshook.volume.context import Site

HEADER = 1 << 20  # more than both metadata copies


@frozen
class RealHouse:
    """A volume with its site; *warnings* are collected, *asked* counts how often the key was asked for."""

    folder: Path
    volume: Volume
    site: Site
    warnings: list[str] = field(factory=list)
    asked: list[str] = field(factory=list)

    @property
    def image(self) -> Path:
        return self.volume.image.image

    def open(self, *, runner: Runner | None = None) -> None:
        site = evolve(self.site, runner=runner) if runner else self.site
        session.open_volume(self.volume, users.by_hand(), site)

    def close(self) -> None:
        session.close_volume(self.volume, None, self.site, backup=False)

    def known(self) -> memory.Known:
        return memory.Memory(self.site.state_folder, self.volume.name).known

    def key(self) -> Secret:
        return obtain(self.volume.key, Asking({}, self.volume.name, self.warnings.append))

    def write(self, name: str, content: bytes) -> None:
        """A backup: open, write a file, close."""
        self.open()
        (self.volume.data / name).write_bytes(content)
        self.close()


def empty(folder: Path, **options: Any) -> RealHouse:
    """A configured volume of which nothing is there yet; its own key source is empty."""
    table = {
        "image": str(folder / "image"),
        "mountpoint": str(folder / "mnt"),
        "key": f"file:{folder / 'own.key'}",
        "size": "64MiB",
        "fill": "sparse",
        "space": "warn",
        "engine": "kernel",
        **options,
    }
    volume = parse({"volumes": {"house": table}}, folder / "config.toml").volume("house")
    warnings: list[str] = []
    asked: list[str] = []

    def ask(volume: Volume) -> Secret:
        asked.append(volume.name)
        return obtain(volume.key, Asking({}, volume.name, warnings.append))

    site = Site(folder / "run", folder / "state", SystemRunner(), ask, warnings.append, patience=5.0)
    return RealHouse(folder, volume, site, warnings, asked)


def build(folder: Path, **options: Any) -> RealHouse:
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

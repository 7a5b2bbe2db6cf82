"""Plugins as they are installed: a module, and a distribution with an entry point, in a folder on `sys.path`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from attrs import frozen

from lukshook.cli import hooks
from lukshook.plugins import open_and_close as plugin
from support.lukshook_process import Done
from support.volume import CliVolume

HEAD = "import os, signal, sys, threading\nfrom lukshook import hookimpl\n"
HOOKS = {"before_backup": "volume", "after_backup": "volume, outcome", "report": "volume, outcome"}
IMPORT = "import"


def code(**places: str) -> str:
    """The source of a plugin: what it does in each hook, or at its import."""
    parts = [HEAD + dedent(places.pop(IMPORT, ""))]
    for hook, body in places.items():
        parts.append(f"@hookimpl\ndef {hook}({HOOKS[hook]}):\n{indent(dedent(body).strip() or 'pass', '    ')}\n")
    return "\n".join(parts)


def install(folder: Path, source: str, name: str = "bad", value: str = "", line: str = "") -> None:
    """Install a plugin; *line* is its entry point where that is not *name* = *value*, by default its module."""
    module = f"{name}_plugin"
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "entry_points.txt").write_text(f"[lukshook]\n{line or f'{name} = {value or module}'}\n")
    (folder / f"{module}.py").write_text(source)


def on_path(folder: Path) -> Callable[[], None]:
    """For the process of a lukshook: it finds what is installed in *folder*."""

    def prepare() -> None:
        sys.dont_write_bytecode = True  # a module is exchanged within a second
        sys.path.insert(0, str(folder))

    return prepare


@frozen
class Host:
    """A lukshook whose volume is a file: it is there while the volume is open, and `log` says what happened to it."""

    folder: Path

    @property
    def plugins(self) -> Path:
        return self.folder / "site-packages"

    @property
    def opened(self) -> Path:
        return self.folder / "opened"

    @property
    def log(self) -> list[str]:
        file = self.folder / "log"
        return file.read_text().split() if file.exists() else []

    def note(self, what: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(f"{what}\n")

    def install(self, source: str, **more: str) -> None:
        """Install a plugin here."""
        install(self.plugins, source, **more)

    def lukshook(self, *arguments: str, prepare: Callable[[], None] = lambda: None) -> Done:
        """Run it to its end."""
        volume = CliVolume(self.folder, "auto", {"PATH": "/usr/bin:/bin"})
        volume.configure(key="prompt")

        def all_of_it() -> None:
            on_path(self.plugins)()
            plugin.opening = plugin.closing = hooks.closing = self  # type: ignore[attr-defined, assignment]
            prepare()

        return volume.start(*arguments, prepare=all_of_it).wait()

    # In the place of lukshook.volume.opening and closing

    def open_volume(self, *_: Any, **__: Any) -> None:
        self.opened.touch()
        self.note("OPEN")

    def may_be_open(self, *_: Any) -> bool:
        return self.opened.exists()

    def close_volume(self, *_: Any, failed: bool, **__: Any) -> tuple[()]:
        self.opened.unlink(missing_ok=True)
        self.note("CLOSE-failed" if failed else "CLOSE")
        return ()

    @contextmanager
    def held(self, *_: Any) -> Iterator[None]:
        yield

"""A store whose owner exchanges the image at the n-th step of a command.

Used as the `prepare` of a forked lukshook: an audit hook (PEP 578) sees every file that is opened and every tool that
is started, right before that happens, so the moment is exact.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

from attrs import define, field

from support.volume import CliVolume

#: What is put in the place of the image. "and back": it is taken away again a few steps later.
KINDS = (
    "link",
    "link, and back",
    "another image",
    "another image, and back",
    "pipe",
    "pipe, and back",
    "folder",
    "device of characters",
)
#: Without privileges nobody makes a device.
USERS_KINDS = tuple(kind for kind in KINDS if not kind.startswith("device"))
#: Steps until what was put there is taken away again.
_LATER = 4
_EVENTS = frozenset(
    ("open", "subprocess.Popen", "os.rename", "os.link", "os.remove", "os.truncate", "os.chmod", "fcntl.ioctl")
)


@define
class Exchange:
    """Puts *what* in the place of the image at the *step*-th step, counted from 0; None for nothing.

    Each step is noted in *log*. *victim* is a file outside the store that must never change.
    """

    volume: CliVolume
    log: Path
    what: str | None = None
    step: int = -1
    _count: int = field(default=-1, init=False)
    _busy: bool = field(default=False, init=False)

    @property
    def victim(self) -> Path:
        """The file outside the store."""
        return self.volume.folder / "victim"

    def __call__(self) -> None:
        """Watch this process from now on."""
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or event not in _EVENTS or not self._matters(event, arguments):
            return
        self._busy = True
        try:
            self._count += 1
            with self.log.open("a") as log:
                log.write(f"{event} {arguments[0]!r}\n")
            if self.what is not None and self._count == self.step:
                exchange(self.volume, self.what, self.victim)
            if self.what is not None and self.what.endswith("and back") and self._count == self.step + _LATER:
                undo(self.volume)
        finally:
            self._busy = False

    def _matters(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether a step has to do with the store, or leads to a tool that has."""
        if event not in ("open", "os.remove", "os.chmod", "os.truncate", "os.rename", "os.link"):
            return True
        path = str(arguments[0])
        store = self.volume.image.parent
        return Path(path).name in names(self.volume) or path.startswith((str(store), "/proc/self/fd/", "/dev/loop"))


def names(volume: CliVolume) -> tuple[str, str]:
    """The name of the image, and the one it has while it is created."""
    return (volume.image.name, f".{volume.image.name}.lukshook-new")


def exchange(volume: CliVolume, what: str, victim: Path) -> None:
    """Move the image aside, under whichever name it has now, and put *what* there."""
    store = volume.image.parent
    name = next((name for name in names(volume) if os.path.lexists(store / name)), None)
    if name is None or (volume.folder / "aside").exists():
        return
    os.rename(store / name, volume.folder / "aside")
    (volume.folder / "aside.name").write_text(name)
    put(store / name, what.removesuffix(", and back"), victim)


def put(place: Path, what: str, victim: Path) -> None:
    """Put something that is not the image at *place*."""
    if what == "link":
        place.symlink_to(victim)
    elif what == "another image":
        place.write_bytes(victim.read_bytes())
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


def undo(volume: CliVolume) -> None:
    """Put the image back under the name it had, where that was not taken away by lukshook meanwhile."""
    aside = volume.folder / "aside"
    if not aside.exists():
        return
    name = (volume.folder / "aside.name").read_text()
    place = volume.image.parent / name
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    os.rename(aside, place)

"""The recovery sheet: everything that opens the image without lukshook, for paper."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Protocol

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import Denied, Refused, Unavailable
from lukshook.keys import key_sources
from lukshook.luks import cryptsetup, header, header_file
from lukshook.system import clock
from lukshook.system.command import Runner
from lukshook.system.secret import Secret
from lukshook.version import VERSION
from lukshook.volume.context import Site

#: The UUID on a sheet that is printed before there is an image.
NOT_YET = "printed by `lukshook create`"
_LOST_HEADER = (
    "If cryptsetup says that the image is not a valid LUKS device, its header is lost. Copy the image, then put the "
    "header backup\nback (for the copy of it, type the path where you have that), and open the image as above:"
)


@frozen
class Code:
    """What a sheet has as a QR code, and as letters beside it.

    *fault_tolerance*: how much of the code may be dirty (ISO/IEC 18004: "m" 15 %, "q" 25 %). *square*: the side of one
    of its squares, in points of 0.35 mm.
    """

    text: str
    heading: str
    lines: tuple[str, ...]
    caption: str
    large: bool
    fault_tolerance: str
    square: int


class Paper(Protocol):
    """What can be printed, as text or as a page."""

    @property
    def title(self) -> str:
        """The first line."""
        ...

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What the image is and where its header is kept, each with its name."""
        ...

    def code(self) -> Code:
        """The secret of this sheet."""
        ...

    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each thing to do in words, and the lines to type for it."""
        ...

    def in_text(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The parts of a sheet that is text alone, and has the secret in one of them."""
        ...


@frozen
class Sheet:
    """What stands on the sheet of *volume*. *key*: its base64 text, "" where it is left out."""

    volume: Volume
    header_backup: Path
    uuid: str
    key: str = ""

    @property
    def title(self) -> str:
        """The first line."""
        return f"Recovery sheet of volume {self.volume.name} - keep it away from this machine and safe from thieves"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What the image is and where its header is kept, each with its name."""
        others = [*dict.fromkeys(self.volume.key)][1:]
        kept = f"{self.header_backup}   (copy it elsewhere: without a header the key opens nothing)"
        return (
            ("Printed", f"{clock.show(clock.now(), '%Y-%m-%d')} by lukshook {VERSION}"),
            ("Image", str(self.volume.image.shown)),
            ("LUKS UUID", self.uuid),
            *(("Another key", key_sources.name_of(text)) for text in others),
            ("Header backup", kept),
            ("A copy of it", self.volume.header_backup_at or "write down where: ____________________"),
        )

    def code(self) -> Code:
        """The key."""
        lines = (self.key[: len(self.key) // 2], self.key[len(self.key) // 2 :])
        caption = "(one line of 44 characters; the QR code has the same)"
        return Code(self.key, "The key:", lines, caption, large=True, fault_tolerance="q", square=4)

    def in_text(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The same: the key is in the line that opens the image."""
        return self.parts()

    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each thing to do in words, and the lines to type for it."""
        return (
            *(() if self.key else self._left_out()),
            (
                "To open the image without lukshook, on any Linux with cryptsetup, as root:",
                self.opening(f'echo "{self.key or "KEY"}" | base64 --decode'),
            ),
            *self.afterwards(),
            ("To try all of this without changing anything, now and then:", (f"lukshook drill {self.volume.name}",)),
        )

    def _left_out(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What says that the key is missing, and how to get it."""
        source, argument = key_sources.parse(self.volume.key[0])
        again = f"lukshook sheet {self.volume.name} --show-key"
        ways = [("THE KEY IS NOT ON THIS SHEET: without it nothing opens. Print the sheet with it:", (again,))]
        if argument:
            ways.append(("or write down the key (KEY), which this command prints:", (source.shown(argument),)))
        return (*ways, ("KEY:", ("_" * 44,)))

    def afterwards(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Where the files are, how the image is closed, and what to do if its header is lost."""
        return (
            (self._reading(), ("umount /mnt", "cryptsetup luksClose backup_crypt")),
            (_LOST_HEADER, (cryptsetup.restore_line(self._image(), self.header_backup),)),
        )

    def _reading(self) -> str:
        """Where the files are then, and how it is left alone."""
        data = Path("/mnt") / self.volume.data.relative_to(self.volume.mountpoint)
        only = "To read only: luksOpen --readonly, and mount -o ro,noload (xfs, btrfs: mount -o ro,norecovery)."
        return f"The files are in {data}. {only} To close it:"

    def _image(self) -> Path:
        return Path("backup.img") if self.volume.image.remote else self.volume.image.image

    def opening(self, key: str) -> tuple[str, ...]:
        """The lines that open the image; *key* is the command that prints the key's bytes."""
        far, quoted = self.volume.image.remote, shlex.quote(os.fspath(self._image()))
        return (
            *((far.fetch(quoted),) if far else ()),
            f"{key} | cryptsetup luksOpen --key-file=- {quoted} backup_crypt",
            "mount /dev/mapper/backup_crypt /mnt",
        )


def of_known(volume: Volume, site: Site) -> Sheet:
    """The sheet of a volume that this host knows, without the key. Looks at no store. Raises `Unavailable`."""
    state = site.state(volume)
    pins = state.known.pins
    if pins is None:
        raise Unavailable(
            f"this host does not know the image of volume {volume.name} yet",
            hint=f"lukshook create {volume.name}, or for an image made elsewhere: lukshook trust {volume.name}",
        )
    return Sheet(volume, state.header_backup, str(pins["uuid"]))


def check_opens(sheet: Sheet, key: Secret, runner: Runner) -> None:
    """Check that *key* opens the header backup: else the sheet would fail when it is needed.

    Raises `Denied`, and `Unavailable` where there is no header backup.
    """
    file, name = sheet.header_backup, sheet.volume.name
    try:
        kept = header_file.load(file)
        judged = header.judge(kept, kept.size * 2)
    except (OSError, Refused) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Unavailable(
            f"the header backup {file} cannot be read: {why}", hint=f"lukshook header backup {name}"
        ) from error
    if not cryptsetup.slots_opened(kept, judged, key, runner):
        raise Denied(
            f"the key of volume {name} does not open its header backup",
            hint=f"try the image itself: lukshook key test {name}",
        )


def text(sheet: Paper) -> str:
    """The sheet for a terminal or a printer of text."""
    facts = "".join(f"{f'{name}:':<15}{value}\n" for name, value in sheet.facts())
    parts = "".join(f"\n{words}\n\n{_indented(lines)}" for words, lines in sheet.in_text())
    return f"{sheet.title}\n\n{facts}{parts}"


def _indented(lines: tuple[str, ...]) -> str:
    return "".join(f"    {line}\n" for line in lines)

"""What we last knew of each volume, kept across boots: pins, history, the last backup."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from lukshook.errors import Denied, Refused
from lukshook.luks import header
from lukshook.system import files, json_files
from lukshook.system.ownership import private_folder


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _elapsed(seconds: float | None) -> float | None:
    """Earlier versions took the difference of two wall clock times, which is negative when the clock was set back."""
    return None if seconds is None or seconds < 0 else seconds


@frozen(repr=False)
class Known:
    """What this host knows of a volume.

    *pins*: the header as it was accepted. *filesystem*: uuid. *written*: the rising count of the file system at the
    last close. *leaving*: the key slots that a rotation will empty once the new key is in its place, by the hash of
    their material, for their numbers are given out again; *leaving_mark* and *coming* the names of the old key's mark
    and of the new one's. *fill* and *size*: how the image was made. Times are seconds since the epoch, None for never;
    *duration* of the last backup is in seconds; *last_written*: bytes that it wrote, the file system's own included,
    None where the kind does not count them or others used the volume too; *last_end*: when it ended. *unclean*: how
    often something had to be recovered. *doubted*: the store has lost writes since the file system was checked. *used*
    and *capacity*: bytes in the volume when it was closed last. *locks*: why a lock on the image may not reach other
    hosts, as it was reported. *extent*: bytes of the file system, as its super block said when this host opened or
    resized it last. *last_snapshot*: when a snapshot was taken last. *last_drill*: when the last drill ended that found
    nothing wrong; *drill_result* of the last drill, and what that covered: keys that open the volume, files read, files
    compared, bytes read. *rekey_heads*: what the header on the store may be while the volume key is replaced, as
    `header_file.heads` gives it; of no meaning at other times.
    """

    pins: dict[str, Any] | None = None
    filesystem: str | None = None
    written: int | None = None
    leaving: tuple[str, ...] = field(default=(), converter=_texts)
    leaving_mark: str = ""
    coming: str = ""
    fill: str | None = None
    last_open: float | None = None
    last_close: float | None = None
    last_success: float | None = None
    last_result: str = field(default="")
    duration: float | None = field(default=None, converter=_elapsed)
    last_written: int | None = None
    last_end: float | None = None
    unclean: int = 0
    doubted: bool = False
    used: int | None = None
    capacity: int | None = None
    locks: str = ""
    extent: int | None = None
    last_snapshot: float | None = None
    last_drill: float | None = None
    drill_result: str = ""
    drill_keys: int | None = None
    drill_files: int | None = None
    drill_compared: int | None = None
    drill_bytes: int | None = None
    rekey_heads: tuple[str, ...] = field(default=(), converter=_texts)


class KnownState:
    """What this host keeps of one volume, and where: files in the state folder, which only their owner can change.

    *folder*: the state folder; *volume*: the name of the volume. What is known is read once.
    """

    def __init__(self, folder: Path, volume: str) -> None:
        self.folder = folder
        self.volume = volume
        self._known: Known | None = None

    @property
    def file(self) -> Path:
        """Where what is known lies."""
        return self.folder / f"{self.volume}.json"

    @property
    def header_backup(self) -> Path:
        """Where the header backup lies."""
        return self.folder / f"{self.volume}.header"

    @property
    def header_next(self) -> Path:
        """Where a changed header lies from the moment it is decided on until it is whole on the store."""
        return self.folder / f"{self.volume}.header.next"

    @property
    def header_draft(self) -> Path:
        """Where a header lies while cryptsetup works on it."""
        return self.folder / f"{self.volume}.header.draft"

    @property
    def rekeying(self) -> Path:
        """Where the header lies that counts while the volume key is replaced, from its first step until its end."""
        return self.folder / f"{self.volume}.rekey"

    @property
    def creating(self) -> Path:
        """Where it is noted that `create` has not finished the volume."""
        return self.folder / f"{self.volume}.creating"

    @property
    def resizing(self) -> Path:
        """Where a change of size is noted from before its first step until its end."""
        return self.folder / f"{self.volume}.resize"

    @property
    def ledger(self) -> Path:
        """The folder of the ledger."""
        return self.folder / f"{self.volume}.ledger"

    @property
    def snapshots(self) -> Path:
        """Where the snapshots that we have taken are noted."""
        return self.folder / f"{self.volume}.snapshots"

    @property
    def history(self) -> Path:
        """Where past backups are noted."""
        return self.folder / f"{self.volume}.history"

    @property
    def holder(self) -> Path:
        """Where it lies by what a remote store knows our locks."""
        return self.folder / f"{self.volume}.holder"

    @property
    def copies(self) -> Path:
        """The folder of what is known of the copies elsewhere."""
        return self.folder / f"{self.volume}.copies"

    @property
    def known(self) -> Known:
        """What is known, or a blank.

        Raises `Refused` when the file is damaged: what it pinned must not be forgotten. Raises `Denied` when this user
        may not read it.
        """
        if self._known is None:
            self._known = self._load()
        return self._known

    def _load(self) -> Known:
        try:
            known = json_files.build(Known, json_files.load(self.file))
            if known.pins is not None and not header.are_whole(known.pins):
                raise json_files.Damaged("the pins of the header are not complete")
        except FileNotFoundError:
            return Known()
        except PermissionError as error:
            raise Denied(
                f"{self.file} cannot be read: permission denied",
                hint="run as root, or as the user who opens the volume",
            ) from error
        except json_files.Damaged as error:
            raise Refused(
                f"{self.file} is damaged: {error}",
                hint="restore it, or remove it and run: lukshook trust " + self.volume,
            ) from error
        return known

    def save(self, known: Known) -> None:
        """Keep it, so that it outlives a power cut."""
        self.make_folder()
        files.write_whole(self.file, json.dumps(asdict(known), indent=1).encode(), durable=True)
        self._known = known

    def make_folder(self) -> None:
        """Make the state folder, which is this user's alone."""
        private_folder(self.folder)

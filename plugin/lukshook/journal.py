"""What is open now: one record and one lock per volume, in a folder that does not outlive a boot.

The record is how the process of a host's "after" knows what the process of its "before" did.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, field, frozen

from lukshook import command, folders, interrupt, kernel
from lukshook.errors import Unavailable
from lukshook.layers import LAYERS

#: Seconds to wait for another lukshook that works on the same volume.
LOCK_SECONDS = 180.0


@frozen
class User:
    """Who has a volume open: a process (*pid* and its start time), a systemd unit (its cgroup), or somebody by hand."""

    who: str
    pid: int = 0
    started: int = 0
    cgroup: str = ""

    def alive(self) -> bool:
        """Whether the user can still come and close. By hand, nobody knows: yes."""
        if self.pid:
            return kernel.started(self.pid) == self.started
        unit = self.cgroup.rpartition("/")[2]
        return not self.cgroup or kernel.unit_is_active(unit) or kernel.cgroup_has_processes(self.cgroup)


@frozen
class Record:
    """What is open: the layers from the bottom up, and who uses it.

    *complete*: all layers stand. *settled*: closing has begun, nothing more can be written; *lost* says what did not
    reach the store until then, "" for nothing.
    """

    volume: str
    boot: str
    engine: str
    read_only: bool
    since: float
    users: tuple[User, ...] = ()
    layers: tuple[tuple[str, Any], ...] = field(default=())
    complete: bool = False
    settled: bool = False
    lost: str = ""

    def push(self, layer: str, handle: Any) -> Record:
        """With one more layer on top."""
        return evolve(self, layers=(*self.layers, (layer, handle)))

    def pop(self) -> Record:
        """Without the topmost layer."""
        return evolve(self, layers=self.layers[:-1], complete=False)


class Book:
    """The page of one volume, locked while it is held."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> Record | None:
        """The record, or None when there is none of this boot."""
        try:
            data = json.loads(self._file.read_bytes())
            record = _from_json(data)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            # Half a page cannot come from us (it is renamed into place); the kernel is asked what stands.
            self.clear()
            return None
        if record.boot != kernel.boot_id():
            self.clear()
            return None
        return record

    def save(self, record: Record) -> None:
        """Replace the record at once."""
        write_whole(self._file, json.dumps(_to_json(record)).encode(), durable=False)

    def clear(self) -> None:
        """Nothing is open."""
        self._file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, volume: str, seconds: float = LOCK_SECONDS) -> Iterator[Book]:
    """Hold the volume's lock. Raises `Unavailable` when another lukshook has it for too long.

    flock(2) goes with the process and the tools it has started, so a killed one blocks the next only until they ended.
    """
    private_folder(folder)
    descriptor = os.open(folder / f"{volume}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with interrupt.allowed():
            free = kernel.wait_until(lambda: _try_lock(descriptor), seconds)
        if not free:
            raise Unavailable(f"another lukshook works on volume {volume}", hint="see: lukshook status " + volume)
        with command.lent(descriptor):
            yield Book(folder / f"{volume}.json")
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def peek(folder: Path, volume: str) -> Record | None:
    """The record without the lock, for looking."""
    try:
        record = _from_json(json.loads((folder / f"{volume}.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if record.boot == kernel.boot_id() else None


def private_folder(folder: Path) -> None:
    """Make *folder* ours alone. Raises `Unavailable` where it is another user's, or another user can move it."""
    try:
        with folders.opened(folder, make=0o700) as opened:
            found = os.fstat(opened.descriptor)
    except (folders.Unsafe, folders.IsLink) as error:
        raise Unavailable(
            f"the folder {folder} is not ours alone: {error or 'it is a symbolic link'}",
            hint="name a folder in folders that no other user can change",
        ) from error
    except OSError as error:
        raise Unavailable(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="is the file system it lies on there, and writable?",
        ) from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unavailable(f"the folder {folder} is not ours alone", hint="remove it, or correct its owner and mode")


def write_whole(file: Path, content: bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Write *file* so that a reader, or the next boot, sees the old content or the new, and nothing between."""
    fresh = file.with_name(file.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        out.write(content)
        if durable:
            out.flush()
            os.fsync(descriptor)
    fresh.replace(file)
    if durable:
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in *folder* outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_json(record: Record) -> dict[str, Any]:
    data = asdict(record, recurse=False)
    data["users"] = [asdict(user) for user in record.users]
    data["layers"] = [[name, asdict(handle)] for name, handle in record.layers]
    return data


def _from_json(data: dict[str, Any]) -> Record:
    data["users"] = tuple(User(**user) for user in data["users"])
    data["layers"] = tuple((name, LAYERS[name].Handle(**handle)) for name, handle in data["layers"])
    return Record(**data)


def now() -> float:
    """Seconds since the epoch, as records note them."""
    return time.time()

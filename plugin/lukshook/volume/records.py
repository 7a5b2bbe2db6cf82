"""What is open now: one record and one lock per volume, in a folder that does not outlive a boot.

The record is how the process of a host's "after" knows what the process of its "before" did.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, field, frozen

from lukshook.errors import Denied, Unavailable
from lukshook.layers.base import COPY, LayerHandle
from lukshook.layers.engines import ENGINES, LAYERS
from lukshook.system import clock, command, files, json_files, kernel, ownership, signals
from lukshook.system.one_look import same_for_all
from lukshook.volume import lock_note
from lukshook.volume.lock_note import Holder

#: Seconds to wait for another lukshook that works on the same volume.
LOCK_SECONDS = 180.0


@frozen(eq=False, repr=False)
class User:
    """Who has a volume open: a process (*pid* and its start time), a systemd unit (its cgroup), or a person by hand.

    *job*: the name that was given to it; then it is this job whichever process calls, and *pid* only says whether it
    is alive. *ours*: a lukshook that works on the volume or runs a job in it, and ends that well on a signal.
    *since*: from when (`clock.uptime`), 0 where that was not noted; it does not tell one user from another.
    """

    who: str
    pid: int = 0
    started: int = 0
    cgroup: str = ""
    job: str = ""
    ours: bool = False
    since: float = 0.0

    def __eq__(self, other: object) -> bool:
        """Whether both are the same user. A process keeps its number when it changes its name or program."""
        return isinstance(other, User) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        if self.job:
            return (self.job,)
        return (self.pid, self.started, self.cgroup) if self.pid or self.cgroup else (self.who,)

    def alive(self) -> bool:
        """Whether the user can still come and close. By hand, that is not known: yes."""
        if self.pid:
            return kernel.started(self.pid) == self.started
        unit = self.cgroup.rpartition("/")[2]
        return not self.cgroup or kernel.unit_is_active(unit) or kernel.cgroup_has_processes(self.cgroup)


def _numbers(values: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


@frozen(repr=False)
class Record:
    """What is open: the layers from the bottom up, and who uses it.

    *since* is the wall clock's, *began* the time since the machine started (`clock.uptime`), None in a record of an
    earlier version. *complete*: all layers stand. *settled*: closing has begun, nothing more can be written; *lost*
    says what did not reach the store until then, "" for nothing. *shared*: more than one has used it since it was
    opened. *volume*: the label (`config.Volume`). *place*: the mount point that it is opened at, "" in a record of an
    earlier version.

    What a closing has to know that is tried again: *stood*: all layers stood when closing began; *written*: the file
    system's count of what was written; *covers* and *places*: what the layer that records writes has reported
    (`ledger_keeping.Recorded`), "" where it was not asked; *to_be_noted*: a backup has ended and is not noted yet;
    *backup_began*: when it did (`clock.uptime`); *failed*: its user said that it has; *ended*: when all was on the
    store (`backup_end`), None before that.
    """

    volume: str
    boot: str
    engine: str
    read_only: bool
    since: float
    users: tuple[User, ...] = ()
    layers: tuple[tuple[str, LayerHandle], ...] = field(default=())
    complete: bool = False
    settled: bool = False
    lost: str = ""
    shared: bool = False
    began: float | None = None
    place: str = ""
    stood: bool = False
    failed: bool = False
    written: int | None = None
    to_be_noted: bool = False
    backup_began: float | None = None
    ended: float | None = None
    covers: str = ""
    places: tuple[int, ...] | None = field(default=None, converter=_numbers)

    @property
    def was_open(self) -> bool:
        """Whether the opening came to its end, so that somebody can have used the volume."""
        return self.complete or self.stood

    def push(self, layer: str, handle: LayerHandle) -> Record:
        """With one more layer on top."""
        return evolve(self, layers=(*self.layers, (layer, handle)))

    def pop(self) -> Record:
        """Without the topmost layer."""
        return evolve(self, layers=self.layers[:-1], complete=False)


class RecordFile:
    """The record of one volume, whose lock is held: so it is read once, and nobody else changes it."""

    def __init__(self, file: Path, lock: int) -> None:
        self.file = file
        self._lock = lock
        self._doing = ""
        self._read: tuple[Record | None, str] | None = None

    def tell(self, doing: str) -> None:
        """Tell those that wait for the lock what we are *doing*, in words: for work that takes long."""
        if doing != self._doing:
            self._doing = doing
            lock_note.write(self._lock, doing)

    def load(self) -> Record | None:
        """The record; None when there is none of this boot, or none that can be read: the kernel is asked then."""
        return self._content()[0]

    @property
    def damaged(self) -> str:
        """Why the record cannot be read, in a line, or "". It is kept until `save` or `clear` moves it aside."""
        return self._content()[1]

    def _content(self) -> tuple[Record | None, str]:
        if self._read is None:
            self._read = _read(self.file)
        return self._read

    def save(self, record: Record) -> None:
        """Replace the record at once."""
        self._keep_damaged()
        files.write_whole(self.file, json.dumps(_to_json(record)).encode(), durable=False)
        self._read = (record, "")

    def assume(self, record: Record) -> None:
        """Go on with *record*, which could not be saved, or is saved with the next step."""
        self._read = (record, "")

    def clear(self) -> None:
        """Nothing is open."""
        self._keep_damaged()
        self.file.unlink(missing_ok=True)
        self._read = (None, "")

    def keep_unreported(self, who: Iterable[User], lost: str) -> None:
        """Keep for each of *who* that is alive that its volume was closed under it; *lost* says how, in words."""
        notes = self._notes()
        notes |= {user: lost for user in who if user.alive() and user not in notes}
        self._write_notes(notes)

    def unreported(self, user: User) -> str:
        """How the volume was closed under *user*, "" where it was not or where it was reported already."""
        return self._notes().get(user, "")

    def reported(self, user: User) -> None:
        """*user* knows of it now."""
        notes = self._notes()
        if notes.pop(user, None) is not None:
            self._write_notes(notes)

    @property
    def _notes_file(self) -> Path:
        return self.file.with_suffix(".unreported")

    def _notes(self) -> dict[User, str]:
        """What is kept for users that are alive: a number or a name that comes again is another user's."""
        try:
            data = json_files.load(self._notes_file)
            here = data.get("boot") == kernel.boot_id()
            entries = json_files.objects(data, "notes") if here else []
            notes = {json_files.build(User, user): str(lost) for user, lost in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError):  # not written by us
            self._notes_file.rename(_aside(self._notes_file))
            return {}
        return {user: lost for user, lost in notes.items() if user.alive()}

    def _write_notes(self, notes: dict[User, str]) -> None:
        if not notes:
            self._notes_file.unlink(missing_ok=True)
            return
        data = {"boot": kernel.boot_id(), "notes": [[asdict(user), lost] for user, lost in notes.items()]}
        files.write_whole(self._notes_file, json.dumps(data).encode(), durable=False)

    def _keep_damaged(self) -> None:
        """Another version, or a person, may still see from it who had the volume open."""
        if self.damaged:
            self.file.rename(_aside(self.file))
            self._read = (None, "")


def _aside(file: Path) -> Path:
    names = (file.with_name(f"{file.name}.damaged{number or ''}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


@contextmanager
def locked(folder: Path, volume: str, seconds: float = LOCK_SECONDS) -> Iterator[RecordFile]:
    """Hold the volume's lock. Raises `Unavailable` when another lukshook has it for too long.

    flock(2) goes with the process and the tools it has started, so a killed one blocks the next only until they ended.
    """
    ownership.private_folder(folder)
    descriptor = _open_lock(folder / f"{volume}.lock")
    try:
        with signals.allowed():
            free = kernel.wait_until(lambda: _try_lock(descriptor), seconds)
        if not free:
            raise _in_use(volume, lock_note.read(descriptor))
        lock_note.write(descriptor)
        with command.lent(descriptor):
            yield RecordFile(folder / f"{volume}.json", descriptor)
    finally:
        os.close(descriptor)


def _in_use(volume: str, holder: Holder | None) -> Unavailable:
    text, hint = f"another lukshook is working on volume {volume}", f"see: lukshook status {volume}"
    if holder is None:
        return Unavailable(text, hint=hint)
    if holder.doing:  # work that takes long, and goes on where it was ended
        hint = f"wait for it, or end it, and run it again later: kill {holder.pid}"
    return Unavailable(f"{text}: {holder.shown}", hint=hint)


def _open_lock(file: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(file, flags, 0o600)
    except PermissionError as error:
        raise Denied(
            f"the lock file {file} cannot be opened: permission denied", hint="does it belong to another user?"
        ) from error
    except OSError as error:
        raise Unavailable(
            f"the lock file {file} cannot be opened: {error.strerror}",
            hint="remove what is there while no lukshook is running",
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Unavailable(
            f"the folder of the lock files does not support locks: {error.strerror}",
            hint="set LUKSHOOK_RUN_DIR to a folder on a local file system",
        ) from error
    return True


def peek(folder: Path, volume: str) -> Record | None:
    """The record without the lock, for looking; None as `RecordFile.load`."""
    return look(folder, volume)[0]


def look(folder: Path, volume: str) -> tuple[Record | None, str]:
    """As `peek`; and why the record cannot be read, in a line, or ""."""
    return _read(folder / f"{volume}.json")


def copies(folder: Path, begin: str) -> list[Record]:
    """The records, without their locks, of what has a label that begins with *begin*."""
    there = (name for name in _names_of_copies(folder) if name.startswith(begin))
    return [record for record in (_read(folder / name)[0] for name in there) if record is not None]


@same_for_all
def _names_of_copies(folder: Path) -> list[str]:
    """The files with records of copies, whichever volumes they are copies of."""
    try:
        return sorted(name for name in os.listdir(folder) if COPY in name and name.endswith(".json"))
    except OSError:
        return []


def adopt(folders: Iterable[Path], folder: Path) -> None:
    """Move records of this boot from *folders*, where earlier versions kept them, into *folder*."""
    for file in (file for former in folders for file in former.glob("*.json")):
        record, _ = _read(file)
        if record is not None and record.volume == file.stem:
            with suppress(Unavailable), locked(folder, record.volume, seconds=0) as book:
                if book.load() is None and not book.damaged:
                    book.save(record)
                    file.unlink(missing_ok=True)


def _read(file: Path) -> tuple[Record | None, str]:
    """The record in *file*, None for none of this boot; and why there is none although there is a file, or ""."""
    try:
        record = _from_json(json_files.load(file))
    except FileNotFoundError:
        return None, ""
    except PermissionError:
        return None, f"the record {file} cannot be read: permission denied"
    except json_files.Damaged as error:
        return None, f"the record {file} is damaged: {error}"
    return (record if record.boot == kernel.boot_id() else None), ""


def _to_json(record: Record) -> dict[str, Any]:
    data = asdict(record, recurse=False)
    data["users"] = [asdict(user) for user in record.users]
    data["layers"] = [[name, asdict(handle)] for name, handle in record.layers]
    return data


def _from_json(data: dict[str, Any]) -> Record:
    """Raises `json_files.Damaged`, also for the layers of another version."""
    users = tuple(json_files.build(User, user) for user in json_files.objects(data, "users"))
    layers = tuple(map(_layer, json_files.objects(data, "layers")))
    record = json_files.build(Record, data, users=users, layers=layers)
    if record.engine not in ENGINES:
        raise json_files.Damaged("its engine is unknown")
    return record


def _layer(data: object) -> tuple[str, LayerHandle]:
    match data:
        case [str(name), handle] if name in LAYERS:
            return name, json_files.build(LAYERS[name].handle, handle)
    raise json_files.Damaged("one of its layers is unknown")


def now() -> float:
    """Seconds since the epoch, as records note them."""
    return clock.now()

"""The recorder of the kernel engine: dm-era between the image and the mapping keeps which blocks are written.

Only for a ledger, and only where it can be had: without it the volume opens all the same, and closing reads the whole
image. The block number below the mapping is the place in the image, and the header lies in it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import field, frozen

from lukshook.errors import Busy, LukshookError, Refused, Unavailable
from lukshook.layers import era_metadata, loop_device
from lukshook.layers.base import Extent, LayerSpec, Opening, Recording, Records
from lukshook.layers.era_metadata import BLOCK, SECTOR, Superblock
from lukshook.layers.mapping import GONE_SECONDS, NODES, MappingHandle
from lukshook.system import kernel, loops
from lukshook.system.command import Command, Runner, change, read

#: None that a volume needs: `era_metadata.TOOLS` are for a ledger, and dmsetup comes with the mapping.
TOOLS: tuple[str, ...] = ()
#: Linux 5.12 mended dm-era: before, a crash lost what was written last ("dm era: Recover committed writeset after
#: crash", "dm era: Reinitialize bitset cache before digesting a new writeset").
_LEAST_KERNEL = (5, 12)
#: Where no udev runs, dmsetup makes the node itself (dmsetup(8), --verifyudev).
_CREATE = ("dmsetup", "create", "--verifyudev")
#: Openings in a row that ended without a clean close, after which the whole image is read.
_MOST_FILES = 16
_WITHOUT = "closing reads the whole image instead"


@frozen(repr=False)
class Spec(LayerSpec):
    """*discard*: the store learns which blocks are unused. dm-era sees only the block in which a discard begins.

    So a discard reaches it one block long at most, and the block behind each counts as written; without the option
    none gets through.
    """

    discard: bool = False

    @property
    def transparent(self) -> bool:
        """It shows what is below."""
        return True

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """What a person would type, in one shell: the loop device under the metadata is known only when it is taken."""
        if opening.recording is None or opening.read_only:
            return ()
        load = f'{" ".join(_CREATE)} "$3" --table'
        return (_typed(load, "true", below, opening.recording.folder / "era.0", _name(opening)),)

    def expect(self, below: str, opening: Opening) -> Handle | None:
        """The node of the target."""
        if opening.recording is None or opening.read_only:
            return None
        return Handle(NODES + _name(opening), _name(opening), "", "", "")

    def open(self, below: str, opening: Opening) -> Handle | None:
        """Record what is written to *below*. None where nobody asked, or it cannot be had: then a warning says why.

        Raises `Busy` where what was begun cannot be undone, `Unavailable` where an old record cannot be removed.
        """
        if opening.recording is None or opening.read_only:
            return None
        folder = opening.recording.folder
        if opening.recording.fresh:
            era_metadata.forget(folder)
        try:
            return _opened(self, below, opening.recording, opening)
        except Busy:
            raise
        except (LukshookError, OSError) as error:
            era_metadata.forget(folder)  # it lacks what is written from now on
            why = era_metadata.reason(error) if isinstance(error, OSError) else error.message
            hint = getattr(error, "hint", "")
            opening.warn(
                f"volume {opening.volume}: nothing records what is written ({why}); {_WITHOUT}"
                + (f"; {hint}" if hint else "")
            )
            return None

    def can_record(self, runner: Runner) -> bool:
        """Whether the tools and the kernel for it are there. Raises `Unavailable`."""
        _check_system()
        return True

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A target of our name and mark on the device below. What it recorded stays in the folder of the ledger."""
        found = kernel.mapping(_name(opening))
        try:
            under = kernel.number(below)
        except OSError:
            return None
        if found is None or found.uuid != _uuid(opening) or under not in found.under:
            return None
        return Handle(NODES + found.name, found.name, found.uuid, found.number, under)


@frozen(repr=False)
class Handle(MappingHandle):
    """A target that records: its node, name, device-mapper uuid, device number, and the number of the device under it.

    *folder*: where the metadata lie, "" where that is not known. *size*: bytes it had when it was opened. *covers*:
    the value of `records`. *discards*: whether discards reach it.
    """

    folder: str = ""
    size: int = 0
    covers: str = field(default=Records.NOTHING.value)
    discards: bool = False

    @property
    def records(self) -> Records:
        """What `written` covers."""
        return Records(self.covers)

    @property
    def longest_discard(self) -> int:
        """Bytes of a discard that is seen whole, with the block behind it; 0 where none may come."""
        return BLOCK if self.discards else 0

    @property
    def _saw_discards(self) -> bool:
        """Whether a discard may be in the record: of an earlier opening that it continues, too, such as a `compact`."""
        return self.discards or self.records is Records.SINCE_CLEAN_CLOSE

    def written(self, runner: Runner) -> tuple[Extent, ...]:
        """Where the image was written since the record began, in blocks of `era_metadata.BLOCK` bytes.

        What lies behind the end that the image had when it was opened counts as written. Raises `LukshookError`.
        """
        try:
            blocks = _written(self, runner)
            size = kernel.block_size(self.path)
        except OSError as error:
            raise Unavailable(
                f"the record of what was written to {self.name} cannot be read: {era_metadata.reason(error)}",
                hint=_WITHOUT,
            ) from error
        if size > self.size:
            blocks.append((self.size // BLOCK, era_metadata.blocks_of(size)))
        return era_metadata.extents(blocks, size, successors=self._saw_discards)

    def close_commands(self) -> tuple[Command, ...]:
        """Remove the target, which completes the metadata; the loop device under them goes with it."""
        return (_remove(self.name),)


def _name(opening: Opening) -> str:
    """No volume's mapping is called so: a plus cannot be in a volume's name."""
    return f"lukshook-{opening.label}+era"


def _uuid(opening: Opening) -> str:
    return f"LUKSHOOK-ERA-{loop_device.tag(opening)}"


def _remove(name: str) -> Command:
    """Again for a while where udev has it open."""
    return change("dmsetup", "remove", "--verifyudev", "--retry", "--", name, timeout=GONE_SECONDS)


def _typed(load: str, then: str, below: str, file: Path, name: str) -> Command:
    """What a person would type to *load* a table over a new *file*, and *then* to go on."""
    script = (
        'rm --force -- "$2" && '
        f'fallocate --length="$(($(blockdev --getsize64 "$1") / {BLOCK // 9} + {era_metadata.needed(0)}))" -- "$2" && '
        'm=$(losetup --find --show --direct-io=on -- "$2") && '
        f'{load} "0 $(blockdev --getsz "$1") era $m $1 {BLOCK // SECTOR}" && losetup --detach "$m" && {then}'
    )
    return change("sh", "-c", script, "sh", below, os.fspath(file), name)


def _opened(spec: Spec, below: str, recording: Recording, opening: Opening) -> Handle:
    _check_able(opening)
    size = kernel.block_size(below)
    covers = _covered(below, size, recording, opening)
    file = era_metadata.following(recording.folder)
    era_metadata.make(file, size)
    try:
        _create(file, below, size, opening)
        found = kernel.mapping(_name(opening))
        if found is None:
            raise Unavailable(f"the mapping {_name(opening)} did not appear", hint="is udev running?")
        handle = Handle(
            path=NODES + found.name,
            name=found.name,
            uuid=_uuid(opening),
            number=found.number,
            under=kernel.number(below),
            folder=os.fspath(recording.folder),
            size=size,
            covers=covers.value,
            discards=spec.discard,
        )
        _check_target(handle, size, opening.runner)
        limit(handle)
    except BaseException:
        _undo(opening)
        raise
    return handle


def _check_able(opening: Opening) -> None:
    """Check what can be checked before anything is made. Raises `Unavailable`."""
    _check_system()
    name = _name(opening)
    if kernel.mapping(name) is not None:
        raise Unavailable(
            f"a mapping {name} already exists, and lukshook did not create it",
            hint=f"look at it with: dmsetup info {name}",
        )


def _check_system() -> None:
    """Check that this machine can record. Raises `Unavailable`."""
    era_metadata.check_tools()
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None or (int(match[1]), int(match[2])) < _LEAST_KERNEL:
        raise Unavailable(f"dm-era of Linux {release} has faults", hint="Linux 5.12 has none of them")


def _undo(opening: Opening) -> None:
    """Remove the target, if it came to be. Raises `Busy`."""
    found = kernel.mapping(_name(opening))
    if found is not None and found.uuid == _uuid(opening):
        Handle(found.name, found.name, found.uuid, found.number, next(iter(found.under), "")).close(opening.runner)


def _covered(below: str, size: int, recording: Recording, opening: Opening) -> Records:
    """What the files of metadata that are there and a new one will cover together. Raises OSError, `Unavailable`."""
    if not recording.fresh:
        try:
            _complete_all(below, size, recording.folder, opening)
            return Records.SINCE_CLEAN_CLOSE
        except (LukshookError, OSError) as error:
            opening.runner.note(f"# the record of earlier openings cannot be continued: {error}")
    era_metadata.forget(recording.folder)
    return Records.THIS_OPENING


def _complete_all(below: str, size: int, folder: Path, opening: Opening) -> None:
    """Make the lists of earlier openings whole. Raises OSError, `LukshookError`.

    None of their files is recorded in again: what a crash or its disk did to one must not stop a backup.
    """
    used = [(file, found) for file in era_metadata.files_in(folder) if (found := _loaded(file, size)) is not None]
    if not 0 < len(used) <= _MOST_FILES:
        raise Unavailable(f"there are {len(used)} files of earlier openings", hint=_WITHOUT)
    for file, _ in used:
        era_metadata.check(file, opening.runner)
    for file, found in used:
        _complete(file, below, min(found.blocks * BLOCK, size), opening)


def _loaded(file: Path, size: int) -> Superblock | None:
    """What is in *file*, if a target may have recorded in it; else it is removed. Raises as `superblock`."""
    found = era_metadata.superblock(file)
    if found is None:
        file.unlink()
    elif found.block != BLOCK or found.blocks > era_metadata.blocks_of(size):
        raise Unavailable(
            f"{file} is of {found.blocks} blocks of {found.block} bytes", hint="another image, or another lukshook"
        )
    return found


def _complete(file: Path, below: str, size: int, opening: Opening) -> None:
    """Load a target once: after a kill the list lacks what was written last, until the kernel has seen it again."""
    try:
        _create(file, below, size, opening)
    finally:
        _undo(opening)


def _create(file: Path, below: str, size: int, opening: Opening) -> None:
    """Load the target over *file*. The loop device under that goes with the target, and with us before that."""
    with _device_on(file, opening) as node:
        table = _table(node, below, size)
        opening.runner.run(change(*_CREATE, "--uuid", _uuid(opening), "--table", table, _name(opening)))


@contextmanager
def _device_on(file: Path, opening: Opening) -> Iterator[str]:
    """A loop device on *file* that disappears with its last user, so that not even kill -9 leaves one behind."""
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = loop_device.DIRECT_IO | loop_device.GOES_WITH_LAST_USER
        attached = loop_device.attach(descriptor, os.fspath(file), flags, opening)
    finally:
        os.close(descriptor)
    try:
        yield attached.node
    finally:
        os.close(attached.descriptor)


def _table(node: str, below: str, size: int) -> str:
    return f"0 {size // SECTOR} era {kernel.number(node)} {kernel.number(below)} {BLOCK // SECTOR}"


@frozen(eq=False, repr=False)
class _Status:
    """What the kernel says of a target: blocks of metadata in use and in all, and whether it has a snapshot."""

    used: int
    total: int
    snapshot: bool


def _status(name: str, runner: Runner) -> _Status:
    """`dmsetup status` (admin-guide/device-mapper/era.rst). Raises `Unavailable` for a target that does not record."""
    said = runner.run(read("dmsetup", "status", name)).out
    match = re.match(r"0 \d+ era \d+ (\d+)/(\d+) \d+ (-|\d+)", said)
    if match is None:
        raise Unavailable(
            f"the mapping {name} does not record what is written: {said[:80].strip(chr(10))}", hint=_WITHOUT
        )
    return _Status(int(match[1]), int(match[2]), match[3] != "-")


def _check_room(name: str, runner: Runner) -> _Status:
    """Check that the metadata are no more than half full: all of them can have a second copy. Raises `Unavailable`."""
    found = _status(name, runner)
    if found.used * 2 > found.total:
        raise Unavailable(
            f"the metadata of {name} have {found.used} of {found.total} blocks in use",
            hint="a clean close begins them again",
        )
    return found


def _check_target(handle: Handle, size: int, runner: Runner) -> None:
    """Compare the live table with what was asked for, and check its metadata. Raises `Refused`, `Unavailable`."""
    table = runner.run(read("dmsetup", "table", handle.name)).out
    wanted = rf"0 {size // SECTOR} era \d+:\d+ {handle.under} {BLOCK // SECTOR} ?\n?"
    if not handle.inspect() or not re.fullmatch(wanted, table):
        raise Refused(f"the kernel maps {handle.name} otherwise: {table[:80]}", hint="is it being replaced?")
    _check_room(handle.name, runner)


def limit_discards(number: str, most: int) -> None:
    """Let no discard of more than *most* bytes through device *number*, and read that back.

    Raises OSError, `Unavailable`.
    """
    if int(kernel.value(_limit_of(number))) > most:
        _limit_of(number).write_bytes(str(most).encode())
    _check_limit(number, most)


def _check_limit(number: str, most: int) -> None:
    """Check that the kernel lets no longer discards through. Raises OSError, `Unavailable`."""
    found = int(kernel.value(_limit_of(number)))
    if found > most:
        raise Unavailable(f"the kernel lets discards of {found} bytes through", hint=_WITHOUT)


def _limit_of(number: str) -> Path:
    return Path(f"/sys/dev/block/{number}/queue/discard_max_bytes")


def _folder(handle: Handle) -> Path:
    """Where the metadata lie. Raises `Unavailable`."""
    if not handle.folder:
        raise Unavailable(f"the record of {handle.name} is not known", hint=_WITHOUT)
    return Path(handle.folder)


def _written(handle: Handle, runner: Runner) -> list[tuple[int, int]]:
    """The blocks in all files of metadata. Raises OSError, `LukshookError`."""
    folder = _folder(handle)
    _check_limit(handle.number, handle.longest_discard)
    node = _metadata_node(handle, runner)
    live = loops.backing(node)
    blocks: list[tuple[int, int]] = []
    met = False
    for file in era_metadata.files_in(folder):
        found = file.stat()
        if loops.Backing(found.st_dev, found.st_ino) == live:
            met = True
            with _snapshot(handle.name, runner):
                blocks += era_metadata.written_live(file, node, runner)
        elif era_metadata.superblock(file) is not None:
            blocks += era_metadata.written(file, runner)
    if not met:
        raise Unavailable(f"{handle.name} records in a file that is not in {folder}", hint=_WITHOUT)
    return blocks


def _metadata_node(handle: Handle, runner: Runner) -> str:
    """The loop device under the metadata of a target that stands. Raises `Unavailable`."""
    table = runner.run(read("dmsetup", "table", handle.name)).out
    match = re.match(r"0 \d+ era (\d+:\d+) ", table)
    if match is None or not handle.inspect():
        raise Unavailable(f"the mapping {handle.name} does not record what is written", hint=_WITHOUT)
    return f"/dev/{Path(f'/sys/dev/block/{match[1]}').resolve().name}"


@contextmanager
def _snapshot(name: str, runner: Runner) -> Iterator[None]:
    """Hold a copy of the metadata as they are now; taking it ends the current era, so that is in it too."""
    if _check_room(name, runner).snapshot:  # of a run that was killed
        runner.run(_message(name, "drop_metadata_snap"))
    runner.run(_message(name, "take_metadata_snap"))
    try:
        yield
    finally:
        with suppress(LukshookError):  # the next one drops it
            runner.run(_message(name, "drop_metadata_snap"))


def _message(name: str, text: str) -> Command:
    return change("dmsetup", "message", name, "0", text)


def grow_commands(handle: Handle, below: str) -> tuple[Command, ...]:
    """What a person would type to have the target as large as the device *below*."""
    file = era_metadata.following(_folder(handle))
    return (_typed('dmsetup load "$3" --table', 'dmsetup resume "$3"', below, file, handle.name),)


def grow(handle: Handle, below: str, opening: Opening) -> None:
    """Have the target as large as the device *below* is now; its users do not notice.

    It records in a new file from then on: over the old one a second target would begin with what the first had written
    when the table was loaded. Where that cannot be had it records no more. Raises what the kernel refuses.
    """
    size = kernel.block_size(below)
    try:
        _record_larger(handle, below, size, opening)
    except (LukshookError, OSError) as error:
        why = era_metadata.reason(error) if isinstance(error, OSError) else error.message
        era_metadata.forget(_folder(handle))
        _swap(handle, f"0 {size // SECTOR} linear {kernel.number(below)} 0", opening.runner)
        opening.warn(f"volume {opening.volume}: nothing records any more what is written ({why}); {_WITHOUT}")


def _record_larger(handle: Handle, below: str, size: int, opening: Opening) -> None:
    """Go on over a new file. Raises OSError, `LukshookError`, also where it may be half done."""
    _metadata_node(handle, opening.runner)
    file = era_metadata.following(_folder(handle))
    era_metadata.make(file, size)
    for mapping in kernel.mappings():  # a new table has no limit at first, so nothing longer may come from above
        if handle.number in mapping.under:
            limit_discards(mapping.number, handle.longest_discard)
    with _device_on(file, opening) as node:
        _swap(handle, _table(node, below, size), opening.runner)
    limit(handle)
    _check_target(handle, size, opening.runner)


def limit(handle: Handle) -> None:
    """Let no longer discards through than are seen. Raises `Unavailable`.

    To be called before the mapping above has its table replaced: a growing that was killed may have left none.
    """
    try:
        limit_discards(handle.number, handle.longest_discard)
    except OSError as error:
        raise Unavailable(
            f"discards through {handle.name} cannot be limited: {error.strerror}", hint=_WITHOUT
        ) from error


def _swap(handle: Handle, table: str, runner: Runner) -> None:
    """Replace the table, in one step for what is written meanwhile: resuming suspends for the moment that it takes."""
    runner.run(change("dmsetup", "load", "--table", table, handle.name))
    runner.run(change("dmsetup", "resume", "--verifyudev", handle.name))

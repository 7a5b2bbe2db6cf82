"""Headers outside an image: in a file of ours, and from there onto an image in an order that survives a power cut."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attrs import evolve

from lukshook.errors import NotSafe, Refused
from lukshook.luks import header, luks1, luks2
from lukshook.luks.allowlist import Read
from lukshook.luks.header import Copy, Header
from lukshook.system import files
from lukshook.system.digest import sha256

#: Where the UUID stands in both versions of LUKS; the others in version 2 (LUKS2 On-Disk Format 1.1.1).
_UUID = slice(168, 208)
_SEQUENCE = slice(16, 24)
_CHECKSUM = slice(448, 512)
_METADATA_SIZE = slice(8, 16)
_MAGIC = slice(0, 6)
_OFFSET = slice(256, 264)
_ZEROES = 1 << 20
_MIRRORED = 1 << 16


def write(copy: Copy, file: Path) -> None:
    """Keep *copy* in *file*, mode 0600 and sparse, so that a power cut leaves the old content or the new."""

    def fill(descriptor: int) -> None:
        os.truncate(descriptor, copy.size)
        for offset, data in copy.extents:
            _put(descriptor, offset, data)

    files.write_whole(file, fill, durable=True)


def empty(file: Path, size: int) -> None:
    """Make *file* an empty place for a header of *size* bytes, which only this user can read."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(descriptor, size)
    finally:
        os.close(descriptor)


def load(file: Path) -> Copy:
    """The header in *file*. Raises `Refused` when it is none, or damaged; OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(
                f"{file} is not a regular file", hint="lukshook stores the header in a file: move away what is there"
            )
        return header.copy(descriptor)
    finally:
        os.close(descriptor)


def is_there(file: Path) -> bool:
    """Whether a regular file lies at *file*, where we keep a header."""
    try:
        return stat.S_ISREG(os.lstat(file).st_mode)
    except OSError:
        return False


def misplaced(file: Path) -> str:
    """That something else than a regular file lies where we keep a header, in words, or ""."""
    try:
        return "" if stat.S_ISREG(file.lstat().st_mode) else f"{file} is not a regular file"
    except OSError:
        return ""


def check_place(file: Path) -> None:
    """Check that a header can be kept in *file*, before anything is changed. Raises `Refused`."""
    if misplaced(file):
        raise Refused(misplaced(file), hint="lukshook stores the header there: move away what is there")


def sequence(copy: Copy) -> int:
    """The sequence number of a LUKS2 header."""
    return int.from_bytes(copy.extents[0][1][_SEQUENCE], "big")


def renumber(copy: Copy, judged: Header, number: int) -> Copy:
    """*copy* with that sequence number.

    Several steps of cryptsetup raise it by as many; on the store they are one step, and a host that finds the two
    metadata copies one step apart knows it for a cut-off write.
    """
    if judged.type == "luks1":
        return copy
    areas = {slot.area_offset for slot in judged.slots}
    return evolve(
        copy, extents=tuple((at, data if at in areas else renumbered(data, number)) for at, data in copy.extents)
    )


def renumbered(metadata: bytes | bytearray, number: int) -> bytes:
    """One metadata copy of LUKS2 with that sequence number, and the checksum that fits."""
    changed = bytearray(metadata)
    changed[_SEQUENCE] = number.to_bytes(8, "big")
    changed[_CHECKSUM] = bytes(64)
    changed[_CHECKSUM] = sha256(changed).digest().ljust(64, b"\0")
    return bytes(changed)


def moved(metadata: bytes, offset: int) -> bytes:
    """One metadata copy of LUKS2 as it stands at *offset*, where the other one is: the first at 0."""
    changed = bytearray(metadata)
    changed[_MAGIC] = luks2.SECOND_MAGIC if offset else luks2.MAGIC
    changed[_OFFSET] = offset.to_bytes(8, "big")
    return renumbered(changed, int.from_bytes(changed[_SEQUENCE], "big"))


def bears(descriptor: int, copy: Copy) -> bool:
    """Whether the image has the UUID of *copy* where one of its metadata copies begins, whatever else is broken."""
    wanted = copy.extents[0][1][_UUID]
    starts = {0, len(copy.extents[0][1])}
    return any(os.pread(descriptor, len(wanted), at + _UUID.start) == wanted for at in starts)


def uuids(descriptor: int) -> set[str]:
    """The UUIDs of all LUKS headers whose beginning can be read in an image, sane or not."""
    found = set()
    for start in (0, *header.SECOND_COPIES):
        data = os.pread(descriptor, _UUID.stop, start)
        if data[:6] in header.MAGICS:
            found.add(data[_UUID].partition(b"\0")[0].decode("ascii", errors="backslashreplace"))
    return found


def heads(read: Read) -> frozenset[str]:
    """A digest of each whole metadata copy of a LUKS header, whatever it says: no two headers have one in common.

    Key slots and the digest of the volume key are in it with random salts. Empty where both copies are damaged.
    """
    start = read(0, luks1.LENGTH)
    if start[:8] == header.MAGICS[0] + b"\0\1":
        return frozenset([sha256(start).hexdigest()])
    try:
        return frozenset(sha256(copy.data).hexdigest() for copy in luks2.find(read))
    except Refused:
        return frozenset()


def newest(read: Read) -> int:
    """The highest sequence number of whole metadata copies of LUKS2, 0 where there is none. Each write raises it."""
    try:
        return max(copy.sequence for copy in luks2.find(read))
    except Refused:
        return 0


def install(copy: Copy, judged: Header, descriptor: int) -> None:
    """Write *copy* onto an image: key slots that are not in use yet first, then the metadata, one copy after the other.

    Cut off anywhere, the image has the old header or the new one. Raises `NotSafe`.
    """
    areas = {slot.area_offset for slot in judged.slots}
    metadata = [(offset, data) for offset, data in copy.extents if offset not in areas]
    material = [(offset, data) for offset, data in copy.extents if offset in areas]
    try:
        for step in (material, *([part] for part in metadata)):
            for offset, data in step:
                if os.pread(descriptor, len(data), offset) != data:
                    _put(descriptor, offset, data)
            os.fsync(descriptor)
    except OSError as error:
        raise NotSafe(
            f"the header could not be written: {error.strerror}",
            hint="it is saved on this host; when the store works again, run the same command again",
        ) from error


def install_first(copy: Copy, judged: Header, descriptor: int) -> None:
    """Write *copy* onto an image that has no header yet: all that lies in its place is overwritten with zeroes first.

    Raises `NotSafe`.
    """
    try:
        for offset in range(0, copy.size, _ZEROES):
            length = min(_ZEROES, copy.size - offset)
            if any(os.pread(descriptor, length, offset)):
                _put(descriptor, offset, bytes(length))
    except OSError as error:
        raise NotSafe(f"the header could not be written: {error.strerror}", hint="does the store work?") from error
    install(copy, judged, descriptor)


def mirror(data: bytes, before: bytes, descriptor: int) -> None:
    """Write *data*, a whole LUKS2 header whatever it says, onto an image: areas first, then each metadata copy.

    *before*: what was written there last, or nothing where that is not known. Raises OSError.
    """
    size = int.from_bytes(data[_METADATA_SIZE], "big")
    for begin, end in ((2 * size, len(data)), (0, size), (size, 2 * size)):
        for offset in range(begin, end, _MIRRORED):
            part = slice(offset, min(offset + _MIRRORED, end))
            if data[part] != before[part]:
                _put(descriptor, offset, data[part])
        os.fsync(descriptor)


def clear_rest(copy: Copy, descriptor: int) -> None:
    """Overwrite with zeroes what lies between the parts of *copy* on an image that has it. Raises `NotSafe`."""
    begins = [offset + len(data) for offset, data in copy.extents]
    ends = [*(offset for offset, _ in copy.extents[1:]), copy.size]
    try:
        for begin, end in zip(begins, ends, strict=True):
            for offset in range(begin, end, _ZEROES):
                _put(descriptor, offset, bytes(min(_ZEROES, end - offset)))
        os.fsync(descriptor)
    except OSError as error:
        raise NotSafe(
            f"the old volume key could not be overwritten: {error.strerror}", hint="run the same command again"
        ) from error


def wipe(descriptor: int, areas: list[tuple[int, int]], copy: Copy) -> None:
    """Overwrite *areas*, (offset, length), with noise, but for those that *copy* has something in. Raises `NotSafe`."""
    used = [(offset, offset + len(data)) for offset, data in copy.extents]
    try:
        for offset, length in areas:
            end = offset + length
            if end <= copy.size and not any(offset < stop and start < end for start, stop in used):
                _put(descriptor, offset, os.urandom(length))
        os.fsync(descriptor)
    except OSError as error:
        raise NotSafe(
            f"a removed key slot could not be overwritten: {error.strerror}", hint="run the command again"
        ) from error


def _put(descriptor: int, offset: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written

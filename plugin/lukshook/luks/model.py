"""What a header is to the rest of lukshook: a copy of its bytes, and what they say once judged."""

from __future__ import annotations

import fcntl
import os

from attrs import frozen

#: Linux fixes these numbers in include/uapi/linux/fcntl.h; Python's `fcntl` has the same names.
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: Seconds in which a key slot opens, or does not; argon2id as made on a fast desktop takes some on a small box.
UNLOCK_SECONDS = 120.0


@frozen(repr=False)
class Copy:
    """The bytes of a header, read once, so that they cannot be replaced between check and use.

    *size* is the length of the header area in bytes, which is where the data begins. *extents* are (offset,
    bytes), sorted and not overlapping; what lies between them was not read.
    """

    size: int
    extents: tuple[tuple[int, bytes], ...]

    def read(self, offset: int, length: int) -> bytes:
        """The *length* bytes at *offset*, or none where the copy does not hold all of them."""
        for start, data in self.extents:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        return b""

    def memfd(self, length: int = 0) -> int:
        """A new descriptor of a file in memory that holds exactly this copy and can never be changed.

        It is *length* bytes long if the header is shorter, and sparse where there is nothing of the copy; closed on
        exec unless it is passed on. cryptsetup takes it as a detached header (`--header /proc/self/fd/N`). Where the
        copy holds one of the two LUKS2 metadata copies, cryptsetup tries to write the other, cannot, and continues
        (seen with 2.6.1). The caller closes it.
        """
        fd = os.memfd_create("lukshook-header", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, max(self.size, length))
            for offset, data in self.extents:
                _write_all(fd, data, offset)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _write_all(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


@frozen(repr=False)
class Digest:
    """What tells whether a volume key is the right one: PBKDF2 over it. *salt* and *value* are hex."""

    hash: str
    iterations: int
    salt: str
    value: str


@frozen(repr=False)
class Slot:
    """A key slot: the volume key, encrypted under a passphrase.

    *kdf* is "pbkdf2", "argon2i" or "argon2id"; *time* its iterations or passes, *memory* in KiB and *cpus*
    are 0 for pbkdf2, *hash* is empty for argon2. *salt* is hex. *area_offset* and *area_size* are in bytes;
    *material* is the SHA-256, in hex, of the bytes of the area that cryptsetup reads. *priority* is 0
    (ignored unless it is asked for), 1 (normal) or 2 (tried first).
    """

    number: int
    key_bytes: int
    cipher: str
    kdf: str
    hash: str
    time: int
    memory: int
    cpus: int
    salt: str
    af_hash: str
    area_offset: int
    area_size: int
    priority: int = 1
    material: str = ""

    @property
    def material_bytes(self) -> int:
        """Bytes of the area that hold the split key: key size times 4000 stripes."""
        return self.key_bytes * 4000


@frozen(repr=False)
class Token:
    """Our LUKS2 token: *macs* are (key id, MAC), both hex, sorted."""

    number: int
    macs: tuple[tuple[str, str], ...]


@frozen(repr=False)
class Header:
    """What a judged header says. *offset* is where the data begins, in bytes.

    *copies* is 2, or 1 for a LUKS2 header of which one metadata copy is damaged or one step behind, as a
    power cut leaves it: it can be opened, and any change that cryptsetup makes repairs it. LUKS1 has one only.
    """

    type: str
    uuid: str
    cipher: str
    key_bytes: int
    sector_size: int
    offset: int
    digest: Digest
    slots: tuple[Slot, ...]
    tokens: tuple[Token, ...] = ()
    copies: int = 1

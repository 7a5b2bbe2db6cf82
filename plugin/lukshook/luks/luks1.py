"""LUKS1: 592 bytes of binary header, then the key slots' areas.

The format is in the LUKS1 On-Disk Format Specification 1.2.3 and in cryptsetup's lib/luks1/luks.h.
"""

from __future__ import annotations

import struct

from lukshook.errors import Refused
from lukshook.luks import allowlist
from lukshook.luks.model import Digest, Header, Slot

#: magic, version, cipher, mode, hash, payload offset, key bytes, digest, salt, iterations, UUID
_HEADER = struct.Struct(">6s H 32s 32s 32s I I 20s 32s I 40s")
#: active, iterations, salt, key material offset, stripes
_SLOT = struct.Struct(">I I 32s I I")
_SLOTS = 8
LENGTH = _HEADER.size + _SLOTS * _SLOT.size
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
_SECTOR = 512


def parse(data: bytes) -> Header:
    """The header whose first 592 bytes are *data*, its slots without their material. Raises `Refused`."""
    if len(data) < LENGTH:
        raise Refused("the image ends inside its LUKS header", hint=allowlist.HINT)
    _, _, name, mode, spec, payload, key_bytes, digest, salt, iterations, uuid = _HEADER.unpack_from(data)
    allowlist.cipher(f"{allowlist.text(name, 'cipher')}-{allowlist.text(mode, 'cipher mode')}", "data cipher")
    hash_ = allowlist.one_of(allowlist.text(spec, "hash"), "hash", allowlist.HASHES)
    key_bytes = allowlist.key_bytes(key_bytes, "key size in bytes")
    offset = allowlist.number(payload * _SECTOR, "data offset in bytes", (1, allowlist.MAX_OFFSET))
    allowlist.aligned(offset, "data offset in bytes")
    allowlist.number(iterations, "digest iterations", allowlist.ITERATIONS)
    return Header(
        type="luks1",
        uuid=allowlist.uuid(uuid),
        cipher=allowlist.CIPHER,
        key_bytes=key_bytes,
        sector_size=_SECTOR,
        offset=offset,
        digest=Digest(hash_, iterations, salt.hex(), digest.hex()),
        slots=_slots(data, key_bytes, hash_, offset),
    )


def _slots(data: bytes, key_bytes: int, hash_: str, end: int) -> tuple[Slot, ...]:
    """The enabled key slots. Those that are not are bounded too: a later change would write there."""
    areas, slots = {}, []
    for n in range(_SLOTS):
        active, iterations, salt, sector, stripes = _SLOT.unpack_from(data, _HEADER.size + n * _SLOT.size)
        allowlist.exactly(stripes, f"stripes of key slot {n}", allowlist.STRIPES)
        areas[n] = (sector * _SECTOR, key_bytes * allowlist.STRIPES)
        if active == _ENABLED:
            allowlist.number(iterations, f"iterations of key slot {n}", allowlist.ITERATIONS)
            kdf = ("pbkdf2", hash_, iterations, 0, 0, salt.hex())
            slots.append(Slot(n, key_bytes, allowlist.CIPHER, *kdf, hash_, *areas[n]))
        elif active != _DISABLED:
            allowlist.refuse(f"key slot {n} is neither enabled nor disabled")
    # cryptsetup 1.0 put the first area right behind the header's two sectors.
    allowlist.inside(areas, (2 * _SECTOR, end))
    if not slots:
        allowlist.refuse("key slots are all empty: nothing can open it")
    return tuple(slots)

"""LUKS1: 592 bytes of binary header, then the key slots' areas.

The format is in the LUKS1 On-Disk Format Specification 1.2.3 and in cryptsetup's lib/luks1/luks.h.
"""

from __future__ import annotations

import struct

from lukshook.errors import Refused
from lukshook.header import rules
from lukshook.header.model import Digest, Header, Slot

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
        raise Refused("the image ends inside its LUKS header", hint=rules.HINT)
    _, _, name, mode, spec, payload, key_bytes, digest, salt, iterations, uuid = _HEADER.unpack_from(data)
    rules.cipher(f"{rules.text(name, 'cipher')}-{rules.text(mode, 'cipher mode')}", "data cipher")
    hash_ = rules.one_of(rules.text(spec, "hash"), "hash", rules.HASHES)
    key_bytes = rules.key_bytes(key_bytes, "key size in bytes")
    offset = rules.number(payload * _SECTOR, "data offset in bytes", (1, rules.MAX_OFFSET))
    rules.aligned(offset, "data offset in bytes")
    rules.number(iterations, "digest iterations", rules.ITERATIONS)
    return Header(
        type="luks1",
        uuid=rules.uuid(uuid),
        cipher=rules.CIPHER,
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
        rules.exactly(stripes, f"stripes of key slot {n}", rules.STRIPES)
        areas[n] = (sector * _SECTOR, key_bytes * rules.STRIPES)
        if active == _ENABLED:
            rules.number(iterations, f"iterations of key slot {n}", rules.ITERATIONS)
            kdf = ("pbkdf2", hash_, iterations, 0, 0, salt.hex())
            slots.append(Slot(n, key_bytes, rules.CIPHER, *kdf, hash_, *areas[n]))
        elif active != _DISABLED:
            rules.refuse(f"key slot {n} is neither enabled nor disabled")
    # cryptsetup 1.0 put the first area right behind the header's two sectors.
    rules.inside(areas, (2 * _SECTOR, end))
    if not slots:
        rules.refuse("key slots are all empty: nothing can open it")
    return tuple(slots)

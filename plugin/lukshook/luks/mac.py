"""A header bound to a key: a MAC that only who has the key can make, kept in a LUKS2 token.

It lets a host that knows nothing but the key tell a genuine header from a forged one. It does not tell an
older genuine header from the latest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import asdict

from lukshook.errors import Refused
from lukshook.luks.luks2 import TOKEN_TYPE
from lukshook.luks.model import Header, Slot
from lukshook.luks.pins import slot_pins
from lukshook.system import digest
from lukshook.system.secret import Secret

_MAC_KEY = b"lukshook header mac"
_KEY_ID = b"lukshook key id"


def key_id(key: Secret) -> str:
    """The name of *key* among the MACs: 16 hex digits that tell nothing of a random key."""
    return _hkdf(key, _KEY_ID)[:8].hex()


def mac(header: Header, slot: int, key: Secret) -> str:
    """The MAC, in hex, of UUID, data segment, digest and the key slot numbered *slot*, which *key* opens.

    Other key slots are left out, so that another person's can come and go without making this one stale.
    Raises `Refused` where there is no such slot.
    """
    for candidate in header.slots:
        if candidate.number == slot:
            return _mac(header, candidate, key)
    raise Refused(f"the header has no key slot {slot}", hint="lukshook key test NAME says which there are")


def token(macs: Mapping[str, str]) -> str:
    """The token that holds *macs*, MAC by key id, as JSON for `cryptsetup token import`."""
    return json.dumps({"type": TOKEN_TYPE, "keyslots": [], "macs": dict(sorted(macs.items()))})


def find_macs(header: Header) -> dict[str, str]:
    """The MACs of *header* by key id; none in LUKS1."""
    return {name: value for found in header.tokens for name, value in found.macs}


def verify_mac(header: Header, key: Secret) -> bool | None:
    """Whether the MAC of *key* fits one of the key slots; None where *header* has no MAC of this key."""
    found = find_macs(header).get(key_id(key))
    if found is None:
        return None
    return any(digest.same(found, _mac(header, slot, key)) for slot in header.slots)


def _mac(header: Header, slot: Slot, key: Secret) -> str:
    bound = {
        "type": header.type,
        "uuid": header.uuid,
        "segment": {
            "cipher": header.cipher,
            "key_bytes": header.key_bytes,
            "sector_size": header.sector_size,
            "offset": header.offset,
        },
        "digest": asdict(header.digest),
        "slot": {"number": slot.number, **slot_pins(slot)},
    }
    message = json.dumps(bound, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digest.hmac(_hkdf(key, _MAC_KEY), message.encode()).hex()


def _hkdf(key: Secret, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256 (RFC 5869) without salt: extract, then the first block of expand."""
    extracted = digest.hmac(bytes(32), key.reveal())
    return digest.hmac(extracted, info + b"\x01")

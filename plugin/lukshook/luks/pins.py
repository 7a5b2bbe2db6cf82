"""What is kept locally of a header that was ours, and the comparison with it.

Only what has a meaning: a hash over the raw header would change whenever cryptsetup rewrites it.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import asdict

from lukshook.errors import Refused
from lukshook.luks.allowlist import show
from lukshook.luks.model import Header, Slot

_HINT = "if you changed it yourself, elsewhere: lukshook trust NAME; otherwise do not enter the key"

_VOLUME = {
    "type": "type",
    "uuid": "UUID",
    "cipher": "data cipher",
    "key_bytes": "key size in bytes",
    "sector_size": "sector size",
    "offset": "data offset in bytes",
}
_DIGEST = {"hash": "hash", "iterations": "iterations", "salt": "salt", "value": "value"}
_SLOT = {
    "key_bytes": "key size in bytes",
    "cipher": "cipher",
    "kdf": "key derivation",
    "hash": "hash",
    "time": "iterations",
    "memory": "memory cost in KiB",
    "cpus": "threads",
    "salt": "salt",
    "af_hash": "splitter hash",
    "area_offset": "offset",
    "area_size": "size",
    "priority": "priority",
    "material": "key material",
}


def slot_pins(slot: Slot) -> dict[str, str | int]:
    """What is kept of a key slot; its number is its name."""
    return {name: value for name, value in asdict(slot).items() if name in _SLOT}


def pins(header: Header) -> dict[str, object]:
    """What to keep of *header*: type, UUID, cipher, geometry, digest, key slots with their material hashed.

    Strings, numbers and objects only, so that it survives JSON. The tokens and the sequence number are not in
    it.
    """
    return {
        **{name: getattr(header, name) for name in _VOLUME},
        "digest": asdict(header.digest),
        "slots": {str(slot.number): slot_pins(slot) for slot in header.slots},
    }


def are_whole(pinned: Mapping[str, object]) -> bool:
    """Whether *pinned* has the form that `pins` gives: a damaged file must not count as a header without slots."""
    slots = [value if isinstance(value, Mapping) else {} for value in _object(pinned, "slots").values()]
    plain = [*(pinned.get(name) for name in _VOLUME), *_object(pinned, "digest").values()]
    areas = [slot.get(name) for slot in slots for name in ("area_offset", "area_size")]
    return (
        isinstance(pinned.get("slots"), Mapping)
        and set(_DIGEST) <= set(_object(pinned, "digest"))
        and all(type(number) is int for number in (pinned.get("offset"), *areas))
        and all(type(value) in (int, str) for value in (*plain, *(one for slot in slots for one in slot.values())))
    )


def same_volume_key(pinned: Mapping[str, object], header: Header) -> bool:
    """Whether *header* differs from what *pinned* says in key slots alone.

    The digest binds the volume key, so that nobody without that key can make a slot for it: an older header is one with
    other slots.
    """
    now = pins(header)
    plain = all(pinned.get(name) == now[name] for name in _VOLUME)
    return plain and _object(pinned, "digest") == _object(now, "digest")


def compare(pinned: Mapping[str, object], header: Header) -> None:
    """Raise `Refused` naming the first thing in which *header* is not what *pinned*, from `pins`, says."""
    now = pins(header)
    _same(pinned, now, _VOLUME, "the header's {}")
    _same(_object(pinned, "digest"), _object(now, "digest"), _DIGEST, "the {} of the header's digest")
    before, after = _object(pinned, "slots"), _object(now, "slots")
    for number in sorted({*before, *after}, key=lambda text: (len(text), text)):
        if number not in before:
            raise Refused(f"key slot {show(number)} of the header is new", hint=_HINT)
        if number not in after:
            raise Refused(f"key slot {show(number)} of the header is gone", hint=_HINT)
        _same(_object(before, number), _object(after, number), _SLOT, f"the {{}} of key slot {number}")


def _object(of: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = of.get(name)
    return value if isinstance(value, Mapping) else {}


def _same(pinned: Mapping[str, object], now: Mapping[str, object], names: Mapping[str, str], what: str) -> None:
    for name, words in names.items():
        if pinned.get(name) != now.get(name):
            was, is_ = show(pinned.get(name)), show(now.get(name))
            raise Refused(f"{what.format(words)} was {was} and is {is_}", hint=_HINT)

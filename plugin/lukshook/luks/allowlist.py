"""Allow-list validators: each takes untrusted header data and returns a checked value.

Every function raises `Refused` with a message in one line that a person understands; what it shows of the
header is clipped and printable.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NoReturn

from lukshook.errors import Refused
from lukshook.system.text import one_line

#: Gives the bytes at an offset, fewer where there are no more.
Read = Callable[[int, int], bytes]

HINT = "the image was changed or damaged on the store; do not enter the key"

_RENAME = "if you set that name yourself, set a different one: cryptsetup config --label NAME --subsystem NAME IMAGE"

#: The one data cipher that is taken: the default of cryptsetup since 1.6.0.
CIPHER = "aes-xts-plain64"
#: AES-128 and AES-256; XTS needs two keys.
KEY_BYTES = (32, 64)
#: Hashes of PBKDF2, of the anti-forensic splitter and of the digest, with their length in bytes.
HASHES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
#: Pieces a key is split into, the only number there is (LUKS_STRIPES in cryptsetup's lib/luks1/luks.h).
STRIPES = 4000
#: PBKDF2: from cryptsetup's minimum (NIST SP 800-132) to four times what it picked in its default of 2 s on a
#: processor with instructions for SHA-256 (11.5 million, cryptsetup 2.0.2).
ITERATIONS = (1000, 50_000_000)
#: Argon2 memory in KiB: from the minimum of cryptsetup to its default maximum of 1 GiB.
MEMORY = (32, 1024 * 1024)
#: Argon2 passes times memory in KiB: 64 GiB, a minute at 1 GiB a second.
ARGON2_WORK = 64 * 1024 * 1024
CPUS = (1, 8)
#: Salts of key slots and digests are 32 bytes (LUKS_SALTSIZE).
SALT_BYTES = 32
#: Length of the digest in LUKS1, and in LUKS2 headers that were converted from it.
SHORT_DIGEST_BYTES = 20
#: Everything in a header lies on multiples of this.
ALIGNMENT = 4096
#: Where data may begin at the latest; the largest area for key slots is 128 MiB (LUKS2_MAX_KEYSLOTS_SIZE).
MAX_OFFSET = 256 * 1024 * 1024

#: How often a header was changed, at most: once a second for 136 years. cryptsetup and we count on from there, and the
#: field has 64 bits: at its end nothing could be changed.
MAX_SEQUENCE = 2**32

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEXT = re.compile(rb"[ -~]*\0+")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


def refuse(fault: str, hint: str = HINT) -> NoReturn:
    """Raise `Refused` with "the header's *fault*"."""
    raise Refused(f"the header's {fault}", hint=hint)


def show(value: object) -> str:
    """*value* in at most 40 printable characters."""
    shown = one_line(str(value)[:41])
    return f"{shown[:37]}..." if len(shown) > 40 else shown


def members(value: object, what: str, names: Collection[str], optional: Collection[str] = ()) -> dict[str, object]:
    """*value* as an object that has all of *names*, perhaps some of *optional*, and nothing else."""
    if not isinstance(value, dict):
        refuse(f"{what} is not an object")
    missing = sorted(set(names) - value.keys())
    if missing:
        refuse(f"{what} lacks {missing[0]}")
    unknown = sorted(value.keys() - set(names) - set(optional))
    if unknown:
        refuse(f"{what} has something unknown: {show(unknown[0])}")
    return value


def numbered(value: object, what: str, most: int) -> dict[int, object]:
    """*value* as an object whose names are the numbers 0 to *most* - 1."""
    if not isinstance(value, dict):
        refuse(f"{what}s are not an object")
    for name in value:
        if not _DECIMAL.fullmatch(name) or int(name) >= most:
            refuse(f"{what} number {show(name)} is not below {most}")
    return {int(name): value[name] for name in sorted(value, key=int)}


def number(value: object, what: str, bounds: tuple[int, int]) -> int:
    """*value* as a whole number within *bounds*, both included."""
    if type(value) is not int:
        refuse(f"{what} is not a whole number")
    low, high = bounds
    if not low <= value <= high:
        refuse(f"{what} is {show(value)}, not between {low} and {high}")
    return value


def decimal(value: object, what: str, bounds: tuple[int, int]) -> int:
    """*value* as a number written as a string of digits, as LUKS2 writes those of 64 bits."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        refuse(f"{what} is not a number")
    return number(int(value), what, bounds)


def aligned(value: int, what: str) -> int:
    """*value*, a multiple of 4096."""
    if value % ALIGNMENT:
        refuse(f"{what} is {value}, not a multiple of {ALIGNMENT}")
    return value


def exactly(value: object, what: str, expected: object) -> None:
    """*value* is *expected*, of the same type."""
    if type(value) is not type(expected) or value != expected:
        refuse(f"{what} is {show(value)}, not {show(expected)}")


def one_of(value: object, what: str, allowed: Collection[str]) -> str:
    """*value*, a string among *allowed*."""
    if not isinstance(value, str) or value not in allowed:
        refuse(f"{what} is {show(value)}, which is not among {', '.join(allowed)}")
    return value


def cipher(value: object, what: str) -> str:
    """*value*, the one cipher that is taken. Null and weak ones are what a forger writes first."""
    if isinstance(value, str) and "null" in value:
        refuse(f"{what} is {show(value)}: data would be written in the clear")
    if value != CIPHER:
        refuse(f"{what} is {show(value)}, not {CIPHER}")
    return CIPHER


def key_bytes(value: object, what: str) -> int:
    """*value*, the length of an XTS key in bytes."""
    size = number(value, what, (min(KEY_BYTES), max(KEY_BYTES)))
    if size not in KEY_BYTES:
        refuse(f"{what} is {size}, not 32 or 64")
    return size


def base64(value: object, what: str, lengths: Collection[int]) -> str:
    """*value* as hex: canonical base64 of as many bytes as *lengths* allows."""
    try:
        decoded = binascii.a2b_base64(value, strict_mode=True) if isinstance(value, str) else b""
    except ValueError:
        decoded = b""
    if binascii.b2a_base64(decoded, newline=False).decode() != value or len(decoded) not in lengths:
        refuse(f"{what} is not base64 of {' or '.join(map(str, sorted(lengths)))} bytes")
    return decoded.hex()


def text(field: bytes, what: str) -> str:
    """A field of a binary header as text: printable ASCII with nothing but NULs behind it, at least one."""
    if not _TEXT.fullmatch(field):
        found = field.rstrip(b"\0").decode(errors="surrogateescape")
        if found.isprintable() and not found.isascii():
            refuse(f"{what} has letters beyond ASCII: {show(found)}", hint=_RENAME)
        refuse(f"{what} is not text: {show(found)}")
    return field.rstrip(b"\0").decode("ascii")


def uuid(field: bytes) -> str:
    """A UUID in its one canonical form."""
    value = text(field, "UUID")
    if not _UUID.fullmatch(value):
        refuse(f"UUID is malformed: {show(value)}")
    return value


def inside(areas: Mapping[int, tuple[int, int]], bounds: tuple[int, int]) -> None:
    """*areas*, (offset, length) by key slot, lie within *bounds*, and no two of them overlap."""
    for slot, (offset, length) in areas.items():
        if offset < bounds[0] or offset + length > bounds[1]:
            refuse(f"key slot {slot} lies outside the area for key slots")
    _apart(sorted((offset, length, slot) for slot, (offset, length) in areas.items()))


def _apart(areas: Iterable[tuple[int, int, int]]) -> None:
    end, before = 0, 0
    for offset, length, slot in areas:
        if offset < end:
            refuse(f"key slots {before} and {slot} overlap")
        end, before = offset + length, slot

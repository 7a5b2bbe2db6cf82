"""LUKS2: two copies of binary header and JSON, then the key slots' areas.

The format is in the LUKS2 On-Disk Format Specification 1.1.1 and in cryptsetup's lib/luks2/luks2.h.
"""

from __future__ import annotations

import json
import re
import struct
from typing import NoReturn

from attrs import evolve, frozen

from lukshook.errors import Refused
from lukshook.luks import allowlist
from lukshook.luks.allowlist import Read, refuse
from lukshook.luks.model import Digest, Header, Slot, Token
from lukshook.system.digest import sha256

#: magic, version, size, sequence number, label, checksum algorithm, salt, UUID, subsystem, offset, padding,
#: checksum
_BINARY = struct.Struct(">6s H Q Q 48s 32s 64s 40s 48s Q 184s 64s")
#: Bytes of the binary part of a metadata copy, in front of the JSON.
BINARY_LENGTH = 4096
_CHECKSUM = slice(448, 512)
MAGIC, SECOND_MAGIC = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
#: Sizes a metadata copy has, 16 KiB to 4 MiB; the second begins where the first ends (LUKS2_HDR2_OFFSETS).
SIZES = tuple(16384 << power for power in range(9))
_OBJECTS = 32
#: 32 key slots and our token need less than 32 KiB.
_JSON_LIMIT = 128 * 1024
#: What json-c writes: printable ASCII, a backslash only before a slash. json-c and Python read this alike.
_JSON = re.compile(rb"(?:[ -\[\]-~]|\\/)+")
_HEX_ID, _HEX_MAC = re.compile("[0-9a-f]{16}"), re.compile("[0-9a-f]{64}")
TOKEN_TYPE = "lukshook"  # noqa: S105


@frozen(eq=False, repr=False)
class Metadata:
    """One copy whose checksum is right. *names* are UUID, label and subsystem; *data* is all of it."""

    offset: int
    size: int
    sequence: int
    names: tuple[str, ...]
    json: bytes
    data: bytes

    @property
    def uuid(self) -> str:
        """The volume's UUID."""
        return self.names[0]


def find(read: Read) -> tuple[Metadata, ...]:
    """The metadata copies whose checksum is right, one or two. Raises `Refused` where there is none.

    The second is looked for where cryptsetup looks: behind the first, else at each offset it can have.
    """
    first = _intact(read, 0)
    offsets = (first.size,) if first else SIZES
    second = next((copy for copy in (_intact(read, offset) for offset in offsets) if copy), None)
    found = tuple(copy for copy in (first, second) if copy)
    if not found:
        raise Refused(
            "both copies of the LUKS header are damaged or truncated",
            hint="lukshook header restore writes the last known header back",
        )
    return found


def current(read: Read) -> tuple[tuple[Metadata, ...], Header]:
    """The copies to use and what they say; the slots without their material. Raises `Refused`.

    cryptsetup writes the first copy, syncs, then the second (LUKS2_disk_hdr_write). A power cut leaves one
    damaged, or the second one step behind: then the other, or the newer, is the only one used, as cryptsetup
    does it. Each copy with a right checksum has to pass on its own. Anything else never happens by itself.
    """
    found = find(read)
    headers = {copy.sequence: _parse(copy) for copy in found}
    newest = max(headers)
    used = tuple(copy for copy in found if copy.sequence == newest)
    if newest - min(headers) > 1:
        refuse("two copies are more than one change apart")
    if len(used) == 2 and (used[0].names, used[0].json) != (used[1].names, used[1].json):
        refuse("two copies say different things under the same sequence number")
    if any((copy.uuid, copy.size) != (found[0].uuid, found[0].size) for copy in found):
        refuse("two copies are of different volumes")
    return used, evolve(headers[newest], copies=len(used))


def _intact(read: Read, offset: int) -> Metadata | None:
    """The copy at *offset*; None where magic, length or checksum say that it is none or damaged."""
    data = read(offset, BINARY_LENGTH)
    if len(data) < BINARY_LENGTH:
        return None
    magic, version, size, sequence, label, algorithm, _, uuid, subsystem, at, _, checksum = _BINARY.unpack_from(data)
    if magic != (SECOND_MAGIC if offset else MAGIC) or size not in SIZES:
        return None
    data = read(offset, size)
    if len(data) < size or _checksum(data) != checksum[:32]:
        return None
    allowlist.exactly(version, "version", 2)
    allowlist.number(sequence, "sequence number", (0, allowlist.MAX_SEQUENCE))
    allowlist.exactly(at, "own offset", offset)
    if offset:
        allowlist.exactly(size, "size of the second copy", offset)
    allowlist.exactly(allowlist.text(algorithm, "checksum algorithm"), "checksum algorithm", "sha256")
    if data[264:448].strip(b"\0") or checksum[32:].strip(b"\0") or data[512:BINARY_LENGTH].strip(b"\0"):
        refuse("padding is not empty")
    names = (allowlist.uuid(uuid), allowlist.text(label, "label"), allowlist.text(subsystem, "subsystem"))
    return Metadata(offset, size, sequence, names, _json_text(data[BINARY_LENGTH:]), data)


def _checksum(data: bytes) -> bytes:
    """SHA-256 over binary header and whole JSON area, the checksum's own field taken as zeroes."""
    digest = sha256(data[: _CHECKSUM.start])
    digest.update(bytes(64))
    digest.update(memoryview(data)[_CHECKSUM.stop :])
    return digest.digest()


def _json_text(area: bytes) -> bytes:
    text, end, rest = area.partition(b"\0")
    if not end or rest.strip(b"\0"):
        refuse("JSON has data after its end")
    if len(text) > _JSON_LIMIT:
        refuse(f"JSON has {len(text)} bytes, more than {_JSON_LIMIT}")
    if not _JSON.fullmatch(text):
        refuse("JSON has characters that cryptsetup does not write")
    return text


def _load(text: bytes) -> object:
    def no_number(number: str) -> NoReturn:
        refuse(f"JSON has a number that is not whole: {allowlist.show(number)}")

    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_float=no_number, parse_constant=no_number)
    except (ValueError, RecursionError):
        refuse("JSON cannot be read")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        refuse("JSON has the same name twice in one object")
    return value


def _parse(metadata: Metadata) -> Header:
    """What one copy says. Raises `Refused` at the first thing that is not on the allow-list."""
    top = allowlist.members(_load(metadata.json), "JSON", ("keyslots", "tokens", "segments", "digests", "config"))
    offset, sector_size = _segment(top["segments"])
    begin = 2 * metadata.size
    end = begin + _config(top["config"], metadata.size, offset)
    values = allowlist.numbered(top["keyslots"], "key slot", _OBJECTS)
    slots = tuple(_slot(n, value) for n, value in values.items())
    if not slots:
        refuse("key slots are all empty: nothing can open it")
    if len({slot.key_bytes for slot in slots}) != 1:
        refuse("key slots hold keys of different sizes")
    allowlist.inside({slot.number: (slot.area_offset, slot.area_size) for slot in slots}, (begin, end))
    return Header(
        type="luks2",
        uuid=metadata.uuid,
        cipher=allowlist.CIPHER,
        key_bytes=slots[0].key_bytes,
        sector_size=sector_size,
        offset=offset,
        digest=_digest(top["digests"], {str(slot.number) for slot in slots}),
        slots=slots,
        tokens=_tokens(top["tokens"]),
    )


def _config(value: object, size: int, offset: int) -> int:
    """Length in bytes of the area for key slots. No flags (discards), no requirements (reencryption)."""
    config = allowlist.members(value, "configuration", ("json_size", "keyslots_size"), ("flags",))
    allowlist.exactly(config["json_size"], "JSON size", str(size - BINARY_LENGTH))
    allowlist.exactly(config.get("flags", []), "flags", [])
    most = offset - 2 * size
    length = allowlist.decimal(config["keyslots_size"], "size of the area for key slots", (1, max(most, 1)))
    return allowlist.aligned(length, "size of the area for key slots")


def _segment(value: object) -> tuple[int, int]:
    """Offset and sector size, in bytes, of the one segment there may be."""
    segments = allowlist.numbered(value, "segment", _OBJECTS)
    if list(segments) != [0]:
        refuse(f"data is in {len(segments)} segments, not in one: an unfinished reencryption, or forged")
    names = ("type", "offset", "size", "iv_tweak", "encryption", "sector_size")
    segment = allowlist.members(segments[0], "data segment", names)
    allowlist.exactly(segment["type"], "data segment type", "crypt")
    allowlist.cipher(segment["encryption"], "data cipher")
    allowlist.exactly(segment["size"], "data size", "dynamic")
    allowlist.exactly(segment["iv_tweak"], "IV offset", "0")
    offset = allowlist.decimal(segment["offset"], "data offset in bytes", (1, allowlist.MAX_OFFSET))
    sector_size = allowlist.number(segment["sector_size"], "sector size", (512, 4096))
    if sector_size not in (512, 4096):
        refuse(f"sector size is {sector_size}, not 512 or 4096")
    return allowlist.aligned(offset, "data offset in bytes"), sector_size


def _slot(n: int, value: object) -> Slot:
    what = f"key slot {n}"
    slot = allowlist.members(value, what, ("type", "key_size", "af", "area", "kdf"), ("priority",))
    allowlist.exactly(slot["type"], f"type of {what}", "luks2")
    key_bytes = allowlist.key_bytes(slot["key_size"], f"key size of {what}")
    af = allowlist.members(slot["af"], f"splitter of {what}", ("type", "stripes", "hash"))
    allowlist.exactly(af["type"], f"splitter of {what}", "luks1")
    allowlist.exactly(af["stripes"], f"stripes of {what}", allowlist.STRIPES)
    offset, size = _area(slot["area"], what, key_bytes)
    return evolve(
        _kdf(slot["kdf"], what),
        number=n,
        key_bytes=key_bytes,
        af_hash=allowlist.one_of(af["hash"], f"splitter hash of {what}", allowlist.HASHES),
        area_offset=offset,
        area_size=size,
        priority=allowlist.number(slot.get("priority", 1), f"priority of {what}", (0, 2)),
    )


def _area(value: object, what: str, key_bytes: int) -> tuple[int, int]:
    area = allowlist.members(value, f"area of {what}", ("type", "offset", "size", "encryption", "key_size"))
    allowlist.exactly(area["type"], f"area type of {what}", "raw")
    allowlist.cipher(area["encryption"], f"cipher of {what}")
    allowlist.exactly(area["key_size"], f"area key size of {what}", key_bytes)
    offset = allowlist.decimal(area["offset"], f"offset of {what}", (1, allowlist.MAX_OFFSET))
    # The split key, rounded up; conversion from LUKS1 rounds the same way (lib/luks2/luks2_luks1_convert.c).
    least = key_bytes * allowlist.STRIPES
    size = allowlist.decimal(area["size"], f"size of {what}", (least, 2 * least))
    return allowlist.aligned(offset, f"offset of {what}"), allowlist.aligned(size, f"size of {what}")


def _kdf(value: object, what: str) -> Slot:
    """The key derivation of a key slot, as a slot that has nothing else yet."""
    kind = value.get("type") if isinstance(value, dict) else None
    kind = allowlist.one_of(kind, f"key derivation of {what}", ("pbkdf2", "argon2i", "argon2id"))
    names = ("hash", "iterations") if kind == "pbkdf2" else ("time", "memory", "cpus")
    kdf = allowlist.members(value, f"key derivation of {what}", ("type", "salt", *names))
    hash_, time, memory, cpus = (_pbkdf2 if kind == "pbkdf2" else _argon2)(kdf, what)
    salt = allowlist.base64(kdf["salt"], f"salt of {what}", (allowlist.SALT_BYTES,))
    return Slot(0, 0, allowlist.CIPHER, kind, hash_, time, memory, cpus, salt, "", 0, 0)


def _pbkdf2(kdf: dict[str, object], what: str) -> tuple[str, int, int, int]:
    hash_ = allowlist.one_of(kdf["hash"], f"hash of {what}", allowlist.HASHES)
    return hash_, allowlist.number(kdf["iterations"], f"iterations of {what}", allowlist.ITERATIONS), 0, 0


def _argon2(kdf: dict[str, object], what: str) -> tuple[str, int, int, int]:
    memory = allowlist.number(kdf["memory"], f"memory cost of {what} in KiB", allowlist.MEMORY)
    time = allowlist.number(kdf["time"], f"time cost of {what}", (1, allowlist.ARGON2_WORK // memory))
    return "", time, memory, allowlist.number(kdf["cpus"], f"threads of {what}", allowlist.CPUS)


def _digest(value: object, slots: set[str]) -> Digest:
    """The one digest there may be: over the key of the one segment and of every key slot."""
    digests = allowlist.numbered(value, "digest", _OBJECTS)
    if len(digests) != 1:
        refuse(f"key digests are {len(digests)}, not one")
    names = ("type", "keyslots", "segments", "hash", "iterations", "salt", "digest")
    digest = allowlist.members(next(iter(digests.values())), "digest", names)
    allowlist.exactly(digest["type"], "digest type", "pbkdf2")
    allowlist.exactly(digest["segments"], "digest's segments", ["0"])
    named = digest["keyslots"]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        refuse("digest's key slots are not a list of names")
    if sorted(named) != sorted(slots):
        refuse("digest does not belong to exactly the key slots there are")
    hash_ = allowlist.one_of(digest["hash"], "digest hash", allowlist.HASHES)
    lengths = {allowlist.HASHES[hash_], allowlist.SHORT_DIGEST_BYTES}
    return Digest(
        hash_,
        allowlist.number(digest["iterations"], "digest iterations", allowlist.ITERATIONS),
        allowlist.base64(digest["salt"], "digest salt", (allowlist.SALT_BYTES,)),
        allowlist.base64(digest["digest"], "digest", lengths),
    )


def _tokens(value: object) -> tuple[Token, ...]:
    """Our token, at most one. Others (TPM, FIDO2, keyring) let something else than the key open it."""
    tokens = allowlist.numbered(value, "token", _OBJECTS)
    if len(tokens) > 1:
        refuse(f"tokens are {len(tokens)}, not one at most")
    return tuple(_token(n, token) for n, token in tokens.items())


def _token(n: int, value: object) -> Token:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != TOKEN_TYPE:
        refuse(
            f"token {n} is not from lukshook: {allowlist.show(kind)}",
            hint=f"if you put it there yourself, remove it: cryptsetup token remove --token-id {n} IMAGE",
        )
    token = allowlist.members(value, f"token {n}", ("type", "keyslots", "macs"))
    allowlist.exactly(token["keyslots"], f"token {n}'s key slots", [])
    macs = token["macs"]
    if not isinstance(macs, dict) or len(macs) > _OBJECTS:
        refuse(f"token {n} has no MACs")
    for name, mac in macs.items():
        if not _HEX_ID.fullmatch(name) or not isinstance(mac, str) or not _HEX_MAC.fullmatch(mac):
            refuse(f"token {n} has an invalid MAC")
    return Token(n, tuple(sorted(macs.items())))

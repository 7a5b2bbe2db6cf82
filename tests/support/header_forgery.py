"""Headers made by hand: genuine-looking ones, and what a store could make of a genuine one.

Each forgery takes a whole image, changes one thing and mends the checksums, so that only the change can be what
it is refused for. `luks1` and `luks2` give images to start from where there is no cryptsetup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

Json = dict[str, Any]
Change = Callable[[bytearray], None]

UUID = "0a0b0c0d-1a1b-4c1d-8a2b-3a3b3c3d3e3f"
OTHER_UUID = "ffffffff-1a1b-4c1d-8a2b-3a3b3c3d3e3f"
METADATA = 16384
OFFSET = 1024 * 1024
IMAGE_SIZE = 2 * OFFSET
MATERIAL = 64 * 4000
AREA = 258048

LUKS1_SLOT = 208
LUKS1_SLOT_SIZE = 48
LUKS1_STEP = 504


@frozen
class Forgery:
    """*change* forges an image, *says* is in the message that refuses it; *pinned*: only the pins tell."""

    name: str
    change: Change
    says: str
    pinned: bool = False


def noise(length: int, seed: str) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_256(seed.encode()).digest(length)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def slot(number: int, offset: int) -> Json:
    """A key slot as cryptsetup 2.6.1 writes it for a key of full entropy."""
    return {
        "type": "luks2",
        "key_size": 64,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha512"},
        "area": {
            "type": "raw",
            "offset": str(offset),
            "size": str(AREA),
            "encryption": "aes-xts-plain64",
            "key_size": 64,
        },
        "kdf": {
            "type": "pbkdf2",
            "hash": "sha512",
            "iterations": 1000,
            "salt": _text(noise(32, f"s{number}")),
        },
    }


def argon2(**changed: object) -> Json:
    """Key derivation by argon2id as today's cryptsetup picks it."""
    return {
        "type": "argon2id",
        "time": 4,
        "memory": 1048576,
        "cpus": 4,
        "salt": _text(noise(32, "a")),
    } | changed


def metadata() -> Json:
    """The JSON of a volume with two key slots."""
    return {
        "keyslots": {"0": slot(0, 2 * METADATA), "1": slot(1, 2 * METADATA + AREA)},
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(OFFSET),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 4096,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": ["0", "1"],
                "segments": ["0"],
                "hash": "sha512",
                "iterations": 1000,
                "salt": _text(noise(32, "digest salt")),
                "digest": _text(noise(64, "digest")),
            }
        },
        "config": {"json_size": "12288", "keyslots_size": "524288"},
    }


def luks2() -> bytearray:
    """An image whose header is one that cryptsetup could have made, with two key slots."""
    image = bytearray(IMAGE_SIZE)
    for copy, magic in enumerate((b"LUKS\xba\xbe", b"SKUL\xba\xbe")):
        start = copy * METADATA
        fields = (magic, 2, METADATA, 3, b"", b"sha256", noise(64, magic.hex()), UUID.encode(), b"", start)
        struct.pack_into(">6sHQQ48s32s64s40s48sQ", image, start, *fields)
    write_json(image, metadata())
    for number in range(2):
        start = 2 * METADATA + number * AREA
        image[start : start + MATERIAL] = noise(MATERIAL, f"material {number}")
    return image


def luks1() -> bytearray:
    """An image with a LUKS1 header that cryptsetup could have made, with two of eight key slots in use."""
    image = bytearray(IMAGE_SIZE * 2)
    fields = (
        b"LUKS\xba\xbe",
        1,
        b"aes",
        b"xts-plain64",
        b"sha256",
        4096,
        64,
        noise(20, "mk"),
        noise(32, "ms"),
    )
    struct.pack_into(">6sH32s32s32sII20s32sI40s", image, 0, *fields, 1000, UUID.encode())
    for number in range(8):
        used = number < 2
        where = LUKS1_SLOT + number * LUKS1_SLOT_SIZE
        salt = noise(32, f"s{number}") if used else b""
        sector = 8 + number * LUKS1_STEP
        struct.pack_into(">II32sII", image, where, 0x00AC71F3 if used else 0xDEAD, 1000 * used, salt, sector, 4000)
        if used:
            image[sector * 512 : sector * 512 + MATERIAL] = noise(MATERIAL, f"material {number}")
    return image


def read_json(image: bytearray, copy: int = 0) -> Json:
    """The JSON of one copy."""
    start, size = _place(image, copy)
    value: Json = json.loads(bytes(image[start + 4096 : start + size]).split(b"\0")[0])
    return value


def write_json(image: bytearray, value: object, copies: Sequence[int] = (0, 1)) -> None:
    """Put *value* into *copies*, checksums mended."""
    write_text(image, json.dumps(value, separators=(",", ":")).encode(), copies)


def write_text(image: bytearray, text: bytes, copies: Sequence[int] = (0, 1)) -> None:
    """Put *text* into the JSON area of *copies*, checksums mended."""
    for copy in copies:
        start, size = _place(image, copy)
        image[start + 4096 : start + size] = text.ljust(size - 4096, b"\0")[: size - 4096]
        mend(image, copy)


def mend(image: bytearray, copy: int) -> None:
    """Make the checksum of a metadata copy right."""
    start, size = _place(image, copy)
    _mend(image, start, size)


def _mend(image: bytearray, start: int, size: int) -> None:
    """The checksum's whole field of 64 bytes counts as zeroes, of which SHA-256 fills the first half."""
    checked = image[start : start + size]
    checked[448:512] = bytes(64)
    image[start + 448 : start + 480] = hashlib.sha256(checked).digest()


def _place(image: bytearray, copy: int) -> tuple[int, int]:
    size = struct.unpack_from(">Q", image, 8)[0]
    return copy * size, size


def edit(change: Callable[[Json], object], copies: Sequence[int] = (0, 1)) -> Change:
    """Change the JSON of *copies*."""

    def forge(image: bytearray) -> None:
        value = read_json(image)
        change(value)
        write_json(image, value, copies)

    return forge


def put(path: str, value: object, copies: Sequence[int] = (0, 1)) -> Change:
    """Set the member at *path*, names with dots between, to *value*."""

    def change(top: Json) -> None:
        *parents, last = path.split(".")
        for name in parents:
            top = top[name]
        top[last] = value

    return edit(change, copies)


def drop(path: str) -> Change:
    """Take the member at *path* away."""

    def change(top: Json) -> None:
        *parents, last = path.split(".")
        for name in parents:
            top = top[name]
        del top[last]

    return edit(change)


def rewrite(change: Callable[[bytes], bytes], copies: Sequence[int] = (0, 1)) -> Change:
    """Change the text of the JSON of *copies*."""

    def forge(image: bytearray) -> None:
        write_text(image, change(json.dumps(read_json(image), separators=(",", ":")).encode()), copies)

    return forge


def binary(offset: int, data: bytes, copies: Sequence[int] = (0, 1)) -> Change:
    """Put *data* at *offset* of the binary header of *copies*, checksums mended."""

    def forge(image: bytearray) -> None:
        places = [_place(image, copy) for copy in copies]
        for start, size in places:
            image[start + offset : start + offset + len(data)] = data
            _mend(image, start, size)

    return forge


def raw(offset: int, data: bytes) -> Change:
    """Put *data* at *offset* of the image."""

    def forge(image: bytearray) -> None:
        image[offset : offset + len(data)] = data

    return forge


def cut(length: int) -> Change:
    """Keep only the first *length* bytes of the image."""

    def forge(image: bytearray) -> None:
        del image[length:]

    return forge


def both(*changes: Change) -> Change:
    """One change after the other."""

    def forge(image: bytearray) -> None:
        for change in changes:
            change(image)

    return forge


def _number(value: int) -> bytes:
    return struct.pack(">I", value)


def _long(value: int) -> bytes:
    return struct.pack(">Q", value)


def _reencryption(top: Json) -> None:
    """A decryption said to be half done, as in CVE-2021-4122: part of the data is written in the clear."""
    crypt = top["segments"]["0"]
    linear = {"type": "linear", "offset": str(OFFSET), "size": "4096"}
    rest = crypt | {"offset": str(OFFSET + 4096), "iv_tweak": "8"}
    final = {"type": "linear", "offset": "0", "size": "dynamic", "flags": ["backup-final"]}
    top["segments"] = {
        "0": linear,
        "1": rest,
        "2": crypt | {"flags": ["backup-previous"]},
        "3": final,
    }
    top["digests"]["0"]["segments"] = ["1", "2"]
    top["config"]["requirements"] = {"mandatory": ["online-reencrypt"]}


def _swap_slots(top: Json) -> None:
    slots = top["keyslots"]
    slots["0"], slots["1"] = slots["1"], slots["0"]


def _remove_slot(top: Json) -> None:
    del top["keyslots"]["1"]
    top["digests"]["0"]["keyslots"] = ["0"]


def _rename_slot(name: str) -> Callable[[Json], None]:
    def change(top: Json) -> None:
        top["keyslots"][name] = top["keyslots"].pop("1")
        top["digests"]["0"]["keyslots"] = ["0", name]

    return change


def _smaller_keys(top: Json) -> None:
    for value in top["keyslots"].values():
        _shorten(value)


def _mixed_keys(top: Json) -> None:
    _shorten(top["keyslots"]["1"])


def _shorten(value: Json) -> None:
    value["key_size"] = value["area"]["key_size"] = 32
    value["area"]["size"] = "131072"


def _nested(image: bytearray) -> None:
    write_text(image, b'{"tokens":' + b"[" * 12000)


def _unterminated(image: bytearray) -> None:
    text = json.dumps(read_json(image)).encode()
    write_text(image, text + b" " * (METADATA - 4096 - len(text)))


def _bomb(image: bytearray) -> None:
    """The largest metadata there can be, full of JSON."""
    largest = 4 * 1024 * 1024
    image.extend(bytes(3 * largest - len(image)))
    image[largest : largest + 4096] = image[METADATA : METADATA + 4096]
    image[8:16] = _long(largest)
    for copy in range(2):
        image[copy * largest + 8 : copy * largest + 16] = _long(largest)
        image[copy * largest + 256 : copy * largest + 264] = _long(copy * largest)
    write_text(image, b'{"tokens":{' + b'"0":{},' * (largest // 8) + b"}}")


def step(by: int) -> Change:
    """Move the sequence number of the first copy away from that of the second."""

    def forge(image: bytearray) -> None:
        sequence: int = struct.unpack_from(">Q", image, 16)[0]
        binary(16, _long(sequence + by), (0,))(image)

    return forge


_ENCRYPTION = "segments.0.encryption"
_OVERFLOW = 2**32 - 1
_TPM = {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-blob": "AA=="}
_OURS = {"type": "lukshook", "keyslots": [], "macs": {}}

_CIPHERS = [
    Forgery(f"data cipher {cipher}", put(_ENCRYPTION, cipher), says)
    for cipher, says in (
        ("cipher_null-ecb", "in the clear"),
        ("capi:ecb(cipher_null)-null", "in the clear"),
        ("null", "in the clear"),
        ("aes-xts-null", "in the clear"),
        ("arc4-ecb-null", "in the clear"),
        ("aes-ecb", "not aes-xts-plain64"),
        ("aes-xts-plain", "not aes-xts-plain64"),
        ("aes-cbc-essiv:sha256", "not aes-xts-plain64"),
        ("AES-XTS-PLAIN64", "not aes-xts-plain64"),
        ("aes-xts-plain64 ", "not aes-xts-plain64"),
        ("", "not aes-xts-plain64"),
    )
]

_SEGMENT = [
    Forgery("data cipher is a number", put(_ENCRYPTION, 7), "data cipher"),
    Forgery("data cipher is missing", drop(_ENCRYPTION), "lacks encryption"),
    Forgery("segment is linear", put("segments.0.type", "linear"), "data segment type"),
    Forgery("segment is OPAL's", put("segments.0.type", "hw-opal"), "data segment type"),
    Forgery("segment has a fixed size", put("segments.0.size", "4096"), "data size"),
    Forgery("segment moves the IV", put("segments.0.iv_tweak", "8"), "IV offset"),
    Forgery("segment begins at 0", put("segments.0.offset", "0"), "data offset"),
    Forgery("segment begins between pages", put("segments.0.offset", str(OFFSET + 512)), "multiple of 4096"),
    Forgery("segment begins past the end", put("segments.0.offset", str(IMAGE_SIZE)), "past the end"),
    Forgery("segment begins at 2^63", put("segments.0.offset", str(2**63)), "data offset"),
    Forgery("segment begins in the key slots", put("segments.0.offset", "65536"), "area for key slots"),
    Forgery("offset with a zero before it", put("segments.0.offset", f"0{OFFSET}"), "not a number"),
    Forgery("offset as a number", put("segments.0.offset", OFFSET), "not a number"),
    Forgery("sector size 1024", put("segments.0.sector_size", 1024), "sector size"),
    Forgery("sector size 65536", put("segments.0.sector_size", 65536), "sector size"),
    Forgery("sector size is text", put("segments.0.sector_size", "4096"), "sector size"),
    Forgery("sector size is true", put("segments.0.sector_size", True), "sector size"),
    Forgery("segment with integrity", put("segments.0.integrity", {"type": "none"}), "unknown: integrity"),
    Forgery("segment with flags", put("segments.0.flags", ["in-reencryption"]), "unknown: flags"),
    Forgery("a second segment", put("segments.1", {"type": "linear"}), "2 segments"),
    Forgery("no segment", put("segments", {}), "0 segments"),
    Forgery("segments are a list", put("segments", []), "segments are not an object"),
    Forgery("reencryption in progress", edit(_reencryption), "reencryption"),
]

_CONFIG = [
    Forgery(
        "reencryption is required",
        put("config.requirements", {"mandatory": ["online-reencrypt-v2"]}),
        "unknown: requirements",
    ),
    Forgery("an unknown requirement", put("config.requirements", {"mandatory": ["x"]}), "unknown: requirements"),
    Forgery("discards are allowed", put("config.flags", ["allow-discards"]), "flags"),
    Forgery("flags are an object", put("config.flags", {}), "flags"),
    Forgery("JSON size", put("config.json_size", "16384"), "JSON size"),
    Forgery("key slots reach into the data", put("config.keyslots_size", str(OFFSET)), "area for key slots"),
    Forgery("key slots end between pages", put("config.keyslots_size", "524289"), "multiple of 4096"),
    Forgery("key slots leave out the last", put("config.keyslots_size", "262144"), "outside"),
    Forgery("something unknown in the configuration", put("config.x", 1), "unknown: x"),
]

_DIGESTS = [
    Forgery("a second digest", put("digests.1", {"type": "pbkdf2"}), "key digests are 2"),
    Forgery("no digest", put("digests", {}), "key digests are 0"),
    Forgery("digest type", put("digests.0.type", "none"), "digest type"),
    Forgery("digest hash", put("digests.0.hash", "md5"), "digest hash"),
    Forgery("digest iterations 1", put("digests.0.iterations", 1), "digest iterations"),
    Forgery("digest iterations 2^32-1", put("digests.0.iterations", _OVERFLOW), "digest iterations"),
    Forgery("digest salt cut", put("digests.0.salt", "AAAA"), "digest salt"),
    Forgery("digest cut", put("digests.0.digest", "AAAA"), "digest is not base64"),
    Forgery("digest empty", put("digests.0.digest", ""), "digest is not base64"),
    Forgery("digest with junk", put("digests.0.digest", "!" * 88), "digest is not base64"),
    Forgery("digest of no key slot", put("digests.0.keyslots", []), "exactly the key slots"),
    Forgery("an unbound key slot", put("digests.0.keyslots", ["0"]), "exactly the key slots"),
    Forgery(
        "digest of a key slot that is not",
        put("digests.0.keyslots", ["0", "1", "2"]),
        "exactly the key slots",
    ),
    Forgery("digest of numbers", put("digests.0.keyslots", [0, 1]), "list of names"),
    Forgery("digest of no segment", put("digests.0.segments", []), "digest's segments"),
    Forgery("digest of a segment that is not", put("digests.0.segments", ["0", "1"]), "digest's segments"),
]

_SLOTS = [
    Forgery("key slot type", put("keyslots.1.type", "reencrypt"), "type of key slot 1"),
    Forgery("key slot with a key of 16 bytes", put("keyslots.1.key_size", 16), "key size of key slot 1"),
    Forgery("key slot with a key of 48 bytes", put("keyslots.1.key_size", 48), "key size of key slot 1"),
    Forgery("key slot with a key of 2^40 bytes", put("keyslots.1.key_size", 2**40), "key size of key slot 1"),
    Forgery("key slot in the clear", put("keyslots.1.area.encryption", "cipher_null-ecb"), "cipher of key slot 1"),
    Forgery("key slot cipher", put("keyslots.1.area.encryption", "aes-cbc-plain"), "cipher of key slot 1"),
    Forgery("key slot area key size", put("keyslots.1.area.key_size", 32), "area key size of key slot 1"),
    Forgery("key slot area type", put("keyslots.1.area.type", "journal"), "area type of key slot 1"),
    Forgery("key slot in the metadata", put("keyslots.0.area.offset", "16384"), "outside"),
    Forgery("key slot in the data", put("keyslots.1.area.offset", str(OFFSET)), "outside"),
    Forgery("key slot at 2^63", put("keyslots.1.area.offset", str(2**63)), "offset of key slot 1"),
    Forgery("key slots in one place", put("keyslots.1.area.offset", "32768"), "overlap"),
    Forgery("key slots overlap by a page", put("keyslots.1.area.offset", str(32768 + AREA - 4096)), "overlap"),
    Forgery("key slot between pages", put("keyslots.1.area.offset", str(32768 + AREA + 8)), "multiple of 4096"),
    Forgery("key slot of no size", put("keyslots.1.area.size", "0"), "size of key slot 1"),
    Forgery("key slot too small", put("keyslots.1.area.size", "131072"), "size of key slot 1"),
    Forgery("key slot of 1 GiB", put("keyslots.1.area.size", str(2**30)), "size of key slot 1"),
    Forgery("splitter", put("keyslots.1.af.type", "none"), "splitter of key slot 1"),
    Forgery("splitter with one stripe", put("keyslots.1.af.stripes", 1), "stripes of key slot 1"),
    Forgery("splitter with 2^31 stripes", put("keyslots.1.af.stripes", 2**31), "stripes of key slot 1"),
    Forgery("splitter with a fraction", put("keyslots.1.af.stripes", 4000.0), "not whole"),
    Forgery("splitter hash", put("keyslots.1.af.hash", "crc32"), "splitter hash of key slot 1"),
    Forgery("key derivation", put("keyslots.1.kdf.type", "scrypt"), "key derivation of key slot 1"),
    Forgery("key derivation is text", put("keyslots.1.kdf", "pbkdf2"), "key derivation of key slot 1"),
    Forgery("key derivation hash", put("keyslots.1.kdf.hash", "md5"), "hash of key slot 1"),
    Forgery("key derivation salt", put("keyslots.1.kdf.salt", "AA=="), "salt of key slot 1"),
    Forgery("pbkdf2 of 999 iterations", put("keyslots.1.kdf.iterations", 999), "iterations of key slot 1"),
    Forgery("pbkdf2 of 2^32-1 iterations", put("keyslots.1.kdf.iterations", _OVERFLOW), "iterations of key slot 1"),
    Forgery("pbkdf2 of 10^4000 iterations", put("keyslots.1.kdf.iterations", 10**4000), "iterations of key slot 1"),
    Forgery("pbkdf2 of true iterations", put("keyslots.1.kdf.iterations", True), "iterations of key slot 1"),
    Forgery("argon2 of 4 GiB", put("keyslots.1.kdf", argon2(memory=4 * 2**20)), "memory cost of key slot 1"),
    Forgery("argon2 of no memory", put("keyslots.1.kdf", argon2(memory=0)), "memory cost of key slot 1"),
    Forgery("argon2 of 2^32-1 passes", put("keyslots.1.kdf", argon2(time=_OVERFLOW)), "time cost of key slot 1"),
    Forgery("argon2 of 1000 threads", put("keyslots.1.kdf", argon2(cpus=1000)), "threads of key slot 1"),
    Forgery("argon2 with more", put("keyslots.1.kdf", argon2(hash="sha256")), "unknown: hash"),
    Forgery("key slot priority", put("keyslots.1.priority", 9), "priority of key slot 1"),
    Forgery("key slot with something unknown", put("keyslots.1.x", 1), "unknown: x"),
    Forgery("key slot number 32", edit(_rename_slot("32")), "number 32 is not below 32"),
    Forgery("key slot number 01", edit(_rename_slot("01")), "number 01 is not below 32"),
    Forgery("key slot number -1", edit(_rename_slot("-1")), "number -1 is not below 32"),
    Forgery("no key slot", both(put("keyslots", {}), put("digests.0.keyslots", [])), "all empty"),
    Forgery("key slots of different sizes", edit(_mixed_keys), "different sizes"),
]

_TOKENS = [
    Forgery("a TPM's token", put("tokens.0", _TPM), "not from lukshook: systemd-tpm2"),
    Forgery("a keyring's token", put("tokens.0", {"type": "luks2-keyring", "keyslots": ["0"]}), "not from lukshook"),
    Forgery("a token of no type", put("tokens.0", {}), "not from lukshook"),
    Forgery("a token that is text", put("tokens.0", "lukshook"), "not from lukshook"),
    Forgery("two tokens", both(put("tokens.0", _OURS), put("tokens.1", _TPM)), "tokens are 2"),
    Forgery("our token with a key slot", put("tokens.0", _OURS | {"keyslots": ["0"]}), "token 0's key slots"),
    Forgery("our token with more", put("tokens.0", _OURS | {"x": 1}), "unknown: x"),
    Forgery("our token without MACs", put("tokens.0", _OURS | {"macs": []}), "has no MACs"),
    Forgery("our token with a MAC cut", put("tokens.0", _OURS | {"macs": {"0" * 16: "00"}}), "an invalid MAC"),
    Forgery("our token with a MAC of no key", put("tokens.0", _OURS | {"macs": {"": "0" * 64}}), "an invalid MAC"),
]

_JSON = [
    Forgery("something unknown at the top", put("x", {}), "unknown: x"),
    Forgery("no tokens object", drop("tokens"), "lacks tokens"),
    Forgery("JSON is a list", rewrite(lambda _: b"[]"), "JSON is not an object"),
    Forgery("JSON is empty", rewrite(lambda _: b""), "characters"),
    Forgery("JSON is cut", rewrite(lambda text: text[:-1]), "cannot be read"),
    Forgery("JSON is nested 12000 deep", _nested, "cannot be read"),
    Forgery("JSON without an end", _unterminated, "data after its end"),
    Forgery("JSON of 4 MiB", _bomb, "JSON has"),
    Forgery(
        "segments twice",
        rewrite(lambda text: text.replace(b'"segments":{', b'"segments":{},"segments":{', 1)),
        "same name twice",
    ),
    Forgery(
        "data cipher twice",
        rewrite(lambda text: text.replace(b'"iv_tweak"', b'"encryption":"cipher_null-ecb","iv_tweak"', 1)),
        "same name twice",
    ),
    Forgery("data behind the JSON", rewrite(lambda text: text + b"\0\0x"), "data after its end"),
    Forgery("a second JSON behind it", rewrite(lambda text: text + text), "cannot be read"),
    Forgery("a comment", rewrite(lambda text: b"/*x*/" + text), "cannot be read"),
    Forgery("a line end", rewrite(lambda text: b"\n" + text), "characters"),
    Forgery("an escape", rewrite(lambda text: text.replace(b'"crypt"', b'"cr\\u0079pt"')), "characters"),
    Forgery("a byte order mark", rewrite(lambda text: b"\xef\xbb\xbf" + text), "characters"),
    Forgery("NaN", rewrite(lambda text: text.replace(b'"sector_size":4096', b'"sector_size":NaN')), "not whole"),
    Forgery("an exponent", rewrite(lambda text: text.replace(b":4000,", b":4e3,")), "not whole"),
]

_BINARY = [
    Forgery("version 3", binary(6, b"\0\3"), "version"),
    Forgery("LUKS1's version on LUKS2", binary(6, b"\0\1"), "cipher"),
    Forgery("no magic", both(raw(0, b"XUKS"), raw(METADATA, b"XKUL")), "no LUKS header"),
    Forgery("metadata of no size", binary(8, _long(0)), "both copies"),
    Forgery("metadata of 2^63 bytes", binary(8, _long(2**63)), "both copies"),
    Forgery("metadata of 12 KiB", binary(8, _long(12288)), "both copies"),
    Forgery("own offset of the first", binary(256, _long(METADATA), (0,)), "own offset"),
    Forgery("own offset of the second", binary(256, _long(0), (1,)), "own offset"),
    Forgery("checksum algorithm", binary(72, b"sha1".ljust(32, b"\0")), "checksum algorithm"),
    Forgery("both checksums", both(raw(448, b"\xff" * 8), raw(METADATA + 448, b"\xff" * 8)), "both copies"),
    Forgery("sequence at its end", binary(16, _long(2**64 - 1)), "sequence number is 18446744073709551615"),
    Forgery("sequence near its end", binary(16, _long(2**64 - 40)), "sequence number is 18446744073709551576"),
    Forgery("sequence that is signed", binary(16, _long(2**63)), "sequence number is 9223372036854775808"),
    Forgery("sequence of the second alone", binary(16, _long(2**64 - 1), (1,)), "sequence number"),
    Forgery("UUID malformed", binary(168, b"x" * 36), "UUID is malformed"),
    Forgery("UUID without an end", binary(168, b"0" * 40), "UUID is not text"),
    Forgery("label not text", binary(24, b"\x1b[2J"), "label is not text"),
    Forgery("label beyond ASCII", binary(24, "B\u00fcro".encode()), "label has letters beyond ASCII: B\u00fcro"),
    Forgery("label with something behind it", binary(24, b"a\0b"), "label is not text"),
    Forgery("subsystem not text", binary(208, b"\xff"), "subsystem is not text"),
    Forgery("padding of the first sector", binary(300, b"x"), "padding"),
    Forgery("padding of the checksum", binary(500, b"x"), "padding"),
    Forgery("padding of the page", binary(4000, b"x"), "padding"),
]

_COPIES = [
    Forgery("null cipher in the second copy", put(_ENCRYPTION, "cipher_null-ecb", (1,)), "in the clear"),
    Forgery("null cipher in the first copy", put(_ENCRYPTION, "cipher_null-ecb", (0,)), "in the clear"),
    Forgery(
        "null cipher in an older copy",
        both(step(-1), put(_ENCRYPTION, "cipher_null-ecb", (0,))),
        "in the clear",
    ),
    Forgery(
        "null cipher in a newer copy",
        both(step(1), put(_ENCRYPTION, "cipher_null-ecb", (0,))),
        "in the clear",
    ),
    Forgery("copies that differ", put("segments.0.sector_size", 512, (1,)), "different things"),
    Forgery("copies two changes apart", step(2), "more than one change apart"),
    Forgery("copies of two volumes", binary(168, OTHER_UUID.encode(), (1,)), "different things"),
    Forgery(
        "a newer copy of another volume",
        both(step(1), binary(168, OTHER_UUID.encode(), (0,))),
        "different volumes",
    ),
    Forgery("labels that differ", binary(24, b"other", (1,)), "different things"),
    Forgery("cut in the first copy", cut(1000), "both copies"),
    Forgery("cut in a key slot", cut(2 * METADATA + 1000), "ends inside key slot 0"),
    Forgery("cut before the data", cut(OFFSET), "past the end"),
    Forgery("empty", cut(0), "no LUKS header"),
]

_PINNED = [
    Forgery("UUID of another volume", binary(168, OTHER_UUID.encode()), "UUID was", pinned=True),
    Forgery("data moved", put("segments.0.offset", str(OFFSET + 4096)), "data offset in bytes was", pinned=True),
    Forgery("sector size 512", put("segments.0.sector_size", 512), "sector size was", pinned=True),
    Forgery("AES-128", edit(_smaller_keys), "key size in bytes was", pinned=True),
    Forgery("key slots swapped", edit(_swap_slots), "key slot 0 was", pinned=True),
    Forgery("key slot gone", edit(_remove_slot), "key slot 1 of the header is gone", pinned=True),
    Forgery("key slot renamed", edit(_rename_slot("2")), "key slot 1 of the header is gone", pinned=True),
    Forgery("key slot's salt", put("keyslots.1.kdf.salt", _text(noise(32, "x"))), "the salt of", pinned=True),
    Forgery("key slot's KDF", put("keyslots.1.kdf", argon2()), "the key derivation of", pinned=True),
    Forgery("key slot's iterations", put("keyslots.1.kdf.iterations", 2000), "the iterations of", pinned=True),
    Forgery("key slot's splitter", put("keyslots.1.af.hash", "sha256"), "the splitter hash of", pinned=True),
    Forgery("key slot's priority", put("keyslots.1.priority", 2), "the priority of", pinned=True),
    Forgery("key slot's bytes", raw(2 * METADATA + AREA + 5000, b"x"), "the key material of", pinned=True),
    Forgery("digest of another key", put("digests.0.digest", _text(noise(64, "x"))), "the value of", pinned=True),
    Forgery("digest's salt", put("digests.0.salt", _text(noise(32, "x"))), "the salt of", pinned=True),
    Forgery("digest's iterations", put("digests.0.iterations", 1001), "the iterations of", pinned=True),
    Forgery("downgrade to LUKS1", lambda image: _become(image, luks1()), "type was luks2", pinned=True),
]


def _become(image: bytearray, other: bytearray) -> None:
    image[:] = other


#: Forgeries of `luks2`, and of any LUKS2 image of cryptsetup with the same areas.
LUKS2 = [*_CIPHERS, *_SEGMENT, *_CONFIG, *_DIGESTS, *_SLOTS, *_TOKENS, *_JSON, *_BINARY, *_COPIES, *_PINNED]


def _luks1_slot(number: int, at: int, data: bytes) -> Change:
    return raw(LUKS1_SLOT + number * LUKS1_SLOT_SIZE + at, data)


def _name(text: bytes) -> bytes:
    return text.ljust(32, b"\0")


#: Forgeries of `luks1`.
LUKS1 = [
    Forgery("magic", raw(0, b"LUCKS"), "no LUKS header"),
    Forgery("version 0", raw(6, b"\0\0"), "both copies"),
    Forgery("version 2", raw(6, b"\0\2"), "both copies"),
    Forgery("null cipher", both(raw(8, _name(b"cipher_null")), raw(40, _name(b"ecb"))), "in the clear"),
    Forgery("another cipher", raw(8, _name(b"twofish")), "data cipher is twofish"),
    Forgery("ECB", raw(40, _name(b"ecb")), "data cipher is aes-ecb"),
    Forgery("CBC", raw(40, _name(b"cbc-essiv:sha256")), "data cipher is aes-cbc"),
    Forgery("cipher without an end", raw(8, b"a" * 32), "cipher is not text"),
    Forgery("cipher with something behind it", raw(8, b"aes\0x"), "cipher is not text"),
    Forgery("mode not text", raw(40, b"\xff" * 4), "cipher mode is not text"),
    Forgery("hash", raw(72, _name(b"md5")), "hash is md5"),
    Forgery("data at 0", raw(104, _number(0)), "data offset"),
    Forgery("data at 2^32-1", raw(104, _number(_OVERFLOW)), "data offset"),
    Forgery("data between pages", raw(104, _number(4097)), "multiple of 4096"),
    Forgery("data in the key slots", raw(104, _number(1024)), "outside"),
    Forgery("data past the end", raw(104, _number(IMAGE_SIZE * 2 // 512)), "past the end"),
    Forgery("no key", raw(108, _number(0)), "key size"),
    Forgery("key of 16 bytes", raw(108, _number(16)), "key size"),
    Forgery("key of 2^31 bytes", raw(108, _number(2**31)), "key size"),
    Forgery("digest iterations 0", raw(164, _number(0)), "digest iterations"),
    Forgery("digest iterations 2^32-1", raw(164, _number(_OVERFLOW)), "digest iterations"),
    Forgery("UUID", raw(168, b"../../etc/passwd\0"), "UUID is"),
    Forgery("key slot neither on nor off", _luks1_slot(1, 0, _number(0xCAFE)), "neither enabled nor disabled"),
    Forgery("iterations 0", _luks1_slot(1, 4, _number(0)), "iterations of key slot 1"),
    Forgery("iterations 2^32-1", _luks1_slot(1, 4, _number(_OVERFLOW)), "iterations of key slot 1"),
    Forgery("key slot in the header", _luks1_slot(1, 40, _number(1)), "outside"),
    Forgery("key slot in the data", _luks1_slot(1, 40, _number(4096)), "outside"),
    Forgery("key slot at 2^32-1", _luks1_slot(1, 40, _number(_OVERFLOW)), "outside"),
    Forgery("key slots in one place", _luks1_slot(1, 40, _number(8)), "overlap"),
    Forgery("key slots overlap by a sector", _luks1_slot(1, 40, _number(8 + 499)), "overlap"),
    Forgery("one stripe", _luks1_slot(1, 44, _number(1)), "stripes of key slot 1"),
    Forgery("2^32-1 stripes", _luks1_slot(1, 44, _number(_OVERFLOW)), "stripes of key slot 1"),
    Forgery("stripes of an unused slot", _luks1_slot(7, 44, _number(1)), "stripes of key slot 7"),
    Forgery("an unused slot in the data", _luks1_slot(7, 40, _number(4096)), "outside"),
    Forgery("an unused slot over a used one", _luks1_slot(7, 40, _number(8)), "overlap"),
    Forgery(
        "no key slot",
        both(_luks1_slot(0, 0, _number(0xDEAD)), _luks1_slot(1, 0, _number(0xDEAD))),
        "all empty",
    ),
    Forgery("cut in the header", cut(500), "ends inside its LUKS header"),
    Forgery("cut in a key slot", cut(8192), "ends inside key slot 0"),
    Forgery("digest of another key", raw(112, noise(20, "x")), "the value of", pinned=True),
    Forgery("digest's salt", raw(132, noise(32, "x")), "the salt of", pinned=True),
    Forgery("digest's iterations", raw(164, _number(1001)), "the iterations of", pinned=True),
    Forgery("another hash", raw(72, _name(b"sha512")), "the hash of", pinned=True),
    Forgery("UUID of another volume", raw(168, OTHER_UUID.encode()), "UUID was", pinned=True),
    Forgery("data moved", raw(104, _number(4104)), "data offset in bytes was", pinned=True),
    Forgery("AES-128", raw(108, _number(32)), "key size in bytes was", pinned=True),
    Forgery("key slot's salt", _luks1_slot(1, 8, noise(32, "x")), "the salt of key slot 1", pinned=True),
    Forgery("key slot's iterations", _luks1_slot(1, 4, _number(2000)), "the iterations of", pinned=True),
    Forgery("key slot moved", _luks1_slot(1, 40, _number(8 + 500)), "the offset of key slot 1", pinned=True),
    Forgery("key slot's bytes", raw(8 * 512 + 9, b"x"), "the key material of key slot 0", pinned=True),
    Forgery("key slot gone", _luks1_slot(1, 0, _number(0xDEAD)), "key slot 1 of the header is gone", pinned=True),
    Forgery(
        "a new key slot",
        both(_luks1_slot(2, 0, _number(0x00AC71F3)), _luks1_slot(2, 4, _number(1000))),
        "key slot 2 of the header is new",
        pinned=True,
    ),
]

"""A volume's key: 32 bytes that cannot be printed by accident, and their strict base64 form."""

from __future__ import annotations

import base64
import binascii

from lukshook.errors import Denied
from lukshook.system import libc

#: Length of a volume's key in bytes, as in the tutorial (`dd if=/dev/random bs=1 count=32`).
KEY_BYTES = 32


class Secret:
    """Bytes that no repr, log line, traceback or pickle shows, and that are overwritten by `wipe`.

    Python cannot promise that no copy was ever made (an immutable `bytes` cannot be cleared); this keeps the copies
    few and their life short.
    """

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes | bytearray) -> None:
        self._bytes = bytearray(value)
        if self._bytes:
            libc.keep_in_memory(self._bytes)

    def reveal(self) -> bytearray:
        """The bytes themselves; the only way to them, so that its uses can be searched for."""
        return self._bytes

    def wipe(self) -> None:
        """Overwrite the bytes in place with zeroes."""
        self._bytes[:] = bytes(len(self._bytes))

    def text(self) -> Secret:
        """The base64 form, for tools that want text (qemu, a typed rescue passphrase)."""
        return Secret(base64.b64encode(self._bytes))

    def __len__(self) -> int:
        return len(self._bytes)

    def __repr__(self) -> str:
        return "Secret()"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


def decode_key(raw: bytes | bytearray, source: str) -> Secret:
    """Turn what a key source gave into the 32 bytes of a key; *source* is named in errors, the key never is.

    Accepts the canonical base64 of exactly 32 bytes, with at most one line end behind it. Python's own decoder also
    takes stray characters, a first of two keys and a non-canonical last character, so the result is encoded again
    and compared. Raises `Denied`.
    """
    text = bytes(raw)
    for end in (b"\r\n", b"\n"):
        if text.endswith(end):
            text = text[: -len(end)]
            break
    if not text:
        raise Denied(f"the key from {source} is empty", hint="a key is 32 random bytes in base64: lukshook key new")
    fault = _fault(text)
    if fault:
        raise Denied(
            f"the key from {source} is not usable: {fault}",
            hint="a key is 32 random bytes in base64, 44 characters on one line: lukshook key new",
        )
    return Secret(base64.b64decode(text, validate=True))


def _fault(text: bytes) -> str:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _not_base64(text)
    if len(decoded) != KEY_BYTES:
        return f"it has {len(decoded)} bytes, not {KEY_BYTES}"
    return "" if base64.b64encode(decoded) == text else "its last character is not canonical base64"


def _not_base64(text: bytes) -> str:
    if len(text) == KEY_BYTES:
        return "it is 32 raw bytes, not their base64"
    if b"\n" in text or b"\r" in text:
        return "it has more than one line"
    if b"-" in text or b"_" in text:
        return "it is URL-safe base64, or has characters that are not base64"
    return "it is not base64"


def key_options() -> tuple[str, ...]:
    """How cryptsetup(8) reads a key: 32 bytes of standard input, newlines among them."""
    return ("--key-file=-", f"--keyfile-size={KEY_BYTES}")

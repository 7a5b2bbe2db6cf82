"""SHA-256 and its HMAC without OpenSSL, which no other part of a hook's start takes as long to load as.

Python has hashes of its own; the standard library's `random` imports one in the same way and for the same reason.
docs/internals/measurements.md has the figures.
"""

from __future__ import annotations

from _operator import _compare_digest as same  # what hmac.compare_digest is without OpenSSL
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # Python 3.12
    except ImportError:
        try:
            from _sha256 import sha256  # Python 3.11
        except ImportError:  # built without them, as some distributions do for FIPS
            from hashlib import sha256

__all__ = ["hmac", "same", "sha256"]

_BLOCK = 64
_INNER, _OUTER = (bytes(number ^ pad for number in range(256)) for pad in (0x36, 0x5C))


def hmac(key: bytes, message: bytes | bytearray) -> bytes:
    """HMAC-SHA256 (RFC 2104). No copy of *message* is made."""
    padded = (sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner, outer = sha256(padded.translate(_INNER)), sha256(padded.translate(_OUTER))
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()

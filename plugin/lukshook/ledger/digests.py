"""The digest of a piece of ciphertext."""

from __future__ import annotations

import hashlib
import os

#: Bytes of a digest.
LENGTH = 16
#: Stands for a piece of zeros, whether the store keeps it as a hole or not.
HOLE = bytes(LENGTH)
_SECRET_BYTES = 32
_ZEROS = bytes(1 << 20)
#: Bytes that tell most pieces from zeros: a view is compared byte by byte.
_LOOK = 64


def new_secret() -> bytes:
    """A secret for one ledger: without it, a store cannot prepare two pieces with one digest."""
    return os.urandom(_SECRET_BYTES)


def digest(secret: bytes, content: memoryview) -> bytes:
    """The digest of a piece of at most 1 MiB: BLAKE2b (RFC 7693) with a key, or `HOLE`."""
    if content[:_LOOK] == _ZEROS[: min(_LOOK, len(content))] and bytes(content) == _ZEROS[: len(content)]:
        return HOLE
    return hashlib.blake2b(content, digest_size=LENGTH, key=secret).digest()

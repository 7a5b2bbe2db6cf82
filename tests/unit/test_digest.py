"""Our HMAC against the standard library's, and that no hook loads OpenSSL for it."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from lukshook.system import digest


@given(key=st.binary(max_size=200), message=st.binary(max_size=300))
def test_hash_and_hmac_are_those_of_the_standard_library(key: bytes, message: bytes) -> None:
    """Keys shorter than a block, as long as one, and longer ones, which are hashed first."""
    assert hashlib.sha256(message).digest() == digest.sha256(message).digest()
    assert hmac.digest(key, message, "sha256") == digest.hmac(key, bytearray(message))


def test_hmac_gives_what_rfc_4231_says() -> None:
    """Test case 2."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"

    assert expected == digest.hmac(b"Jefe", b"what do ya want for nothing?").hex()


def test_macs_are_the_same_only_where_every_digit_is() -> None:
    """A part of one is not one."""
    assert digest.same("0a1b", "0a1b")
    assert not digest.same("0a1b", "0a1c")
    assert not digest.same("0a1b", "0a")
    assert not digest.same("", "0a")


def test_a_hook_does_not_load_openssl() -> None:
    """A new import of hashlib or hmac on its way would make every start slower."""
    program = "import lukshook.cli.hooks, sys; print('_hashlib' in sys.modules)"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    argv = [sys.executable, "-c", program]
    shown = subprocess.run(argv, env=unmeasured, capture_output=True, text=True, check=True)

    assert "False" == shown.stdout.strip()

"""systemd credentials: a key sealed by systemd-creds comes out of the machine's store and out of a unit's folder."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from lukshook.errors import Denied
from lukshook.keys import key_sources

pytestmark = [
    pytest.mark.needs("systemd-creds"),
    pytest.mark.skipif("LUKSHOOK_GUEST" not in os.environ, reason="would leave a credential on this machine"),
]
STORE = Path("/etc/credstore.encrypted")


def test_a_sealed_key_is_decrypted_for_root() -> None:
    """With the command that docs/keys.md names, sealed to the host key; under another name it is refused."""
    key = os.urandom(32)
    STORE.mkdir(mode=0o700, exist_ok=True)
    text = base64.b64encode(key) + b"\n"
    seal = ["systemd-creds", "encrypt", "--with-key=host", "--name=offsite", "-", str(STORE / "offsite")]
    subprocess.run(seal, input=text, check=True)
    assert base64.b64encode(key) not in (STORE / "offsite").read_bytes()
    asking = key_sources.Asking({"PATH": os.environ["PATH"]}, "offsite", print)
    assert key == bytes(key_sources.obtain(["credential:offsite"], asking).reveal())
    (STORE / "offsite").rename(STORE / "another")
    with pytest.raises(Denied):
        key_sources.obtain(["credential:another"], asking)
    (STORE / "another").unlink()

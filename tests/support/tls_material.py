"""Certificates and pre-shared keys for a server and its clients, made when they are needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_DATES = "expiration_days = 2\n"
_AUTHORITY = f'cn = "authority"\nca\ncert_signing_key\n{_DATES}'
_SERVER = f'cn = "server"\nip_address = "127.0.0.1"\ntls_www_server\nsigning_key\n{_DATES}'
_CLIENT = f'cn = "client"\ntls_www_client\nsigning_key\n{_DATES}'


def _certtool(*words: str) -> None:
    subprocess.run(["certtool", *words], check=True, capture_output=True)


def _key(file: Path) -> None:
    _certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", f"--outfile={file}")


def certificates(folder: Path) -> Path:
    """A folder that serves both sides, by the names that nbdkit and libnbd have for them."""
    folder.mkdir()
    for name, template in (("ca", _AUTHORITY), ("server", _SERVER), ("client", _CLIENT)):
        (folder / f"{name}.info").write_text(template)
        _key(folder / f"{name}-key.pem")
        words = [f"--load-privkey={folder / name}-key.pem", f"--template={folder / name}.info"]
        words.append(f"--outfile={folder / name}-cert.pem")
        if name == "ca":
            _certtool("--generate-self-signed", *words)
        else:
            signs = [f"--load-ca-certificate={folder}/ca-cert.pem", f"--load-ca-privkey={folder}/ca-key.pem"]
            _certtool("--generate-certificate", *signs, *words)
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


def shared_keys(file: Path, *users: str) -> Path:
    """A key for each user (psktool(1) writes it so)."""
    file.write_text("".join(f"{user}:{os.urandom(32).hex()}\n" for user in users))
    file.chmod(0o600)
    return file

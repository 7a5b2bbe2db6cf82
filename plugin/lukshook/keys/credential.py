"""`credential:NAME`: a systemd credential (LoadCredentialEncrypted=, systemd-creds(1))."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from lukshook.errors import Denied, Unavailable
from lukshook.keys.key_sources import MOST_BYTES, Asking, is_file_name
from lukshook.system import files
from lukshook.system.command import output_of

store = staged = replace = by_hand = None
_STORE = Path("/etc/credstore.encrypted")
_SECONDS = 60.0


def check(argument: str) -> str:
    """One plain file name."""
    return "" if is_file_name(argument) else "a credential's name has letters, digits, dot, dash and underscore"


def obtain(argument: str, asking: Asking) -> bytes | bytearray:
    """From the unit's credentials, else decrypted from the machine's own store as root."""
    folder = asking.environment.get("CREDENTIALS_DIRECTORY")
    if folder:
        with suppress(FileNotFoundError):
            return _read(Path(folder) / argument)
    stored = _STORE / argument
    if os.path.isfile(stored):  # noqa: PTH113 - for an ordinary user False, where a Path raises PermissionError
        argv = ("systemd-creds", "decrypt", f"--name={argument}", str(stored), "-")
        return output_of(argv, asking.environment, _SECONDS, MOST_BYTES)
    where = folder or "$CREDENTIALS_DIRECTORY is not set"
    raise Unavailable(
        f"there is no credential {argument} ({where}), and none in {_STORE}",
        hint=f"in the unit: LoadCredentialEncrypted={argument}",
    )


def _read(file: Path) -> bytes:
    try:
        return files.read(file, MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Denied(
            f"the credential {file} cannot be read: {error.strerror}", hint="systemd.exec(5): LoadCredentialEncrypted="
        ) from error


def shown(argument: str) -> str:
    """systemd-creds."""
    return f"systemd-creds decrypt --name={argument} {shlex.quote(str(_STORE / argument))} -"

"""`file:PATH`: a file that only its owner can read."""

from __future__ import annotations

import os
import shlex
import stat

from lukshook.errors import Denied, Exists, Unavailable
from lukshook.keys import MOST_BYTES, Asking


def check(argument: str) -> str:
    """The path has to be absolute: hooks start in any folder."""
    return "" if argument.startswith("/") else "the path has to be absolute"


def obtain(argument: str, asking: Asking) -> bytes:
    """Read the file after looking at owner and mode of what was opened."""
    try:
        descriptor = os.open(argument, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise Unavailable(f"the key file {argument} is not there") from error
    except OSError as error:
        raise Denied(f"the key file {argument} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Denied(f"the key file {argument} is not a regular file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise Denied(
                f"others may read the key file {argument} (mode {stat.S_IMODE(found.st_mode):04o})",
                hint=f"chmod 600 {shlex.quote(argument)}",
            )
        if found.st_uid not in (0, os.geteuid()):
            raise Denied(f"the key file {argument} belongs to another user", hint="root or you have to own it")
        return file.read(MOST_BYTES)


def shown(argument: str) -> str:
    """cat."""
    return f"cat {shlex.quote(argument)}"


def store(argument: str, text: str) -> None:
    """Write a new file, mode 0600, and never over an old one. Raises `Exists`, `Unavailable`."""
    try:
        descriptor = os.open(argument, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Exists(f"the key file {argument} is there already") from error
    except OSError as error:
        raise Unavailable(f"the key file {argument} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)

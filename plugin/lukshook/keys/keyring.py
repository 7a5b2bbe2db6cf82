"""`keyring:SERVICE/USER`: the desktop's Secret Service and its like, through the keyring library."""

from __future__ import annotations

import shlex
from typing import Any

from lukshook.errors import Denied, Exists, Unavailable
from lukshook.keys import Asking


def check(argument: str) -> str:
    """Service and user."""
    service, _, user = argument.rpartition("/")
    return "" if service and user else 'it is written "keyring:SERVICE/USER"'


def _library() -> Any:
    try:
        import keyring  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(
            "the key source keyring needs the keyring library", hint="pip install 'lukshook[keyring]'"
        ) from error
    return keyring


def obtain(argument: str, asking: Asking) -> bytes:
    """Ask the user's keyring."""
    service, _, user = argument.rpartition("/")
    library = _library()
    try:
        value = library.get_password(service, user)
    except library.errors.KeyringError as error:
        raise Denied(
            f"the keyring gave no key for {service}/{user}: {error}",
            hint="a job of cron or root has no keyring of yours; use another source there",
        ) from error
    if value is None:
        raise Unavailable(f"the keyring has no key for {service}/{user}", hint=f"keyring set {service} {user}")
    return str(value).encode(errors="replace")


def shown(argument: str) -> str:
    """The library's own command."""
    service, _, user = argument.rpartition("/")
    return f"keyring get {shlex.quote(service)} {shlex.quote(user)}"


def store(argument: str, text: str) -> None:
    """Keep a new key, never over an old one."""
    service, _, user = argument.rpartition("/")
    library = _library()
    try:
        if library.get_password(service, user) is not None:
            raise Exists(
                f"the keyring has a key for {service}/{user} already",
                hint="remove it, or name another user of that service",
            )
        library.set_password(service, user, text)
    except library.errors.KeyringError as error:
        raise Unavailable(
            f"the keyring does not take a key: {error}",
            hint="a job of cron or root has no keyring of yours; use another source there",
        ) from error


def staged(argument: str) -> str:
    """A second user of the same service."""
    return argument + ".new"


def replace(argument: str) -> None:
    """Take the waiting key as the user's own, and only then remove the waiting one. Raises `Unavailable`."""
    service, _, user = argument.rpartition("/")
    library = _library()
    try:
        fresh = library.get_password(service, f"{user}.new")
        if fresh is not None:
            library.set_password(service, user, fresh)
            library.delete_password(service, f"{user}.new")
    except library.errors.KeyringError as error:
        raise Unavailable(
            f"the keyring does not take a key: {error}",
            hint="a job of cron or root has no keyring of yours; use another source there",
        ) from error

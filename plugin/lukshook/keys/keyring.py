"""`keyring:SERVICE/USER`: the desktop's Secret Service and its like, through the keyring library."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from lukshook.errors import Denied, Exists, LukshookError, Unavailable
from lukshook.keys.key_sources import Asking
from lukshook.system import foreign_code

by_hand = None
_T = TypeVar("_T")


def check(argument: str) -> str:
    """Service and user."""
    service, _, user = argument.rpartition("/")
    return "" if service and user else 'it is written "keyring:SERVICE/USER"'


def _library() -> Any:
    try:
        import keyring  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(
            "the key source keyring needs the keyring library",
            hint="install the extra keyring: docs/install.md, Extras",
        ) from error
    return keyring


def _call(what: str, argument: str, work: Callable[[Any, str, str], _T], kind: type[LukshookError]) -> _T:
    """What *work* gives, which calls the library: any backend that is installed, so anything may be raised.

    It is raised as *kind*, but for what is an error of ours already.
    """
    service, _, user = argument.rpartition("/")
    ended = foreign_code.attempt("the keyring library", lambda: work(_library(), service, user))
    if isinstance(ended.error, LukshookError):
        raise ended.error
    if ended.error is not None:
        why = foreign_code.reason(ended.error)
        foreign_code.let_go(ended.error)
        raise kind(
            f"{what}: {why}",
            hint="a cron job or root cannot use your keyring; use a different key source there",
        )
    found: _T = ended.value
    return found


def obtain(argument: str, asking: Asking) -> bytes:
    """Ask the user's keyring."""
    service, _, user = argument.rpartition("/")
    value = _call(f"the keyring gave no key for {service}/{user}", argument, _get, Denied)
    if value is None:
        raise Unavailable(f"the keyring has no key for {service}/{user}", hint=f"keyring set {service} {user}")
    return value


def _get(library: Any, service: str, user: str) -> bytes | None:
    value = library.get_password(service, user)
    return None if value is None else str(value).encode(errors="replace")


def shown(argument: str) -> str:
    """The library's own command."""
    service, _, user = argument.rpartition("/")
    return f"keyring get {shlex.quote(service)} {shlex.quote(user)}"


def store(argument: str, text: str) -> None:
    """Keep a new key, never over an old one."""

    def keep(library: Any, service: str, user: str) -> None:
        if library.get_password(service, user) is not None:
            raise Exists(
                f"the keyring already has a key for {service}/{user}",
                hint="remove it, or name another user of that service",
            )
        library.set_password(service, user, text)

    _call("the keyring cannot store a key", argument, keep, Unavailable)


def staged(argument: str) -> str:
    """A second user of the same service."""
    return argument + ".new"


def replace(argument: str) -> None:
    """Take the waiting key as the user's own, and only then remove the waiting one. Raises `Unavailable`."""
    _call("the keyring cannot store a key", argument, _move, Unavailable)


def _move(library: Any, service: str, user: str) -> None:
    fresh = library.get_password(service, f"{user}.new")
    if fresh is not None:
        library.set_password(service, user, fresh)
        library.delete_password(service, f"{user}.new")

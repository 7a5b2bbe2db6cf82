"""The kinds of targets, by how they are written: a path, or a URL such as sftp://user@host:port/path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lukshook.errors import Usage
from lukshook.replica.local import LocalTarget
from lukshook.replica.target import Target
from lukshook.store import liveness
from lukshook.store.remote.login import Login
from lukshook.store.remote.sftp_session import session
from lukshook.store.sftp_client import SftpTarget
from lukshook.system.command import Runner

_URL = re.compile(r"sftp://(?:([A-Za-z0-9_][A-Za-z0-9_.-]*)@)?([A-Za-z0-9][A-Za-z0-9.-]*)(?::([0-9]{1,5}))?(/.*[^/])")


def is_url(text: str) -> bool:
    """Whether *text* names something else than a path."""
    return "://" in text


def check_url(text: str) -> None:
    """Raises ValueError with what a URL of a target looks like."""
    if not _URL.fullmatch(text) or not text.isprintable():
        raise ValueError('a URL such as "sftp://user@host:22/path/offsite.img"')


@contextmanager
def open_target(text: str, runner: Runner, *, config: Path | None = None, agent: str = "") -> Iterator[Target]:
    """The target that *text* names. *config*: for ssh(1), in place of the user's own; *agent*: an ssh-agent's socket.

    Raises `Unavailable`, `Denied`, `Refused`, `Usage`, OSError.
    """
    if not is_url(text):
        liveness.probe(Path(text), runner)
        with LocalTarget(Path(text)) as local:
            yield local
        return
    found = _URL.fullmatch(text)
    if found is None:
        raise Usage(
            f"{text} is no place that lukshook can copy to", hint="a path, or sftp://user@host:22/path/copy.img"
        )
    user, host, port, path = found.groups()
    login = Login(user or "", host, int(port or 0), str(config) if config else "", agent)
    with session(login, runner) as sftp:
        yield SftpTarget(sftp, path.removeprefix("/~/"), text)

"""Where a copy can lie: at a path, or at a remote store that can keep one (`Store.replica`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lukshook.errors import BadConfiguration, Usage
from lukshook.replica.local import LocalTarget
from lukshook.store import liveness
from lukshook.store.access import Access
from lukshook.store.target import Target
from lukshook.system.command import Runner

if TYPE_CHECKING:
    from lukshook.store.remote.kind import Store


def is_url(text: str) -> bool:
    """Whether *text* names something else than a path."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", text)
    if scheme is None or scheme[2]:
        return scheme is not None
    from lukshook.store.remote import kinds  # noqa: PLC0415 - a path may have a colon, but few have

    return scheme[1] in kinds.WITHOUT_HOST


def store_of(url: str) -> Store:
    """The remote store of a copy. Raises ValueError with what would fit, BadConfiguration for a password."""
    from lukshook.store.remote import kinds  # noqa: PLC0415 - few copies lie behind a URL

    store = kinds.parse(url)
    if not store.abilities.copies:
        raise ValueError('a place that can keep a copy: a path, or a URL such as "sftp://user@host/path/offsite.img"')
    return store


@contextmanager
def open_target(
    text: str, runner: Runner, access: Access, agent: str, token: Path, *, writable: bool
) -> Iterator[Target]:
    """The target that *text* names. *agent*: the socket of an ssh-agent, or ""; *writable*: it will be changed.

    *token*: a file by which its store knows our locks, also those that a killed copy has left.
    Raises `Unavailable`, `Denied`, `Refused`, `Usage`, `BadConfiguration`, OSError.
    """
    if not is_url(text):
        liveness.probe(Path(text), runner)
        with LocalTarget(Path(text)) as local:
            yield local
        return
    try:
        store = access.to(store_of(text)).with_agent(agent).with_token(token)
    except ValueError as error:
        raise Usage(f"{text} is not {error}", hint="docs/copies.md says where a copy can lie") from error
    if store.verifies and not access.verifies:
        raise BadConfiguration(
            f"there is nothing to verify the server of {text} by",
            hint="set tls_certificates or tls_psk for this volume: docs/configuration.md",
        )
    with store.replica(runner, writable=writable) as target:
        yield target

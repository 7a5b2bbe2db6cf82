"""The kinds of remote store, by the scheme of their URL. A new kind is one file and one line here."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

from lukshook.errors import BadConfiguration
from lukshook.store.remote import nbd, nbds, rbd, sftp, ssh
from lukshook.store.remote.kind import Store
from lukshook.store.remote.parts import Parts

KINDS: dict[str, Callable[[Parts], Store]] = {
    "ssh": ssh.parse,
    "sftp": sftp.parse,
    "nbd": nbd.parse,
    "nbds": nbds.parse,
}
#: Those whose URL names no host: "rbd:pool/name".
WITHOUT_HOST: dict[str, Callable[[Parts], Store]] = {"rbd": rbd.parse}
_SHORT = re.compile(r"(?P<scheme>[a-z]+):(?P<path>(?!/)[^?#]+)")
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<user>[^/?#]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def parse(url: str) -> Store:
    """The image that *url* names. Raises ValueError with what would fit, BadConfiguration for a password."""
    short = _SHORT.fullmatch(url)
    if short is not None and short["scheme"] in WITHOUT_HOST:
        return WITHOUT_HOST[short["scheme"]](Parts(url, "", "", 0, _decoded(short["path"])))
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError('a URL such as "ssh://user@host/srv/backup.img"; write ? and # in a name as %3F and %23')
    make = KINDS.get(found["scheme"])
    if make is None:
        schemes = (*(f"{kind}://" for kind in KINDS), *(f"{kind}:" for kind in WITHOUT_HOST))
        raise ValueError("a URL that begins with " + " or ".join(schemes))
    user = found["user"] or ""
    if ":" in user:
        raise BadConfiguration("a URL may not have a password in it", hint="use a key, or an agent")
    if user and not _USER.fullmatch(user):
        raise ValueError("a URL with a plain user name")
    port = int(found["port"] or 0)
    if port > 65535:
        raise ValueError("a URL with a port up to 65535")
    return make(Parts(url, user, found["host"].strip("[]"), port, _decoded(found["path"] or "")))


def _decoded(path: str) -> str:
    return unquote(path, errors="surrogateescape")

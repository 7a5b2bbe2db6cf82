"""An NBD server behind TLS: `nbds://[user@]host[:port]/export`. The server is verified, or there is no connection.

nbdkit(1) on this side speaks TLS for each connection: its plugin nbd, by libnbd, checks the server's certificate and
name by the authority in *certificates*. A pre-shared key is known to both sides. The configuration has one of them.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from attrs import evolve, frozen

from lukshook.errors import Denied, Unavailable
from lukshook.store.remote import nbd
from lukshook.store.remote.kind import BEHIND, Link, Seen, connecting, watched
from lukshook.store.remote.nbd import Nbd
from lukshook.store.remote.parts import Parts
from lukshook.system import ownership
from lukshook.system.command import Runner

#: In the folder of certificates, by libnbd's names: who signs servers; the key of our own, where a server wants one.
_AUTHORITY, _KEY = "ca-cert.pem", "client-key.pem"


@frozen
class NbdTls(Nbd):
    """*certificates*: a folder, or None. *psk*: a file with pre-shared keys, or None; *user*: which of them, or ""."""

    user: str
    certificates: Path | None = None
    psk: Path | None = None

    tools: ClassVar[tuple[str, ...]] = ("nbdkit",)
    verifies: ClassVar[bool] = True

    @property
    def export(self) -> str:
        """Our own nbdkit has one alone."""
        return ""

    def with_tls(self, certificates: Path | None, psk: Path | None) -> NbdTls:
        """The same, with those."""
        return evolve(self, certificates=certificates, psk=psk)

    def link(self, *, read_only: bool, silence: float) -> Link:
        """One nbdkit, which never goes on without TLS.

        libnbd 1.14 verifies nobody where the certificate of the authority is not there, or cannot be read (both seen),
        so that is looked at before each connection.
        """
        needed = shlex.quote(os.fspath(self.psk or self._authority))
        there = f"[ -r {needed} ] && [ -s {needed} ] || {{ echo {needed} cannot be read >&2; exit 1; }}\n"
        where = (f"hostname={self.host}", f"port={self.port}", f"export={self.name}", "tls=require", "tls-verify=true")
        only = ("-r",) if read_only else ()
        words = ("nbdkit", *only, "-s", "nbd", *where, *self._material())
        return Link("EXEC:sh @FOLDER@/connect", connecting(watched(words, silence, BEHIND), there))

    @property
    def _authority(self) -> Path:
        return (self.certificates or Path("/nonexistent")) / _AUTHORITY

    def _material(self) -> tuple[str, ...]:
        user = (f"tls-username={self.user}",) if self.user else ()
        psk = (f"tls-psk={self.psk}",) if self.psk else ()
        return (*((f"tls-certificates={self.certificates}",) if self.certificates else ()), *psk, *user)

    def fetch(self, file: str) -> str:
        """With the tool of libnbd."""
        given = f"tls-psk-file={self.psk}" if self.psk else f"tls-certificates={self.certificates}"
        more = f"?{quote(given, safe='/=')}" if self.psk or self.certificates else ""
        return f"nbdcopy {shlex.quote(self.url + more)} {file}"

    def look(self, runner: Runner) -> Seen:
        """Nothing but our own keys; the export says the rest. Raises `Denied`, `Unavailable`."""
        if self.psk is not None:
            _check(self.psk, secret=True)
            return Seen(None)
        _check(self._authority, secret=False)
        if self._authority.with_name(_KEY).exists():
            _check(self._authority.with_name(_KEY), secret=True)
        return Seen(None)


def _check(file: Path, *, secret: bool) -> None:
    """Whether our nbdkit can use *file*, and nobody else may read a *secret* one. Raises `Denied`, `Unavailable`."""
    shown = os.fspath(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Unavailable(f"the file {shown} is not there", hint="TLS needs it: docs/stores.md") from error
    except OSError as error:
        raise Denied(
            f"the file {shown} cannot be read: {error.strerror}", hint="it has to belong to the user who runs lukshook"
        ) from error
    try:
        if secret:
            ownership.check_private(f"the key file {shown}", shown, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def parse(parts: Parts) -> NbdTls:
    """The export that a URL names. Raises ValueError."""
    return NbdTls(parts.url, parts.host, parts.port or nbd.PORT, nbd.name_of(parts), parts.user)

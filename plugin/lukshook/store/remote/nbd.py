"""An NBD server: `nbd://host[:port]/export`. It has neither locks nor a way to ask for more than the export."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from typing import ClassVar

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.store.block_target import BlockTarget
from lukshook.store.remote.block_copies import block_target
from lukshook.store.remote.kind import OPEN, Abilities, Link, Seen, Store, connecting, reason, watched
from lukshook.store.remote.parts import Parts
from lukshook.system.command import Runner
from lukshook.system.text import clipped, fault_of_path

#: The port that IANA gave to NBD.
PORT = 10809
#: Seconds until a connection on which nothing is acknowledged any more counts as broken.
_SILENT = 45
#: tcp(7): IPPROTO_TCP, TCP_USER_TIMEOUT, in milliseconds.
_USER_TIMEOUT = f"setsockopt-int=6:18:{_SILENT * 1000}"


@frozen
class Nbd(Store):
    """*name*: of the export, "" for the server's default one."""

    host: str
    port: int
    name: str

    abilities: ClassVar[Abilities] = Abilities(
        lock=False, measure=False, create=False, grow=False, reboots=True, copies=True
    )

    @property
    def export(self) -> str:
        """Its name."""
        return self.name

    def link(self, *, read_only: bool, silence: float) -> Link:
        """Straight to the server; a line that has gone silent is noticed by TCP."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        alive = "keepalive,keepidle=15,keepintvl=15,keepcnt=3"
        words = ("socat", "STDIO", f"TCP:{host}:{self.port},nodelay,{alive},{_USER_TIMEOUT}")
        return Link("EXEC:sh @FOLDER@/connect", connecting(watched(words, silence, OPEN)))

    def fetch(self, file: str) -> str:
        """With the tool of libnbd."""
        return f"nbdcopy {shlex.quote(self.url)} {file}"

    def look(self, runner: Runner) -> Seen:
        """Nothing: the export says the rest."""
        return Seen(None)

    def replica(self, runner: Runner, *, writable: bool) -> AbstractContextManager[BlockTarget]:
        """The copy lies at the begin of the export; what lies beside it for a time, at the end."""
        return block_target(self, runner, writable=writable)

    def refusal(self, said: str, status: int | None) -> Unavailable:
        """The server is away, or refuses."""
        why = clipped(reason(said), 300) or "it closed the connection"
        return Unavailable(
            f"the NBD server {self.host}, port {self.port}, gave no export: {why}",
            hint="is it running, and does it have the export? nbdinfo shows that",
        )


def parse(parts: Parts) -> Nbd:
    """The export that a URL names. Raises ValueError."""
    if parts.user:
        raise ValueError("a URL without a user: NBD has none")
    return Nbd(parts.url, parts.host, parts.port or PORT, name_of(parts))


def name_of(parts: Parts) -> str:
    """The name of the export. Raises ValueError."""
    name = parts.path.removeprefix("/")
    fault = fault_of_path(f"/{name}")
    if fault:
        raise ValueError(fault)
    return name

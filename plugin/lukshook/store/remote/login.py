"""How ssh(1) is started for an image on another machine, and what it means where that does not let us in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import frozen

from lukshook.errors import Denied, LukshookError, Refused, Unavailable
from lukshook.store.remote.kind import OWN_WORDS
from lukshook.store.remote.parts import Parts
from lukshook.system.command import Result
from lukshook.system.text import fault_of_path

#: Never ask; never learn a host key, neither a new host's nor more keys of a known one; notice a line that has gone
#: silent; a connection of its own for each.
_OPTIONS = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no"),
    *("ServerAliveInterval=15", "ServerAliveCountMax=3"),
    *("ControlMaster=no", "ControlPath=none", "ConnectTimeout=20", "ForwardAgent=no", "ForwardX11=no"),
    *("ClearAllForwardings=yes", "PermitLocalCommand=no", "RequestTTY=no", "EscapeChar=none", "LogLevel=INFO"),
)
#: What means something in a pattern of glob(7).
_PATTERN = re.compile(r"[\\*?[{}]")
#: The exit status of ssh itself.
OF_SSH = 255
#: Bytes of what ssh says.
_MOST_SAID = 1 << 16


@frozen
class Login:
    """*port* 0: the default. *config*: for ssh(1), in place of the user's own; *agent*: socket of an ssh-agent(1)."""

    user: str
    host: str
    port: int
    config: str = ""
    agent: str = ""

    @staticmethod
    def of(parts: Parts) -> Login:
        """What a URL says of it."""
        return Login(parts.user, parts.host, parts.port)

    @property
    def environment(self) -> dict[str, str]:
        """What ssh needs besides the environment of every tool."""
        return {"SSH_AUTH_SOCK": self.agent} if self.agent else {}

    def shell(self, remote: str, own: str) -> tuple[str, ...]:
        """Ssh, with one line for the login shell there, whichever that is. *own*: a file for its own words."""
        return (*self._ssh(own), "-T", *self._where(), f"exec sh -c {shlex.quote(remote)}")

    def kept(self, remote: str) -> tuple[str, ...]:
        """The same for a connection that stays; the agent is in the words, for no environment is handed down."""
        agent = ("env", f"SSH_AUTH_SOCK={self.agent}") if self.agent else ()
        return (*agent, *self.shell(remote, OWN_WORDS))

    def sftp(self, own: str) -> tuple[str, ...]:
        """Ssh, with the SFTP server there; it needs no shell. *own*: as in `shell`."""
        return (*self._ssh(own), "-s", *self._where(), "sftp")

    def by_hand(self, remote: str) -> str:
        """What a person types."""
        return shlex.join(("ssh", *self._where(), remote))

    def sftp_by_hand(self) -> str:
        """What a person types who has no shell there."""
        return shlex.join(("sftp", *self._for_files()))

    def fetch_by_hand(self, path: str) -> str:
        """How such a person gets a file; the place for it has to follow. scp(1) takes the name for a pattern."""
        *options, where = self._for_files()
        return shlex.join(("scp", "-s", *options, f"{where}:{_PATTERN.sub(_escaped, path)}"))

    def unreached(self, said: str, reason: str, test: str = "") -> LukshookError:
        """Why ssh did not get in. *said*: its own words; *reason*, on one line, where it has none; *test*: by hand."""
        test = test or self.by_hand("true")
        reason = Result(OF_SSH, "", said).reason if said else reason
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            return Refused(
                f"{self.host} shows another host key than the one that is known",
                hint="it may be another machine: ask its owner before you change known_hosts",
            )
        if "Host key verification failed" in said:
            return Unavailable(
                f"the host key of {self.host} is not known to this user",
                hint=f"compare it with what its owner tells you, then accept it once: {test}",
            )
        if "Permission denied" in said:
            return Denied(
                f"{self.host} does not let us in: {reason}", hint=f"this has to work without a question: {test}"
            )
        return Unavailable(f"{self.host} cannot be reached: {reason}", hint=f"does this work? {test}")

    def _ssh(self, own: str) -> tuple[str, ...]:
        return ("ssh", "-E", own, *(word for option in _OPTIONS for word in ("-o", option)))

    def _for_files(self) -> tuple[str, ...]:
        config = ("-F", self.config) if self.config else ()
        port = ("-P", str(self.port)) if self.port else ()
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (*config, *port, "--", f"{self.user}@{host}" if self.user else host)

    def _where(self) -> tuple[str, ...]:
        config = ("-F", self.config) if self.config else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*config, *port, "--", f"{self.user}@{self.host}" if self.user else self.host)


@contextmanager
def own_words() -> Iterator[tuple[str, Callable[[], str]]]:
    """A file for the words of ssh itself, and what gives them: the far side can write to its standard error."""
    from tempfile import NamedTemporaryFile  # noqa: PLC0415 - only to connect

    with NamedTemporaryFile(prefix="lukshook-") as file:
        yield file.name, lambda: file.read(_MOST_SAID).decode(errors="replace")


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def path_of(parts: Parts) -> str:
    """The path of the image that a URL names; relative to the user's home folder for `/~/`. Raises ValueError."""
    fault = fault_of_path(parts.path)
    if fault or parts.path.endswith("/") or not parts.path:
        raise ValueError(fault or "a URL with the path of a file")
    path = parts.path.removeprefix("/~/")
    return path if path == parts.path else f"./{path}"

"""Another machine, as far as lukshook can tell: an sshd with keys of its own on the loopback, or an NBD server."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from lukshook.system import kernel, processes

SSHD, LOOPBACK = "/usr/sbin/sshd", "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def answers(port: int, address: str = LOOPBACK) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex((address, port)) == 0


@define
class FarHost:
    """A host that ssh calls "far". Images lie in *store*; programs in *shadows* come first on its PATH.

    *settings*: more lines for its sshd. It answers at *address*; *enter*: the words that start a program there.
    """

    folder: Path
    port: int = field(factory=free_port)
    path: str = field(factory=lambda: os.environ["PATH"])
    settings: str = ""
    address: str = LOOPBACK
    enter: tuple[str, ...] = ()
    server: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def shadows(self) -> Path:
        return self.folder / "shadows"

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def known(self) -> Path:
        return self.folder / "known"

    def url(self, name: str = "backup.img", scheme: str = "ssh") -> str:
        """The URL of an image in `store`; *name* is encoded already."""
        return f"{scheme}://far{self.store}/{name}"

    def prepare(self) -> None:
        """Keys, and both sides' configuration. The host has a key more, which it offers to all who know the first."""
        for folder in (self.folder, self.store, self.shadows):
            folder.mkdir(parents=True, exist_ok=True)
        for key, kind in (("host", "ed25519"), ("more", "ecdsa"), ("user", "ed25519")):
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", self.folder / key], check=True)
        public = (self.folder / "host.pub").read_text().split(" ")
        self.known.write_text(f"[{self.address}]:{self.port} {public[0]} {public[1]}\n")
        self.config.write_text(
            f"Host far\n HostName {self.address}\n Port {self.port}\n User {pwd.getpwuid(os.geteuid()).pw_name}\n"
            f" IdentityFile {self.folder / 'user'}\n IdentitiesOnly yes\n UserKnownHostsFile {self.known}\n"
            " UpdateHostKeys yes\n"  # the default where there is no UserKnownHostsFile (ssh_config(5))
        )
        self.prepare_server()

    def prepare_server(self) -> None:
        """What sshd reads when it starts. Its own HOME: no file of this machine's user is read by the shells there."""
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {self.address}\nHostKey {self.folder / 'host'}\n"
            f"HostKey {self.folder / 'more'}\n"
            f"AuthorizedKeysFile {self.folder / 'user.pub'}\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"PermitRootLogin yes\nSetEnv HOME={self.folder} PATH={self.shadows}:{self.path}\nMaxStartups 100\n"
            f"{self.settings}"
        )

    def start(self) -> None:
        """Let it answer."""
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            argv = [*self.enter, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert kernel.wait_until(lambda: answers(self.port, self.address), 20.0), (self.folder / "sshd.log").read_text()

    def stop(self) -> None:
        """It is gone at once, with all that it has started."""
        if self.server is not None:
            ended = [(self.server.pid, kernel.started(self.server.pid) or 0), *processes.family(self.server.pid)]
            for pid, started in ended:
                processes.tell(pid, started, signal.SIGKILL)
            self.server.wait(10)
            self.server = None
            assert kernel.wait_until(lambda: not any(kernel.started(p) == s for p, s in ended), 10.0)

    def shadow(self, program: str, script: str) -> None:
        """Let a shell script answer instead of *program* there."""
        file = self.shadows / program
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def serving(self, name: str) -> list[int]:
        """The processes there of that name (comm)."""
        assert self.server is not None
        return [pid for pid, _ in processes.family(self.server.pid) if kernel.command(pid) == name]


@contextmanager
def far_host(folder: Path, settings: str = "") -> Iterator[FarHost]:
    """One that answers."""
    host = FarHost(folder, settings=settings)
    host.prepare()
    host.start()
    try:
        yield host
    finally:
        host.stop()


@contextmanager
def nbd_server(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real nbdkit with *options*: plugin, filters, parameters."""
    server = start_nbd(port, options)
    try:
        yield server
    finally:
        server.kill()
        server.wait(10)


def start_nbd(
    port: int, options: Sequence[str], address: str = LOOPBACK, enter: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """As `nbd_server`, for those who end it themselves; at *address*, on a machine that *enter* leads to."""
    words = [*enter, "nbdkit", "--foreground", f"--ipaddr={address}", f"--port={port}", *options]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    assert kernel.wait_until(lambda: answers(port, address), 20.0)
    return server

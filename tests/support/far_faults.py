"""Places of every kind for a remote image, and what can go wrong there: behind a relay, on a file that can be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from attrs import define, field

from lukshook.system import kernel, processes
from support.far_host import FarHost, answers, free_port, start_nbd
from support.lossy_file import LossyFile
from support.lukshook_process import kill_all
from support.tls_material import shared_keys

SIZE = 64 << 20
SERVER = "/usr/lib/openssh/sftp-server"
BOOT = "/proc/sys/kernel/random/boot_id"


def signal_all(pids: list[int], number: int) -> None:
    """That signal to each that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@define
class Relay:
    """Passes on what comes to *port*; it can fall silent without a word."""

    to: int
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Let it listen."""
        listen = f"TCP-LISTEN:{self.port},bind=127.0.0.1,fork,reuseaddr"
        words = ["socat", listen, f"TCP:127.0.0.1:{self.to}"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert kernel.wait_until(lambda: answers(self.port), 20.0)

    def lines(self) -> list[int]:
        """A process for each connection."""
        assert self.process is not None
        return [pid for pid, _ in processes.family(self.process.pid)]

    def stop(self) -> None:
        """All lines are cut."""
        if self.process is not None:
            kill_all([self.process.pid, *self.lines()])
            self.process.wait(10)


class Place(ABC):
    """A server with one image, and the options of a volume that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.port = free_port()
        self.relay = Relay(self.port)
        self.worker = ThreadPoolExecutor(1)  # stays: nbdkit ends with the thread that has started it
        self.lossy = LossyFile(self.image, folder / "kept", folder)

    @property
    def image(self) -> Path:
        return self.folder / "export"

    @property
    @abstractmethod
    def url(self) -> str:
        """As it is configured."""

    @property
    def options(self) -> dict[str, object]:
        """More of the configuration."""
        return {}

    @property
    def is_alone(self) -> bool:
        """Whether what serves is the server itself, so that nobody starts another one."""
        return False

    @abstractmethod
    def up(self) -> None:
        """The server runs."""

    @abstractmethod
    def down(self) -> None:
        """The server is gone at once, with all that it has started."""

    @abstractmethod
    def serving(self) -> list[int]:
        """The processes that serve connections."""

    def prepare(self) -> None:
        """Make what the server needs."""
        with self.image.open("wb") as file:
            file.truncate(SIZE)

    def become_lossy(self) -> None:
        """From now on, a reboot loses what was not synced."""
        self.down()
        subprocess.run(["cp", "--sparse=always", self.image, self.lossy.kept], check=True)
        self.lossy.start()
        self.up()

    def reboot(self) -> None:
        """The machine starts again."""
        self.lossy.crash()
        self.lossy.start()


class NbdPlace(Place):
    """nbdkit."""

    server: subprocess.Popen[bytes] | None = None
    scheme = "nbd"

    @property
    def url(self) -> str:
        return f"nbd://127.0.0.1:{self.relay.port}/"

    @property
    def is_alone(self) -> bool:
        return True

    def words(self) -> list[str]:
        return ["file", str(self.image)]

    def up(self) -> None:
        self.server = start_nbd(self.port, self.words())

    def down(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait(10)
            self.server = None

    def serving(self) -> list[int]:
        return [self.server.pid] if self.server is not None and self.server.poll() is None else []


class NbdsPlace(NbdPlace):
    """nbdkit behind TLS."""

    @property
    def url(self) -> str:
        return f"nbds://me@127.0.0.1:{self.relay.port}/"

    @property
    def options(self) -> dict[str, object]:
        return {"tls_psk": str(self.folder / "keys.psk")}

    def prepare(self) -> None:
        super().prepare()
        shared_keys(self.folder / "keys.psk", "me")

    def words(self) -> list[str]:
        return ["--tls=require", f"--tls-psk={self.folder / 'keys.psk'}", *super().words()]


class SshPlace(Place):
    """sshd, with a shell."""

    scheme, settings, program = "ssh", "", "nbdkit"
    boots = 0

    def __init__(self, folder: Path) -> None:
        self.far = FarHost(folder / "far", settings=self.settings)
        super().__init__(folder)
        self.far.port = self.port

    @property
    def image(self) -> Path:
        return self.far.store / "backup.img"

    @property
    def url(self) -> str:
        return self.far.url(scheme=self.scheme)

    @property
    def options(self) -> dict[str, object]:
        return {"ssh_config": str(self.far.config)}

    def prepare(self) -> None:
        self.far.prepare()
        for file in (self.far.config, self.far.known):
            file.write_text(file.read_text().replace(str(self.port), str(self.relay.port)))

    def up(self) -> None:
        self.far.start()

    def down(self) -> None:
        self.far.stop()

    def serving(self) -> list[int]:
        return [] if self.far.server is None else self.far.serving(self.program)

    def reboot(self) -> None:
        super().reboot()
        self.boots += 1
        self.far.shadow("cat", f'case "$*" in {BOOT}) echo boot-{self.boots} ;; *) exec /bin/cat "$@" ;; esac')


class SftpPlace(SshPlace):
    """sshd, with SFTP alone."""

    scheme, settings, program = "sftp", f"Subsystem sftp {SERVER}\n", "sftp-server"


PLACES: dict[str, Callable[[Path], Place]] = {
    "ssh": SshPlace,
    "sftp": SftpPlace,
    "nbd": NbdPlace,
    "nbds": NbdsPlace,
}


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    """One that answers, without an image where it can be made there."""
    found = PLACES[kind](folder)
    found.prepare()
    try:
        found.up()
        found.relay.start()
        yield found
    finally:
        found.relay.stop()
        found.down()
        found.lossy.crash()
        found.worker.shutdown()


# What goes wrong. Each takes some time, at the end of which the place answers again.


def killed(place: Place, chance: Random) -> None:
    """What serves the connection, alone."""
    kill_all(place.serving())
    if place.is_alone:
        place.down()
        time.sleep(chance.uniform(0.0, 3.0))
        place.up()


def stopped(place: Place, chance: Random) -> None:
    """It hangs, for a moment or longer than anybody waits."""
    pids = place.serving()
    signal_all(pids, signal.SIGSTOP)
    time.sleep(chance.choice((1.0, 3.0, 14.0)))
    signal_all(pids, signal.SIGCONT)


def silent(place: Place, chance: Random) -> None:
    """The line passes nothing on, and no end says so; new ones work. What it holds may still come, or never."""
    lines = place.relay.lines()
    signal_all(lines, signal.SIGSTOP)
    time.sleep(chance.choice((2.0, 13.0)))
    if chance.choice((True, False)):
        signal_all(lines, signal.SIGCONT)
    else:
        kill_all(lines)


def restarted(place: Place, chance: Random) -> None:
    """The server, with all that it has started."""
    place.down()
    time.sleep(chance.uniform(0.0, 4.0))
    place.up()


def rebooted(place: Place, chance: Random) -> None:
    """The machine: what it had not synced is gone."""
    place.down()
    place.reboot()
    time.sleep(chance.uniform(0.0, 3.0))
    place.up()


FAULTS = (killed, stopped, silent, restarted, rebooted)


class Fault:
    """One of `FAULTS`, at a random moment of the next *span* seconds, meanwhile."""

    def __init__(self, place: Place, chance: Random, span: float) -> None:
        self.what, self.after = chance.choice(FAULTS), chance.uniform(0.0, span)
        self._struck = place.worker.submit(self._strike, place, chance)

    def __str__(self) -> str:
        return f"{self.what.__name__} after {self.after:.1f} s"

    def _strike(self, place: Place, chance: Random) -> None:
        time.sleep(self.after)
        self.what(place, chance)

    def over(self) -> None:
        """Wait until the place answers again. Raises what went wrong with it."""
        self._struck.result()

"""A place of every kind for a remote image: a server, its image or images, and the options of a volume there."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from attrs import define, field

from lukshook.store.remote import kinds
from lukshook.system import kernel, processes
from support.ceph_cluster import POOL, CephCluster
from support.far_host import LOOPBACK, FarHost, answers, free_port, start_nbd
from support.far_network import FarNetwork
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
    """Passes on what comes to *port* at *address*; it can fall silent without a word. It runs where *enter* leads."""

    to: int
    address: str = LOOPBACK
    enter: tuple[str, ...] = ()
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Let it listen."""
        listen = f"TCP-LISTEN:{self.port},bind={self.address},fork,reuseaddr"
        words = [*self.enter, "socat", listen, f"TCP:{self.address}:{self.to}"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert kernel.wait_until(lambda: answers(self.port, self.address), 20.0)

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
    """A server with one image. *network*: the line to its machine, None where that is this one."""

    #: Whether it has a line that can fall silent alone, and a file that loses what is not synced.
    is_relayed = True

    def __init__(self, folder: Path, network: FarNetwork | None) -> None:
        self.folder, self.network = folder, network
        self.address, self.enter = (network.far, network.enter) if network else (LOOPBACK, ())
        folder.mkdir()
        self.port = free_port()
        self.relay = Relay(self.port, self.address, self.enter)
        self.worker = ThreadPoolExecutor(1)  # stays: nbdkit ends with the thread that has started it
        self.lossy = LossyFile(self.image, folder / "kept", folder)

    @property
    def image(self) -> Path:
        return self.folder / "export"

    @property
    def url(self) -> str:
        """As it is configured."""
        return self.url_of("backup.img")

    @abstractmethod
    def url_of(self, name: str) -> str:
        """The same for an image of another *name*, encoded already."""

    @property
    def options(self) -> dict[str, object]:
        """More of the configuration."""
        return {}

    @property
    def can_create(self) -> bool:
        return kinds.parse(self.url).abilities.create

    def elsewhere(self) -> tuple[str, dict[str, object]]:
        """Where a copy at a place of another kind lies, and the options of a volume there."""
        return str(self.folder / "copy.img"), {}

    def images(self) -> list[str]:
        """The names of the images there, and of all else that is left; no mark of who had an image last."""
        return [self.image.name]

    def content(self) -> bytes:
        """What lies there."""
        return self.image.read_bytes()

    def is_free(self) -> bool:
        """Whether the place lets another host have the image."""
        return True

    @abstractmethod
    def up(self) -> None:
        """All that belongs to the server runs."""

    @abstractmethod
    def down(self) -> None:
        """The server is gone at once, with all that it has started."""

    @abstractmethod
    def serving(self) -> list[int]:
        """The processes that serve connections."""

    def hit(self, chance: Random) -> list[int]:
        """Those of them that something happens to."""
        return self.serving()

    def kill(self, pids: list[int]) -> None:
        """End these of `serving`; `up` brings them back."""
        kill_all(pids)

    def stumble(self) -> None:
        """What serves the image crashes, and is there again."""
        self.kill(self.serving())
        self.up()

    def prepare(self) -> None:
        """Make what the server needs."""
        with self.image.open("wb") as file:
            file.truncate(SIZE)

    def start(self) -> None:
        """Let it answer."""
        self.prepare()
        self.up()
        self.relay.start()

    def stop(self) -> None:
        """It is gone, with what it has kept."""
        self.relay.stop()
        self.down()
        self.lossy.crash()
        self.worker.shutdown()

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

    def url_of(self, name: str) -> str:
        return f"nbd://{self.address}:{self.relay.port}/"

    def words(self) -> list[str]:
        return ["file", str(self.image)]

    def up(self) -> None:
        if not self.serving():
            self.server = start_nbd(self.port, self.words(), self.address, self.enter)

    def down(self) -> None:
        self.kill([])

    def kill(self, pids: list[int]) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait(10)
            self.server = None

    def serving(self) -> list[int]:
        return [self.server.pid] if self.server is not None and self.server.poll() is None else []


class NbdsPlace(NbdPlace):
    """nbdkit behind TLS."""

    def url_of(self, name: str) -> str:
        return f"nbds://me@{self.address}:{self.relay.port}/"

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

    scheme, settings, program = "ssh", "ClientAliveInterval 2\nClientAliveCountMax 3\n", "nbdkit"
    boots = 0

    def __init__(self, folder: Path, network: FarNetwork | None) -> None:
        address, enter = (network.far, network.enter) if network else (LOOPBACK, ())
        self.far = FarHost(folder / "far", settings=self.settings, address=address, enter=enter)
        super().__init__(folder, network)
        self.far.port = self.port

    @property
    def image(self) -> Path:
        return self.far.store / "backup.img"

    def url_of(self, name: str) -> str:
        return self.far.url(name, self.scheme)

    @property
    def options(self) -> dict[str, object]:
        return {"ssh_config": str(self.far.config)}

    def images(self) -> list[str]:
        return [name for name in os.listdir(self.far.store) if not name.endswith(".lukshook-holder")]

    def is_free(self) -> bool:
        return subprocess.run(["flock", "-xn", self.image, "true"], check=False).returncode == 0

    def prepare(self) -> None:
        self.far.prepare()
        for file in (self.far.config, self.far.known):
            file.write_text(file.read_text().replace(str(self.port), str(self.relay.port)))

    def up(self) -> None:
        if self.far.server is None:
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

    scheme, settings, program = "sftp", f"Subsystem sftp {SERVER}\n{SshPlace.settings}", "sftp-server"


class LocalPlace(Place):
    """A folder of this machine. A copy goes to a host behind ssh, which has its options in the configuration."""

    is_relayed = False

    def __init__(self, folder: Path, network: FarNetwork | None) -> None:
        super().__init__(folder, network)
        self.other = SshPlace(folder / "other", network)

    @property
    def image(self) -> Path:
        return self.folder / "store/backup.img"

    def url_of(self, name: str) -> str:
        return str(self.image.with_name(name))

    @property
    def options(self) -> dict[str, object]:
        return self.other.options

    @property
    def can_create(self) -> bool:
        return True

    def elsewhere(self) -> tuple[str, dict[str, object]]:
        return self.other.url, self.other.options

    def images(self) -> list[str]:
        return os.listdir(self.image.parent)

    def start(self) -> None:
        self.image.parent.mkdir()
        self.other.start()

    def stop(self) -> None:
        self.other.stop()
        self.worker.shutdown()

    def up(self) -> None:
        """No server."""

    def down(self) -> None:
        """No server."""

    def serving(self) -> list[int]:
        return []


class RbdPlace(Place):
    """A Ceph cluster, of its own, or one that is there."""

    is_relayed = False

    def __init__(self, folder: Path, network: FarNetwork | None, cluster: CephCluster | None = None) -> None:
        super().__init__(folder, network)
        self._is_own = cluster is None
        self.cluster = cluster or CephCluster(folder / "ceph", 3, address=self.address, enter=self.enter)

    def url_of(self, name: str) -> str:
        return f"rbd:{POOL}/h1/{self.folder.parent.name}-{name}"

    @property
    def options(self) -> dict[str, object]:
        return {"ceph_user": "h1", "ceph_config": str(self.cluster.config)}

    def images(self) -> list[str]:
        begin = f"{self.folder.parent.name}-"
        names = self.cluster.json("rbd", "ls", f"{POOL}/h1")
        return [name.removeprefix(begin) for name in names if name.startswith(begin)]

    @property
    def _at(self) -> str:
        return self.url.removeprefix("rbd:")

    def content(self) -> bytes:
        file = self.folder / "exported"
        file.unlink(missing_ok=True)
        self.cluster.do("rbd", "export", "--no-progress", self._at, str(file))
        return file.read_bytes()

    def is_free(self) -> bool:
        return not self.cluster.json("rbd", "status", self._at)["watchers"]

    def start(self) -> None:
        if self._is_own:
            self.cluster.prepare()
            self.cluster.host("h1")

    def stop(self) -> None:
        if self._is_own:
            self.cluster.stop()
        self.worker.shutdown()

    def up(self) -> None:
        self.cluster.start(*(name for name in self.cluster.all_daemons if name not in self.cluster.daemons))
        self.cluster.wait_for_osds(len(self.cluster.osds))

    def down(self) -> None:
        self.cluster.kill(*self.cluster.daemons)

    def serving(self) -> list[int]:
        return [self.cluster.daemons[name].pid for name in self.cluster.osds if name in self.cluster.daemons]

    def hit(self, chance: Random) -> list[int]:
        """One OSD, or all of them."""
        pids = self.serving()
        return chance.choice(([chance.choice(pids)], pids))

    def kill(self, pids: list[int]) -> None:
        self.cluster.kill(*(name for name, daemon in list(self.cluster.daemons.items()) if daemon.pid in pids))

    def stumble(self) -> None:
        """One OSD."""
        self.cluster.kill("osd.1")
        self.cluster.start("osd.1")

    def become_lossy(self) -> None:
        """Its OSDs sync what they answer for; whether they do is Ceph's affair."""


PLACES: dict[str, Callable[[Path, FarNetwork | None], Place]] = {
    "ssh": SshPlace,
    "sftp": SftpPlace,
    "nbd": NbdPlace,
    "nbds": NbdsPlace,
    "rbd": RbdPlace,
}


def place_of(kind: str, folder: Path, cluster: CephCluster | None = None) -> Place:
    """One of `PLACES`, "rbd" in a *cluster* that is there, or "path": a folder of this machine."""
    if kind == "path":
        return LocalPlace(folder, None)
    if kind == "rbd":
        return RbdPlace(folder, None, cluster)
    return PLACES[kind](folder, None)


@contextmanager
def place(kind: str, folder: Path, network: FarNetwork | None = None) -> Iterator[Place]:
    """One that answers, without an image where it can be made there."""
    yield from running(PLACES[kind](folder, network))


def running(found: Place) -> Iterator[Place]:
    """For fixtures: *found* answers until the end."""
    try:
        found.start()
        yield found
    finally:
        found.stop()

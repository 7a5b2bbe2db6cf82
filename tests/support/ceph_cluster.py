"""A Ceph cluster of its own, on the loopback: monitor, manager and OSDs as ordinary processes, with cephx."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

from lukshook.system import kernel
from support.far_host import LOOPBACK, free_port

#: What a test with a cluster needs: `pytest.mark.needs(*CEPH)`.
CEPH = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd", "qemu-nbd")
#: The environment variable with the folder of a cluster outside of the test kernel.
OUTSIDE = "LUKSHOOK_TEST_CEPH"
#: The pool that images lie in.
POOL = "backup"
_PLACEMENT_GROUPS = "8"
#: A file with the names of daemons that a guest wants to crash.
_ORDER = "order"
_CONFIGURATION = """[global]
fsid = {fsid}
mon_host = [v2:{address}:{port}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/$name.keyring
public_network = {address}/32
run_dir = {folder}/run
crash_dir = {folder}/run
pid_file = {folder}/run/$name.pid
log_file = {folder}/$name.log
log_to_stderr = false
mon_data = {folder}/mon
mgr_data = {folder}/mgr
osd_data = {folder}/osd$id
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_osd_down_out_interval = 3600
mgr_initial_modules =
osd_pool_default_size = {copies}
osd_pool_default_min_size = {least}
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_heartbeat_grace = 6
osd_heartbeat_interval = 1
bluestore_block_size = {disk}
bluestore_block_create = true
[mon]
admin_socket = {folder}/run/$name.asok
[mgr]
admin_socket = {folder}/run/$name.asok
[osd]
admin_socket = {folder}/run/$name.asok
[client]
log_file =
admin_socket =
"""


@define
class CephCluster:
    """Everything of it lies in *folder*. *copies*: how many OSDs have each object, and how many OSDs there are.

    It answers at *address*; *enter*: the words that start a program there.
    """

    folder: Path
    copies: int = 1
    port: int = field(factory=free_port)
    disk: int = 4 << 30
    address: str = LOOPBACK
    enter: tuple[str, ...] = ()
    daemons: dict[str, subprocess.Popen[bytes]] = field(factory=dict)

    @property
    def config(self) -> Path:
        """Its ceph.conf, for clients too."""
        return self.folder / "ceph.conf"

    def do(self, *words: str) -> str:
        """A command of Ceph as its administrator; what it prints."""
        done = self.tried(*words)
        assert done.returncode == 0, f"{done.args}: {done.stderr}"
        return done.stdout

    def tried(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same, which may fail."""
        tool, *rest = words
        argv = [tool, f"--conf={self.config}", *rest]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)

    def json(self, *words: str) -> Any:
        """The same, parsed."""
        return json.loads(self.do(*words, "--format=json"))

    def prepare(self) -> None:
        """Keys, the monitor's map, the pool: all that is made once. Leaves everything running."""
        (self.folder / "run").mkdir(parents=True)
        for name in ("mon", "mgr", *(f"osd{number}" for number in range(self.copies))):
            (self.folder / name).mkdir()
        fsid = str(uuid.uuid4())
        facts = {"folder": self.folder, "fsid": fsid, "address": self.address, "port": self.port, "disk": self.disk}
        self.config.write_text(_CONFIGURATION.format(**facts, copies=self.copies, least=min(self.copies, 2)))
        self._make_keys()
        monitors = str(self.folder / "monitors")
        self._tool(
            "monmaptool", "--create", "--addv", "a", f"[v2:{self.address}:{self.port}]", "--fsid", fsid, monitors
        )
        keyring = str(self.folder / "mon.a.keyring")
        self.do("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors, "--keyring", keyring)
        self.start("mon.a")
        self.start("mgr.x")
        for number in range(self.copies):
            identity = str(uuid.uuid4())
            self.do("ceph", "osd", "new", identity)
            self.do("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", identity)
            self.start(f"osd.{number}")
        self.wait_for_osds(self.copies)
        self.make_pool(POOL)

    def make_pool(self, name: str) -> None:
        """A pool for images."""
        self.do("ceph", "osd", "pool", "create", name, _PLACEMENT_GROUPS, _PLACEMENT_GROUPS)
        self.do("rbd", "pool", "init", name)

    def host(self, name: str) -> None:
        """A namespace of the pool for one host, and a user that may do nothing but keep images there."""
        if name not in [one["name"] for one in self.json("rbd", "namespace", "ls", POOL)]:
            self.do("rbd", "namespace", "create", f"{POOL}/{name}")
        self.user(name, "mon", "profile rbd", "osd", f"profile rbd pool={POOL} namespace={name}")

    def user(self, name: str, *capabilities: str) -> None:
        """A user with those capabilities; its keyring is where the configuration says."""
        keyring = self.folder / f"client.{name}.keyring"
        keyring.write_text(self.do("ceph", "auth", "get-or-create", f"client.{name}", *capabilities))
        keyring.chmod(0o600)

    def _make_keys(self) -> None:
        """Of the administrator and of each daemon. The monitor knows them all."""
        everything = "allow *"
        rights = {
            "mon.": {"mon": everything},
            "client.admin": {"mon": everything, "osd": everything, "mgr": everything},
            "mgr.x": {"mon": "allow profile mgr", "osd": everything},
        }
        for number in range(self.copies):
            rights[f"osd.{number}"] = {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": everything}
        monitor = str(self.folder / "mon.a.keyring")
        for name, capabilities in rights.items():
            keyring = monitor if name == "mon." else str(self.folder / f"{name}.keyring")
            given = [word for service, right in capabilities.items() for word in ("--cap", service, right)]
            self._tool("ceph-authtool", keyring, "--create-keyring", "--gen-key", "-n", name, *given)
            if keyring != monitor:
                self._tool("ceph-authtool", monitor, "--import-keyring", keyring)

    @staticmethod
    def _tool(*argv: str) -> None:
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    @property
    def all_daemons(self) -> list[str]:
        """The names of all, running or not."""
        return ["mon.a", "mgr.x", *self.osds]

    def start(self, *names: str) -> None:
        """Let these daemons run: "mon.a", "mgr.x", "osd.0"."""
        for name in names:
            kind, _, identity = name.partition(".")
            argv = [*self.enter, f"ceph-{kind}", "-f", "-i", identity, f"--conf={self.config}"]
            with (self.folder / f"{name}.said").open("ab") as said:
                self.daemons[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def kill(self, *names: str) -> None:
        """End these daemons as a crash does."""
        for name in names:
            daemon = self.daemons.pop(name)
            daemon.kill()
            daemon.wait(30)

    def freeze(self, *names: str) -> None:
        """Let these daemons hang."""
        for name in names:
            self.daemons[name].send_signal(signal.SIGSTOP)

    def thaw(self, *names: str) -> None:
        """Let them go on."""
        for name in names:
            self.daemons[name].send_signal(signal.SIGCONT)

    @property
    def osds(self) -> list[str]:
        """The names of all OSDs, running or not."""
        return [f"osd.{number}" for number in range(self.copies)]

    def wait_for_osds(self, number: int) -> None:
        """Until so many OSDs are up."""
        assert kernel.wait_until(lambda: self.json("ceph", "osd", "stat")["num_up_osds"] == number, 90.0)

    def memory(self) -> int:
        """Bytes resident, of all daemons."""
        pages = sum(int(Path(f"/proc/{one.pid}/statm").read_text().split(" ")[1]) for one in self.daemons.values())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """It is gone at once."""
        self.kill(*self.daemons)


@contextmanager
def ceph_cluster(
    folder: Path, copies: int = 1, address: str = LOOPBACK, enter: tuple[str, ...] = ()
) -> Iterator[CephCluster]:
    """One that answers."""
    cluster = CephCluster(folder, copies, address=address, enter=enter)
    try:
        cluster.prepare()
        yield cluster
    finally:
        cluster.stop()


class ClusterOutside(CephCluster):
    """That of the machine around the test kernel, which sees its folder and obeys with `obey`."""

    def kill(self, *names: str) -> None:
        """Let these daemons crash and start again."""
        order = self.folder / _ORDER
        order.with_suffix(".new").write_text(" ".join(names))
        order.with_suffix(".new").rename(order)
        assert kernel.wait_until(lambda: not order.exists(), 120.0)

    def start(self, *names: str) -> None:
        """`kill` has done that."""


def obey(cluster: CephCluster) -> None:
    """Do what a `ClusterOutside` in a guest has asked for, if it has."""
    order = cluster.folder / _ORDER
    if order.exists():
        names = order.read_text().split()
        cluster.kill(*names)
        cluster.start(*names)
        order.unlink()

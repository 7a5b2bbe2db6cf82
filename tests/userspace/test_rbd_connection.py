"""How a connection to a Ceph cluster is served on this side, with a file in place of the cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.store.remote import export
from lukshook.store.remote.export import Export
from lukshook.store.remote.kind import STATUS, WRITTEN
from lukshook.store.remote.own_folder import OwnFolder
from lukshook.store.remote.rbd import Rbd
from lukshook.system import kernel, processes

pytestmark = pytest.mark.needs("qemu-nbd", "qemu-io", "socat", "setpriv")
LENGTH = 1 << 20


class Served(Rbd):
    """An image that lies in a file; its name is the path."""

    def _driver(self) -> str:
        return f"driver=raw,file.driver=file,file.filename={self.name}"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Iterator[Path]:
    """Where a listener starts a connection to the file "image" for each who asks.

    Its path is short, because the sockets are in it: unix(7) takes 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="rbd-"))
    store = Served("rbd:a/b", "a", "", str(tmp_path / "image"))
    script = store.link(read_only=False, silence=9.0).script.replace("@FOLDER@", str(folder))
    script = script.replace("ulimit -f 128", "true")  # no cluster's image is a file here
    (folder / "connect").write_text(script)
    listen = ("socat", f"UNIX-LISTEN:{folder}/socket,fork", f"EXEC:sh {folder}/connect")
    listener = subprocess.Popen(listen, stderr=subprocess.DEVNULL)
    assert kernel.wait_until((folder / "socket").exists, 60.0)
    yield folder
    listener.terminate()
    listener.wait(60)
    shutil.rmtree(folder)


def through(folder: Path, *work: str) -> subprocess.CompletedProcess[str]:
    """A connection of qemu, which does *work*."""
    words = [word for step in (*work, "quit") for word in ("-c", step)]
    argv = ["qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={folder}/socket"]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=300)


def left_in(folder: Path) -> set[str]:
    """What is in the folder, but for how the connection ended: socat stops the script before or after it notes that."""
    return set(os.listdir(folder)) - {STATUS}


def test_a_connection_goes_without_a_trace(folder: Path, tmp_path: Path) -> None:
    """Its qemu-nbd ends with it, in its own time: a killed one would look like another host for half a minute."""
    (tmp_path / "image").write_bytes(bytes(LENGTH))
    assert 0 == through(folder).returncode
    assert kernel.wait_until(lambda: {"connect", "export", "said", "socket"} == left_in(folder), 60.0)
    assert Export(LENGTH, flushes=True, syncs=True, zeroes=True) == export.noted(folder)


def test_qemu_writes_and_reads_through_a_connection(folder: Path, tmp_path: Path) -> None:
    """Both ends are qemu. From 8.2 on they agree on extended headers, which no other server of the tests can."""
    image = tmp_path / "image"
    image.write_bytes(b"\1" * LENGTH)
    work = ("write -P 7 64k 128k", "write -z 512k 64k", "discard 704k 64k", "flush", "read -P 7 64k 128k")

    done = through(folder, *work, "read -P 0 512k 64k", "read -P 1 768k 256k")

    assert (0, "") == (done.returncode, done.stderr), done
    assert "verification failed" not in done.stdout
    assert b"\7" * (128 << 10) == image.read_bytes()[64 << 10 : 192 << 10]
    assert bytes(64 << 10) == image.read_bytes()[512 << 10 : 576 << 10]
    there = {"connect", "export", "said", "socket", WRITTEN}
    assert kernel.wait_until(lambda: there == left_in(folder), 60.0)


def test_what_qemu_says_is_kept(folder: Path) -> None:
    """Nothing waits for a server that does not come."""
    assert (1, Export(0)) == (through(folder).returncode, export.noted(folder))
    assert kernel.wait_until(lambda: "No such file" in (folder / "said").read_text(), 60.0)


def test_a_killed_script_takes_qemu_with_it(folder: Path, tmp_path: Path) -> None:
    """The kernel tells it (prctl(2), PR_SET_PDEATHSIG)."""
    (tmp_path / "image").write_bytes(bytes(LENGTH))
    before = processes.family(os.getpid())
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60.0)
        client.connect(f"{folder}/socket")
        assert b"NBDMAGIC" == client.recv(8)  # from here on, qemu-nbd hears a signal
        for pid, started in processes.family(os.getpid()):
            if kernel.command(pid) == "sh":
                processes.tell(pid, started, signal.SIGKILL)
        assert kernel.wait_until(lambda: processes.family(os.getpid()) == before, 60.0)


def test_a_server_that_nobody_ended_is_found(folder: Path, tmp_path: Path) -> None:
    """While qemu-nbd starts, it misses a signal (measured, 7.2): its script is killed then, and it stays."""
    (tmp_path / "image").write_bytes(bytes(LENGTH))
    own = OwnFolder(folder)
    with own.opened() as descriptor:
        argv = ("qemu-nbd", "--socket=" + str(folder / "left"), str(tmp_path / "image"))
        server = subprocess.Popen(argv, pass_fds=(descriptor,), stderr=subprocess.DEVNULL)
    try:
        assert kernel.wait_until(lambda: server.pid in dict(own.connecting()), 60.0)
    finally:
        server.kill()
        server.wait(60)

"""A backup in a mount namespace of its own, as a container or a unit of systemd has it, that is killed as a whole."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lukshook.system import fuse, kernel
from lukshook.volume import records
from support import leaks
from support.volume import NAME, CliVolume

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("losetup", "qemu-storage-daemon", "mkfs.ext4"),
]
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
PATIENCE = 20.0


def apart() -> None:
    """As the `prepare` of a command: other processes do not see what it mounts."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.unshare(CLONE_NEWNS)
    assert 0 == libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


@contextmanager
def opened(volume: CliVolume) -> Iterator[int]:
    """The volume is open in such a namespace, with data that is not written out; the daemon, its last process."""
    done = volume.start("before-backup", NAME, prepare=apart).wait()
    assert 0 == done.returncode, done
    record = records.peek(volume.run_folder, NAME)
    assert record is not None
    daemon = dict(record.layers)["qemu"]
    try:
        Path(f"/proc/{daemon.pid}/root{volume.data}/file").write_bytes(os.urandom(1 << 20))  # type: ignore[attr-defined]
        yield daemon.pid  # type: ignore[attr-defined]
    finally:
        if kernel.is_dying(daemon.pid, daemon.started):  # type: ignore[attr-defined]
            with suppress(FileNotFoundError):  # else all wait that look at the loop devices of this machine
                fuse.abort(daemon.connection)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "status"), [("before-backup", 0), ("after-backup", 74)])
def test_a_daemon_that_waits_for_itself_is_freed(volume: CliVolume, command: str, status: int) -> None:
    """As the last process it unmounts what lies on its own file while it dies; the next run does not wait for it."""
    with opened(volume) as daemon:
        os.kill(daemon, signal.SIGKILL)
        assert kernel.wait_until(lambda: "D" in states(daemon), PATIENCE)
        assert volume.lukshook("status", NAME).stdout.startswith(f"{NAME}: half open")

        done = volume.lukshook(command, NAME)

    assert status == done.returncode, done
    assert 74 == volume.lukshook("after-backup", NAME).returncode or status == 74  # what was written is lost
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_tests_run_ends_such_a_daemon(volume: CliVolume) -> None:
    """What a failed test has left open, in the namespace of its run: `tests/run` would wait for it without an end."""
    pid = os.fork()
    if pid == 0:
        ends = False
        try:
            leaks.adopt_orphans()
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(int(PATIENCE))
            with opened(volume):
                leaks.end_orphans()
            ends = True
        finally:
            os._exit(not ends)
    assert (pid, 0) == os.waitpid(pid, 0)

    assert 74 == volume.lukshook("after-backup", NAME).returncode


def states(pid: int) -> set[str]:
    """Those of its threads (proc(5))."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            found.add(thread.read_text().rpartition(")")[2].split()[0])
    return found

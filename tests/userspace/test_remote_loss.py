"""What a remote machine has lost is reported, also where the process that would have said so was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.errors import NotSafe
from lukshook.store.remote import kinds
from lukshook.store.remote.attachment import Attachment
from lukshook.store.remote.kind import EARLIER, WRITING
from lukshook.system import kernel
from lukshook.system.command import SystemRunner
from support.far_host import FarHost, far_host
from support.far_places import BOOT, SERVER
from support.lukshook_process import kill_all

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("qemu-storage-daemon", "fusermount3", "socat", "nbdkit", "nbdfuse"),
    pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen"),
]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    """A machine with an image."""
    with far_host(tmp_path / "far") as host:
        (host.store / "backup.img").write_bytes(bytes(1 << 20))
        yield host


def attachment(far: FarHost, folder: Path, scheme: str = "ssh") -> Attachment:
    """As each lukshook has one."""
    store = kinds.parse(far.url(scheme=scheme)).with_config(far.config).with_token(folder / "state/x.holder")
    return Attachment(store, folder / "run/x.remote", 30.0, read_only=False, runner=SystemRunner(), warn=print)


def killed_writer(far: FarHost, folder: Path) -> None:
    """A lukshook that wrote and flushed, and was killed before it asked whether the machine has restarted."""
    child = os.fork()
    if not child:
        with attachment(far, folder).used():
            image = os.open(folder / "run/x.remote/image", os.O_RDWR)
            os.pwrite(image, b"written", 4096)
            os.fsync(image)
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(status)


def write(folder: Path) -> None:
    """Write to the image that is there, and flush."""
    image = os.open(folder / "run/x.remote/image", os.O_RDWR)
    os.pwrite(image, b"written", 4096)
    os.fsync(image)
    os.close(image)


def restart(far: FarHost) -> None:
    """The machine has another boot from now on."""
    far.shadow("cat", f'case "$*" in {BOOT}) echo another-boot ;; *) exec /bin/cat "$@" ;; esac')


@pytest.mark.parametrize("all_dead", [False, True])
def test_a_loss_outlives_a_kill(far: FarHost, tmp_path: Path, all_dead: bool) -> None:
    """Whoever comes first may only read, and clears away what was left; the next one that asks is told, until one has
    written that down.
    """
    killed_writer(far, tmp_path)
    if all_dead:
        own = attachment(far, tmp_path)._own
        kill_all([pid for name in ("nbdfuse", "qemu-storage-da", "socat") for pid, _ in own.running(name)])
    restart(far)
    with attachment(far, tmp_path).used(writes=False):
        pass
    for _ in range(2):
        with pytest.raises(NotSafe, match="has restarted"), attachment(far, tmp_path).used(attach=False):
            pass
    attachment(far, tmp_path).reported()
    with attachment(far, tmp_path).used():
        pass
    assert not (tmp_path / "run/x.remote").exists()


def test_nothing_lost_is_nothing_to_report(far: FarHost, tmp_path: Path) -> None:
    """A kill alone is no loss."""
    killed_writer(far, tmp_path)
    with attachment(far, tmp_path).used(writes=False):
        pass
    with attachment(far, tmp_path).used():
        pass
    assert b"written" == (far.store / "backup.img").read_bytes()[4096:4103]
    assert not (tmp_path / "run/x.remote").exists()


@pytest.mark.needs(SERVER)
def test_writes_of_an_opening_before_may_come_late(tmp_path: Path) -> None:
    """They were under way when all was killed, and the server there hangs: what the next one writes may be lost.

    That is said once. One that ends well leaves no note.
    """
    with far_host(tmp_path / "far", f"Subsystem sftp {SERVER}\n") as far:
        (far.store / "backup.img").write_bytes(bytes(1 << 20))
        folder = tmp_path / "run/x.remote"
        with attachment(far, tmp_path, "sftp").used():
            write(tmp_path)
        assert not folder.exists()
        child = os.fork()
        if not child:
            with attachment(far, tmp_path, "sftp").used():
                for pid in far.serving("sftp-server"):
                    os.kill(pid, signal.SIGSTOP)
                write(tmp_path)
            os._exit(0)
        assert kernel.wait_until((folder / WRITING).exists, 30.0)
        own = attachment(far, tmp_path, "sftp")._own
        hung = far.serving("sftp-server")
        kill_all([child, *(pid for pid, _ in own.connecting())])
        kill_all([pid for name in ("nbdfuse", "qemu-storage-da") for pid, _ in own.running(name)])
        os.waitpid(child, 0)
        with attachment(far, tmp_path, "sftp").used(writes=False):
            pass
        assert [EARLIER] == os.listdir(folder)
        late = pytest.raises(NotSafe, match="may have got what a broken connection carried")
        with late, attachment(far, tmp_path, "sftp").used():
            write(tmp_path)
        with attachment(far, tmp_path, "sftp").used():
            write(tmp_path)
        assert not folder.exists()
        kill_all(hung)

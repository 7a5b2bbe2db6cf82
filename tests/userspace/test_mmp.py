"""Multi-mount protection: a second host is kept out where the store's locks do not reach it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lukshook.layers import filesystem
from lukshook.system import kernel
from support.hung_store import stop
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("qemu-storage-daemon", "nbdkit", "fusermount3", "tune2fs")
ROOT = os.geteuid() == 0


def is_protected(volume: CliVolume) -> bool:
    """Whether the file system of the open volume has it."""
    found = filesystem.facts("ext4", str(volume.run_folder / f"{NAME}.plain"))
    return found is not None and found.mmp


def test_a_volume_gets_it_at_its_next_opening(volume: CliVolume) -> None:
    """Asked for by the configuration, whenever the volume was made; an ordinary user's daemon cannot have it."""
    volume.configure(mmp=True)
    if not ROOT:
        assert "a user's fuse2fs leaves a lock in it" in volume.refusal(78, "before-backup", NAME)
        assert volume.is_bare()
        return

    volume.do("before-backup", NAME)
    assert is_protected(volume)
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)


def test_other_kinds_do_not_have_it(volume: CliVolume) -> None:
    """Told, instead of letting it be believed."""
    volume.configure(mmp=True, filesystem="xfs")

    assert "mmp: only ext4 has it" in volume.refusal(78, "check", NAME)


@contextmanager
def shown(raw: Path, folder: Path) -> Iterator[Path]:
    """The file *raw* under another inode number, as another host has it from a store without locks."""
    socket, file, pid = folder / "socket", folder / "shown.img", folder / "pid"
    file.touch(mode=0o600)
    nbdkit = subprocess.Popen(["nbdkit", "-f", "-U", socket, "file", raw], stdin=subprocess.DEVNULL)
    assert kernel.wait_until(socket.exists, 20.0)
    server = f"driver=nbd,node-name=n,server.type=unix,server.path={socket},cache.direct=on"
    export = f"type=fuse,id=e,node-name=n,mountpoint={file},writable=on,allow-other=off"
    daemon = ["qemu-storage-daemon", "--daemonize", f"--pidfile={pid}", f"--blockdev={server}", f"--export={export}"]
    subprocess.run(daemon, check=True, stdin=subprocess.DEVNULL)
    try:
        yield file
    finally:
        stop(int(pid.read_text()))
        nbdkit.terminate()
        nbdkit.wait(20)


@pytest.mark.slow
@pytest.mark.roots
def test_a_second_host_is_refused(template: CliVolume, tmp_path: Path) -> None:
    """69 after the time it takes to be sure; as soon as the first has closed, the second opens and sees its files."""
    raw = tmp_path / "raw"
    shutil.copy(template.image, raw)
    with ExitStack() as ends:
        hosts = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            host = template.copy_to(tmp_path / name)
            host.configure(image=str(ends.enter_context(shown(raw, tmp_path / name))), mmp=True, space="warn")
            hosts.append(ends.enter_context(contextmanager(closing)(host)))
        first, second = hosts
        first.lukshook("before-backup", NAME)  # which says that locks do not reach far
        (first.data / "file").write_text("content")

        begun = time.monotonic()
        assert "in use by another host" in second.refusal(69, "before-backup", NAME)
        assert 5 < time.monotonic() - begun < 120

        first.do("after-backup", NAME)
        assert 0 == second.lukshook("before-backup", NAME).returncode
        assert "content" == (second.data / "file").read_text()
        second.do("after-backup", NAME)

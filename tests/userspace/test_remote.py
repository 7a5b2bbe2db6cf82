"""An image at a remote place: behind a shell (ssh), or behind an NBD server. Both ends are real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.far_host import FarHost, far_host, free_port, nbd_server
from support.far_volume import (
    back_up,
    house,
    in_it,
    nothing_stands,
    ours,
    some,
)
from support.lukshook_process import kill_all
from support.lying_cases import LIES, check_only_the_judged_header_is_opened
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs(
    "cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdkit"
)


#: Seconds: the daemon would be killed after 30, and the server answers after 50.
SOON = 20.0
BOOT = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    with far_host(tmp_path / "far") as host:
        yield host


@pytest.fixture
def volume(far: FarHost, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie on the far host, not created yet."""
    yield from closing(house(tmp_path / "house", far.url(), ssh_config=str(far.config)))


@pytest.mark.roots
@pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen")
class TestShell:
    """`ssh://`."""

    @pytest.mark.slow
    def test_a_frozen_server_is_noticed(self, far: FarHost, volume: CliVolume) -> None:
        """Though its machine answers. Its lock keeps a new connection out until it is gone, so nothing comes late."""
        volume.configure(image=far.url(), ssh_config=str(far.config), patience="3m")
        volume.do("create", NAME)
        volume.do("before-backup", NAME)
        content = some()
        (volume.data / "file").write_bytes(content)  # what is read for that must not wait for the frozen server
        (frozen,) = far.serving("nbdkit")
        os.kill(frozen, signal.SIGSTOP)
        try:
            closing_it = volume.start("after-backup", NAME)
            lost = volume.run_folder / f"{NAME}.remote" / "lost"
            assert kernel.wait_until(lost.exists, 240.0)
        finally:
            os.kill(frozen, signal.SIGCONT)
        done = closing_it.wait()

        assert 0 == done.returncode, done.stderr
        down, back = [line for line in done.stderr.splitlines() if "the connection to" in line]
        assert ("is down; writing waits up to 180 s" in down, "is back" in back) == (True, True)
        assert nothing_stands(volume)
        assert [content] == in_it(volume, "file")

    def test_an_image_that_another_host_has_opened_since(self, far: FarHost, volume: CliVolume) -> None:
        """No connection of ours gets it back: its mark is not ours any more, and the backup counts as failed."""
        volume.configure(image=far.url(), ssh_config=str(far.config), patience="3s")
        volume.do("create", NAME)
        volume.do("before-backup", NAME)
        (volume.data / "file").write_bytes(some())
        subprocess.run(["sync", "-f", volume.data], check=True)
        (far.store / ".backup.img.lukshook-holder").write_text("other 1234\n")
        before = (far.store / "backup.img").read_bytes()
        kill_all(far.serving("nbdkit"))

        with suppress(OSError), (volume.data / "late").open("wb") as late:
            late.write(some())
        done = volume.lukshook("after-backup", NAME)

        assert (74, before) == (done.returncode, (far.store / "backup.img").read_bytes()), done.stderr
        assert nothing_stands(volume)
        back_up(volume, "next")

    def test_a_remote_machine_that_has_restarted(self, far: FarHost, volume: CliVolume) -> None:
        """What was written and not flushed is gone then, and no program would say so."""
        volume.do("create", NAME)
        volume.do("before-backup", NAME)
        far.shadow("cat", f'case "$*" in {BOOT}) echo another-boot ;; *) exec /bin/cat "$@" ;; esac')

        done = volume.lukshook("after-backup", NAME)

        assert (74, True) == (done.returncode, "has restarted" in done.stderr), done.stderr
        assert nothing_stands(volume)
        back_up(volume, "file")

    def test_what_the_far_side_lacks(self, far: FarHost, volume: CliVolume) -> None:
        """It is named before anything is made."""
        far.shadow("nbdkit", "exit 1")
        (far.shadows / "nbdkit").chmod(0o644)
        for tool in ("sh", "cat", "stat", "dirname", "flock"):
            (far.shadows / tool).symlink_to(shutil.which(tool) or "")
        far.path = str(far.shadows)
        far.stop()
        far.prepare_server()
        far.start()
        assert "far has no nbdkit" in volume.refusal(69, "create", NAME)


class TestNbd:
    """`nbd://`, as root and as an ordinary user."""

    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.fixture
    def volume(self, tmp_path: Path, port: int) -> Iterator[CliVolume]:
        yield from closing(house(tmp_path / "house", f"nbd://127.0.0.1:{port}/", mmp=not os.geteuid(), patience="60s"))

    @pytest.mark.slow
    @pytest.mark.parametrize("lie", LIES)
    def test_a_server_that_shows_another_header_each_time(
        self, tmp_path: Path, lie: Callable[[bytes, int], bytes]
    ) -> None:
        """What was judged is opened, or nothing."""
        check_only_the_judged_header_is_opened(tmp_path, "userspace", lie)

    def test_the_whole_life_of_a_volume(self, tmp_path: Path, volume: CliVolume, port: int) -> None:
        """The export is used as it is; a server that is killed and comes back loses nothing."""
        image = tmp_path / "export"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        assert "NBD server 127.0.0.1" in volume.refusal(69, "create", NAME)
        with nbd_server(port, "file", str(image)) as server:
            volume.do("create", NAME)
            assert "already contains" in volume.refusal(73, "create", NAME)
            assert "not: locks out other hosts" in volume.do("check", NAME)
            volume.do("before-backup", NAME)
            content = some()
            (volume.data / "file").write_bytes(content)
            server.kill()
            server.wait(10)
            closing_it = volume.start("after-backup", NAME)
            assert not kernel.wait_until(closing_it.poll, 2.0)
            with nbd_server(port, "file", str(image)):
                done = closing_it.wait()
                assert 0 == done.returncode, done.stderr
                assert nothing_stands(volume)
                volume.do("open", NAME, "--read-only")
                assert content == (volume.data / "file").read_bytes()
                volume.do("close", NAME)

    @pytest.mark.parametrize("other", [pytest.param("empty", marks=pytest.mark.slow), "older"])
    def test_a_server_that_comes_back_with_another_image(
        self, tmp_path: Path, volume: CliVolume, port: int, other: str
    ) -> None:
        """Nothing is written there, and the backup fails. The next one, with the right image, works.

        fuse2fs waits with each write, until patience has passed; with the kernel's mount, the closing does.
        """
        image = tmp_path / "export"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        volume.configure(image=f"nbd://127.0.0.1:{port}/", mmp=not os.geteuid(), patience="20s")
        with nbd_server(port, "file", str(image)) as server:
            volume.do("create", NAME)
            wrong = tmp_path / "other"
            wrong.write_bytes(image.read_bytes() if other == "older" else bytes(64 << 20))
            volume.do("before-backup", NAME)
            (volume.data / "file").write_bytes(some())
            server.kill()
            server.wait(10)
            before = wrong.read_bytes()
            with suppress(OSError):
                (volume.data / "more").write_bytes(some())
            with nbd_server(port, "file", str(wrong)):
                done = volume.start("after-backup", NAME).wait()
                assert 74 == done.returncode, done.stderr
            assert before == wrong.read_bytes()
            with nbd_server(port, "file", str(image)):
                volume.do("before-backup", NAME)
                volume.do("after-backup", NAME)

    @pytest.mark.slow
    def test_a_server_that_takes_long_to_let_us_in(self, tmp_path: Path, volume: CliVolume, port: int) -> None:
        """For longer than the default of qemu's daemon, and than it was given once."""
        image = tmp_path / "export"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        with nbd_server(port, "--filter=delay", "file", str(image), "delay-open=25"):
            volume.do("create", NAME)
        assert nothing_stands(volume)

    def test_an_opening_that_waits_for_a_server_is_interrupted_at_once(
        self, tmp_path: Path, volume: CliVolume, port: int
    ) -> None:
        """Though the daemon that waits for its connection hears no signal; and it leaves nothing."""
        image = tmp_path / "export"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        with nbd_server(port, "--filter=delay", "file", str(image), "delay-open=50"):
            creating = volume.start("create", NAME)
            shown = volume.run_folder / f"{NAME}.remote"
            assert kernel.wait_until(lambda: shown.exists() and bool(ours(volume, "qemu-storage-daemon")), 60.0)
            began = time.monotonic()
            creating.signal(signal.SIGINT)
            done = creating.wait()
            assert (130, True) == (done.returncode, time.monotonic() - began < SOON), done.stderr
        assert nothing_stands(volume)

    def test_a_server_that_cannot_flush_is_refused(self, tmp_path: Path, volume: CliVolume, port: int) -> None:
        """Nobody could say when a backup is stored."""
        script = tmp_path / "plugin"
        script.write_text(NO_FLUSH.format(image=tmp_path / "export"))
        script.chmod(0o755)
        (tmp_path / "export").write_bytes(bytes(64 << 20))
        with nbd_server(port, "sh", str(script)):
            assert "cannot flush" in volume.refusal(69, "create", NAME)
        assert nothing_stands(volume)


#: A plugin of nbdkit that writes, but knows nothing of flushing.
NO_FLUSH = """#!/bin/sh
case "$1" in
open) ;;
get_size) stat -c %s {image} ;;
pread) dd if={image} skip="$4" count="$3" iflag=count_bytes,skip_bytes status=none ;;
pwrite) dd of={image} seek="$4" conv=notrunc oflag=seek_bytes status=none ;;
can_write) exit 0 ;;
can_flush) exit 3 ;;
*) exit 2 ;;
esac
"""

"""The test kernel itself: what is flushed survives a power cut, and nothing of a guest stays on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from support.guest import Guest, GuestError, Job

pytestmark = [pytest.mark.outside, pytest.mark.needs("linux.uml", "modprobe", "mkfs.ext4")]
MIB = 1 << 20


def wait_for(text: str, job: Job) -> None:
    deadline = time.monotonic() + 30
    while text not in job.stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_power_cut_keeps_what_was_flushed_and_nothing_else(tmp_path: Path) -> None:
    """The disk goes on in a fresh guest as after a real power cut."""
    disk = tmp_path / "disk"
    with Guest(disk=disk, disk_size=64 * MIB) as guest:
        guest.run(["sh", "-c", "echo kept >/disk/a; sync /disk/a; echo lost >/disk/b"], check=True)
        guest.power_cut()
    with Guest(disk=disk) as guest:
        assert "kept\n" == guest.run(["cat", "/disk/a"], check=True).stdout
        assert 1 == guest.run(["test", "-s", "/disk/b"]).returncode


def test_commands_share_and_signals(tmp_path: Path) -> None:
    """Status, output and input pass through whole; /out is the shared folder; a running command can be signalled."""
    with Guest(share=tmp_path) as guest:
        assert (0, "0\n") == (guest.run(["id", "-u"]).returncode, guest.run(["id", "-u"]).stdout)
        assert 3 == guest.run(["sh", "-c", "exit 3"]).returncode
        assert -signal.SIGKILL == guest.run(["sh", "-c", "kill -9 $$"]).returncode
        assert 127 == guest.run(["no-such-command"]).returncode
        data = os.urandom(2 * MIB).hex()
        assert data == guest.run(["cat"], stdin=data.encode()).stdout
        guest.run(["sh", "-c", "echo result >/out/file"], check=True)
        job = guest.start(["sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"])
        wait_for("up", job)
        job.signal(signal.SIGTERM)
        assert 7 == job.wait(30).returncode
    assert "result\n" == (tmp_path / "file").read_text()


def test_two_guests_at_a_time() -> None:
    """Guests do not know of each other."""
    with Guest() as first, Guest() as second:
        first.run(["touch", "/tmp/first"], check=True)
        assert 1 == second.run(["test", "-e", "/tmp/first"]).returncode


def test_a_hung_command_ends_the_guest_and_is_reported() -> None:
    """After the time limit the error says what hung, and what the console said last."""
    with Guest() as guest:
        folder = guest.folder
        guest.run(["sh", "-c", "echo last words >/dev/console"], check=True)
        with pytest.raises(GuestError, match=r"(?s)sleep 60: no end after 1 s.*last words"):
            guest.run(["sleep", "60"], timeout=1)
    assert not folder.exists()

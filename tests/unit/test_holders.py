"""Who keeps a volume open, and who of them is ended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lukshook.errors import Busy
from lukshook.layers import mount
from lukshook.system import kernel, processes
from lukshook.system.secret import Secret
from lukshook.volume import holders, waiting
from lukshook.volume.context import Site
from lukshook.volume.holders import Holder
from support.fake_runner import FakeRunner

ELSEWHERE = "another mount namespace"


@pytest.fixture(name="mounted")
def _mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system, mounted below a shared mount as on a machine with systemd."""
    subprocess.run(["mount", "-t", "tmpfs", "outer", tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-shared", tmp_path], check=True)
        inner = tmp_path / "inner"
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
        yield inner
    finally:
        subprocess.run(["umount", "--recursive", tmp_path], check=True)


@contextmanager
def bystander(propagation: str) -> Iterator[int]:
    """A process in a mount namespace of its own, in a folder that is not ours."""
    argv = ["unshare", "--mount", "--propagation", propagation, "sh", "-c", "cd /; echo; exec sleep 60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("propagation", "held"), [("private", True), ("slave", False), ("shared", False)])
def test_a_mount_that_goes_with_ours_holds_nothing(mounted: Path, propagation: str, held: bool) -> None:
    """Only a mount that stays when ours is unmounted does, and it does stay."""
    with bystander(propagation) as pid:
        assert ([(pid, ELSEWHERE)] if held else []) == [
            (holder.pid, holder.holds) for holder in holders.of(kernel.number_within(mounted), str(mounted))
        ]

        subprocess.run(["umount", mounted], check=True)

        assert held == any(found.target == str(mounted) for found in kernel.mounts(str(pid)))


def give_up(monkeypatch: pytest.MonkeyPatch, folder: Path, *found: Holder) -> tuple[str, list[tuple[int, int]]]:
    """What closing with --kill-holders says, and the signals it sends, with these holders; no signal is allowed."""
    sent: list[tuple[int, int]] = []

    def refuse(pid: int, started: int, number: int) -> None:
        sent.append((pid, number))

    def busy() -> None:
        raise Busy("it is in use")

    monkeypatch.setattr(holders, "of", lambda number, besides="": found)
    monkeypatch.setattr(kernel, "wait_until", lambda done, seconds: done())
    monkeypatch.setattr(processes, "tell", refuse)
    site = Site(folder, folder, FakeRunner(), lambda volume: Secret(b""), print, patience=0.0, kill_holders=True)
    handle = mount.Handle("/", "", "0:0", "")
    monkeypatch.setattr(waiting, "evolve", lambda site, **_: Site(folder, folder, site.runner, site.ask, print, 0.0))
    with pytest.raises(Busy) as caught:
        waiting.patiently("offsite", handle, site, busy)
    return caught.value.message, sent


def test_a_process_that_only_sees_the_mount_is_named_and_not_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may know nothing of the volume."""
    message, sent = give_up(monkeypatch, tmp_path, Holder(7, "cron", "cron.service", ELSEWHERE))

    assert [] == sent
    assert "cron (pid 7 of cron.service, another mount namespace)" in message


def test_a_process_that_cannot_be_ended_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another user's, where lukshook is not root: still held, and nobody else is ended for it."""
    found = Holder(7, "cron", "", ELSEWHERE), Holder(8, "rsync", "", "working folder")
    message, sent = give_up(monkeypatch, tmp_path, *found)

    assert [(8, signal.SIGTERM), (8, signal.SIGKILL)] == sent
    assert "rsync (pid 8, working folder)" in message


def test_a_process_that_we_run_for_is_named_and_not_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell that stands in the volume and calls `lukshook close --kill-holders` has to leave by itself."""
    found = Holder(os.getppid(), "bash", "", "working folder"), Holder(8, "rsync", "", "working folder")
    message, sent = give_up(monkeypatch, tmp_path, *found)

    assert [(8, signal.SIGTERM), (8, signal.SIGKILL)] == sent
    assert "bash" in message


def test_a_holder_has_its_start_time(tmp_path: Path) -> None:
    """By which it is known again before it is signalled."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        found = {holder.pid: holder.started for holder in holders.of(kernel.number_within(tmp_path))}
        started = kernel.started(process.pid)
        process.kill()

    assert started
    assert started == found[process.pid]

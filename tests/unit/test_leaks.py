"""The leak counter sees what it is there to see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import leaks


def counter(folder: Path) -> leaks.Counter:
    return leaks.Counter(roots=(folder,), folders=(folder / "tmp",), alone=False)


@contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nothing_is_reported_when_nothing_happened(tmp_path: Path) -> None:
    """Two snapshots in a row are equal."""
    before = counter(tmp_path).snapshot()
    assert [] == counter(tmp_path).leaked_since(before)


def test_a_process_is_noticed(tmp_path: Path) -> None:
    """A child that is still running is named."""
    before = counter(tmp_path).snapshot()
    with child("sleep", "60") as process:
        leaked = counter(tmp_path).snapshot().leaked_since(before)
        assert [f"process {process.pid} sleep"] == [line.partition(" (")[0] for line in leaked]
    assert [] == counter(tmp_path).leaked_since(before)


def test_an_orphan_in_a_session_of_its_own_is_noticed(tmp_path: Path) -> None:
    """A daemon whose parent has ended still counts as ours."""
    before = counter(tmp_path).snapshot()
    script = "import subprocess as s; print(s.Popen(['sleep', '60'], start_new_session=True, stdout=s.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout)
    try:
        leaked = counter(tmp_path).leaked_since(before)
        assert [f"process {pid} sleep"] == [line.partition(" (")[0] for line in leaked]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_zombie_is_not_a_leak(tmp_path: Path) -> None:
    """A process that has ended and was not waited for yet holds nothing."""
    before = counter(tmp_path).snapshot()
    with child("true") as process:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [] == counter(tmp_path).snapshot().leaked_since(before)


def test_a_file_is_noticed_unless_it_is_a_lock(tmp_path: Path) -> None:
    """A new file in a watched folder is named; a lock file is meant to stay."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    alone = leaks.Counter(roots=(), folders=(folder,), alone=True)
    before = alone.snapshot()
    (folder / "key").touch()
    (folder / "offsite.lock").touch()
    assert [f"file {folder}/key"] == [line for line in alone.snapshot().leaked_since(before) if "file" in line]


def test_files_of_others_do_not_count(tmp_path: Path) -> None:
    """On a shared machine only names with lukshook in them are ours."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    before = counter(tmp_path).snapshot()
    (folder / "someone-else").touch()
    (folder / "lukshook-header").touch()
    assert [f"file {folder}/lukshook-header"] == counter(tmp_path).snapshot().leaked_since(before)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("36 35 98:0 /mnt1 /mnt2 rw master:1 - ext3 /dev/root rw", ("36", "/mnt2", "/dev/root")),
        ("22 1 0:20 / /sys rw,nosuid - sysfs none rw", ("22", "/sys", "none")),
    ],
)
def test_mountinfo_fields(line: str, expected: tuple[str, str, str]) -> None:
    """Optional fields before the dash may be there or not."""
    assert expected == leaks.mount_fields(line)


def test_what_another_pytest_has_is_not_ours(tmp_path: Path) -> None:
    """Two test runs on one machine do not count each other's mounts, whatever their tests are called."""
    ours = counter(tmp_path)

    assert ours.mine(f"{tmp_path}/mnt")
    assert ours.mine("/run/lukshook/offsite.plain")
    assert not ours.mine(f"{tmp_path}0/mnt")
    assert not ours.mine("/tmp/pytest-of-somebody/pytest-7/test_lukshook0/mnt")


def test_a_mapping_on_a_file_of_others_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that stands on another such mapping. One on a disk may be ours."""
    blocks, theirs = tmp_path / "block", "/tmp/backup-tests-a/tb/pytest-of-root/pytest-0/lukshook.img"
    for device, what, text, below in (
        ("loop0", "loop/backing_file", f"{tmp_path}/a.img", ""),
        ("loop1", "loop/backing_file", theirs, ""),
        ("dm-0", "dm/name", "lukshook-ours", "loop0"),
        ("dm-1", "dm/name", "lukshook-theirs-era", "loop1"),
        ("dm-2", "dm/name", "lukshook-theirs", "dm-1"),
        ("dm-3", "dm/name", "on a disk", "sda"),
    ):
        (blocks / device / what).parent.mkdir(parents=True)
        (blocks / device / what).write_text(f"{text}\n")
        (blocks / device / "slaves" / below).mkdir(parents=True)
    monkeypatch.setattr(leaks, "BLOCKS", blocks)

    found = sorted(counter(tmp_path).mappings())
    assert ["mapping lukshook-ours (/dev/dm-0)", "mapping on a disk (/dev/dm-3)"] == found
    assert [f"loop device /dev/loop0 on {tmp_path}/a.img"] == list(counter(tmp_path).loops())


IN_ANOTHER_NAMESPACE = """set -e
mount -t tmpfs elsewhere "$1"; truncate -s 1M "$1/lukshook.img"
losetup --find --show "$1/lukshook.img"
exec sleep 60
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.needs("unshare", "losetup", "mount")
def test_a_loop_device_of_another_mount_namespace_is_not_ours(tmp_path: Path) -> None:
    """Its path means another file there: the run folder of another test run, or of a lukshook in another root."""
    before = counter(tmp_path).snapshot()
    with child("unshare", "--mount", "--propagation=private", "sh", "-c", IN_ANOTHER_NAMESPACE, "sh", "/mnt") as p:
        assert p.stdout is not None
        device = p.stdout.readline().strip()
        try:
            leaked = counter(tmp_path).snapshot().leaked_since(before)
            named = leaks.read_or_none(Path("/sys/block", Path(device).name, "loop/backing_file"))
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)

    assert "/mnt/lukshook.img" == named
    assert not [line for line in leaked if device in line]

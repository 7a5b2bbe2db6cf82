"""Several users of one volume: on this host, from another configuration, from another host."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.lukshook_process import Child
from support.volume import NAME, CliVolume, closing


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume that is there."""
    volume = CliVolume(tmp_path_factory.mktemp("together"), "kernel")
    volume.prepare()
    volume.do("create", NAME)
    yield from closing(volume)


@pytest.fixture
def volume(template: CliVolume) -> Iterator[CliVolume]:
    """The volume, closed before and after the test."""
    yield template
    template.lukshook("after-backup", NAME, "--kill-holders")
    template.lukshook("close", NAME, "--kill-holders")
    assert template.is_bare()


def until(condition: object, seconds: float = 60.0) -> bool:
    """Wait until a callable gives something true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def start_job(volume: CliVolume, seconds: float) -> Child:
    """A wrapped job that takes some time, started and under way."""
    mark = volume.folder / "under way"
    mark.unlink(missing_ok=True)
    job = volume.start("run", NAME, "--", "sh", "-c", f"touch '{mark}'; sleep {seconds}")
    assert until(mark.exists)
    return job


def test_the_last_one_out_closes(volume: CliVolume) -> None:
    """A second tool joins; the first one's end leaves it open."""
    job = start_job(volume, 3)
    volume.do("before-backup", NAME)

    assert 0 == job.wait().returncode
    assert volume.is_open()
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_a_dead_user_keeps_nothing_open(volume: CliVolume) -> None:
    """Somebody who was killed does not count."""
    job = start_job(volume, 1)
    job.signal(signal.SIGKILL)
    job.wait()
    assert volume.is_open()

    volume.do("after-backup", NAME)

    assert volume.is_bare()


def test_a_restore_by_hand_and_a_backup_overlap(volume: CliVolume) -> None:
    """What was opened by hand is closed by hand, whatever backups come and go."""
    volume.do("open", NAME)
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)
    assert volume.is_open()

    volume.do("close", NAME)


def test_a_backup_keeps_open_what_somebody_closes_by_hand(volume: CliVolume) -> None:
    """71: the backup closes it at its end."""
    volume.do("before-backup", NAME)

    assert "in use by" in volume.refusal(71, "close", NAME)

    assert volume.is_open()
    volume.do("after-backup", NAME)


def test_a_backup_does_not_join_a_read_only_opening(volume: CliVolume) -> None:
    """69."""
    volume.do("open", NAME, "--read-only")

    assert "read-only" in volume.refusal(69, "before-backup", NAME)

    volume.do("close", NAME)


def test_another_configuration_keeps_off(volume: CliVolume, tmp_path: Path) -> None:
    """A lukshook with folders of its own neither takes an open volume for a leftover nor opens it twice."""
    other = CliVolume(tmp_path, volume.engine)
    other.mountpoint.mkdir()
    other.key.hardlink_to(volume.key)
    other.configure(image=str(volume.image))
    volume.do("before-backup", NAME)
    standing = volume.standing()

    for command in ("before-backup", "after-backup", "close"):
        other.lukshook(command, NAME)
        assert standing == volume.standing()

    other.refusal(69, "before-backup", NAME)
    volume.do("after-backup", NAME)
    other.remove()


def test_the_image_is_locked_while_it_is_open(volume: CliVolume) -> None:
    """By the kernel itself: no process of ours has to live for it, and closing ends it."""
    argv = ["flock", "--nonblock", str(volume.image), "true"]
    assert 0 == subprocess.run(argv, check=False).returncode
    volume.do("before-backup", NAME)

    assert 1 == subprocess.run(argv, check=False).returncode

    volume.do("after-backup", NAME)
    assert 0 == subprocess.run(argv, check=False).returncode


def test_an_image_that_another_host_has_locked_is_not_opened(volume: CliVolume) -> None:
    """69: the lock is all that another host on the same store shows of itself."""
    holder = subprocess.Popen(["flock", str(volume.image), "sh", "-c", "echo; read line"], stdin=-1, stdout=-1)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()

    assert "locked" in volume.refusal(69, "before-backup", NAME)

    holder.communicate()
    volume.do("before-backup", NAME)


def test_multi_mount_protection_is_made_and_works(volume: CliVolume, tmp_path: Path) -> None:
    """`mmp = true`: the new file system has the feature, and opens and closes as usual."""
    other = CliVolume(tmp_path, volume.engine)
    other.prepare()
    other.configure(mmp=True)
    other.do("create", NAME)
    other.do("before-backup", NAME)
    device = next(
        line.split()[2]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {other.mountpoint} " in line
    )
    node = f"/dev/block/{device}"
    if not Path(node).exists():
        node = f"/dev/{Path('/sys/dev/block', device).resolve().name}"

    features = subprocess.run(["dumpe2fs", "-h", node], capture_output=True, text=True, check=True).stdout

    assert " mmp" in next(line for line in features.splitlines() if line.startswith("Filesystem features"))
    other.do("after-backup", NAME)
    assert other.is_bare()
    other.remove()


def test_twenty_jobs_at_once_with_random_kills(
    volume: CliVolume, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """No lost file, no double mount, no deadlock, and closed at the end. A round has half a minute."""
    volume.do("before-backup", NAME)
    end = time.monotonic() + 30.0 * rounds(1, 20)
    running: dict[str, Child] = {}
    ended: dict[str, int] = {}
    number = 0
    while running or time.monotonic() < end:
        while len(running) < 20 and time.monotonic() < end:
            number += 1
            name = f"job {number}"
            write = f"sleep {chance.random():.2f}; printf '{name}' >'{volume.data}/{name}'"
            running[name] = volume.start("run", NAME, "--", "sh", "-ec", write)
        if chance.random() < 0.3 and running:
            running[chance.choice(sorted(running))].signal(
                chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            )
        if chance.random() < 0.05:
            volume.lukshook("after-backup", NAME)
        assert 1 >= len(volume.mappings())
        for name in [name for name, job in running.items() if job.poll()]:
            ended[name] = running.pop(name).wait().returncode
        time.sleep(0.05)
    volume.do("after-backup", NAME)
    assert volume.is_bare()

    volume.do("before-backup", NAME)
    good = [name for name, status in ended.items() if status == 0]
    assert len(good) > 5
    assert good == [name for name in good if (volume.data / name).read_text() == name]
    print(f"{len(ended)} jobs, {len(good)} ended with 0 and have their file")
    volume.do("after-backup", NAME)

"""A volume that a person opened and forgot is named, and closed by a timer; never below a job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.lukshook_process import PATIENCE
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("qemu-storage-daemon", "fusermount3", "mkfs.ext4")
DAY = 86400.0


def age(volume: CliVolume, seconds: float) -> None:
    """Let the volume be open for longer than it is."""
    (record,) = volume.run_folder.glob("*.json")
    found = json.loads(record.read_text())
    found["began"] -= seconds
    for user in found["users"]:
        user["since"] -= seconds
    record.write_text(json.dumps(found))


def problem(volume: CliVolume) -> str:
    return json.loads(volume.do("status", "--json", NAME))[0]["problem"] or ""


def test_a_forgotten_volume_is_closed_in_time(volume: CliVolume) -> None:
    """Not before its time, and not at all where no time is set."""
    volume.do("open", NAME)
    age(volume, DAY)
    assert ("", "") == (problem(volume), volume.do("close", "--overdue"))
    volume.configure(max_open="36h")
    assert ("", "") == (problem(volume), volume.do("close", "--overdue"))
    age(volume, DAY)

    said = f"volume {NAME} has been open by hand for 2 d, longer than max_open (36 h)"
    assert said == problem(volume)
    assert said in volume.lukshook("check", NAME).stdout
    assert f"{said}: closed\n" == volume.do("close", "--overdue")
    assert [] == volume.standing()
    assert "" == volume.do("close", "--overdue")


def test_a_mistake_in_another_table_keeps_nothing_open(volume: CliVolume) -> None:
    """The timer closes what it can, and says what is wrong with the rest."""
    volume.do("open", NAME)
    volume.configure(max_open="1h")
    age(volume, DAY)
    with volume.config.open("a") as file:
        file.write('[volumes.other]\nimage = "/nowhere"\nmountpoint = "relative"\nmax_open = "1h"\n')

    done = volume.lukshook("close", "--overdue")

    assert (78, True) == (done.returncode, "volumes.other.mountpoint" in done.stderr)
    assert [] == volume.standing()


@contextmanager
def job(volume: CliVolume) -> Iterator[None]:
    """A backup that is running."""
    script = f"touch {volume.data}/began; while test -e {volume.data}/began; do sleep 0.1; done"
    running = volume.start("run", NAME, "--", "sh", "-c", script)
    deadline = time.monotonic() + PATIENCE
    while not (volume.data / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield
    (volume.data / "began").unlink()
    assert 0 == running.wait().returncode


def test_a_backup_is_never_closed_below(volume: CliVolume) -> None:
    """The person is forgotten, and the job closes the volume at its end; a job alone is never overdue."""
    volume.configure(max_open="12h")
    volume.do("open", NAME)
    with job(volume):
        age(volume, DAY)
        said = volume.do("close", "--overdue")
        assert "it stays open for sh" in said
        assert (volume.data / "began").exists()
        assert ("", "") == (problem(volume), volume.do("close", "--overdue"))
    assert [] == volume.standing()

"""Tools without hooks, under `lukshook run`, by the printed scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.host_volume import HostVolume, need, same

pytestmark = pytest.mark.hosts


def rsync(house: HostVolume, source: Path) -> Path:
    """The printed script with the user's own folder."""
    need("rsync")
    return house.script("rsync", ("/home/ ", f"{source}/ "))


def shell(house: HostVolume, source: Path) -> Path:
    """The frame of a script; its step leaves the extended attributes out, so it takes rsync's arguments."""
    return house.script("shell", ("rsync -a --delete /home/", f"rsync -aAXH --delete {source}/"))


COPIES = pytest.mark.parametrize("make", [rsync, shell])
Maker = Callable[[HostVolume, Path], Path]


@COPIES
def test_three_copies(house: HostVolume, make: Maker) -> None:
    """Three runs, closed after each; the copy in the volume is the tree."""
    script = make(house, house.tree)

    for _ in range(3):
        done = house.host(script)
        assert (0, "", "", True) == (done.returncode, done.stdout, done.stderr, house.closed_and_bare())

    assert 0 == house.lukshook("open", "offsite", "--read-only").returncode
    assert same(house.tree, house.data / "home")
    assert 0 == house.lukshook("close", "offsite").returncode


@COPIES
def test_failing_copy_keeps_its_status(house: HostVolume, make: Maker) -> None:
    """A missing source is rsync's 23; the volume is closed."""
    done = house.host(make(house, house.folder / "missing"))

    assert (23, True) == (done.returncode, house.closed_and_bare())


@COPIES
def test_copy_to_a_volume_that_does_not_open(house: HostVolume, make: Maker) -> None:
    """With a wrong key rsync is not started, and nothing is written to the bare mount point."""
    script = make(house, house.tree)
    house.spoil_key()

    done = house.host(script)

    assert (77, True) == (done.returncode, house.closed_and_bare())


def test_restic(house: HostVolume) -> None:
    """init, three backups, check and restore by the one printed script."""
    script = _restic(house)
    assert 0 == _run(house, script, "init")

    for _ in range(3):
        assert (0, True) == (_run(house, script, "backup", house.tree), house.closed_and_bare())
    assert 0 == _run(house, script, "check")
    assert 0 == _run(house, script, "restore", "latest", "--target", house.folder / "restored")

    assert same(house.tree, house.folder / "restored" / str(house.tree).lstrip("/"))
    assert house.closed_and_bare()


def test_failing_restic_keeps_its_status(house: HostVolume) -> None:
    """A missing source is restic's 1; the volume is closed."""
    script = _restic(house)
    assert 0 == _run(house, script, "init")

    assert (1, True) == (_run(house, script, "backup", house.folder / "missing"), house.closed_and_bare())


def _restic(house: HostVolume) -> Path:
    need("restic")
    return house.script("restic")


def _run(house: HostVolume, script: Path, *arguments: str | Path) -> int:
    done = house.host(script, *arguments, RESTIC_PASSWORD="x", RESTIC_CACHE_DIR=str(house.folder / "cache"))
    print(done.stderr)
    return done.returncode

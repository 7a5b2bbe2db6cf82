"""What another user has prepared does not stop a backup, and each command that asks for a key warns of swap."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from lukshook.system import swap
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


def pipe(place: Path) -> None:
    os.mkfifo(place, 0o600)


def to_zeroes(place: Path) -> None:
    place.symlink_to("/dev/zero")


def modest() -> None:
    """A process with this much memory ends when it reads without end."""
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))


@pytest.mark.parametrize("make", [pipe, to_zeroes])
@pytest.mark.parametrize("open_to_all", [False, True])
def test_a_metrics_file_in_the_way_does_not_stop_a_backup(
    volume: CliVolume, make: Callable[[Path], None], open_to_all: bool
) -> None:
    """The backup ends with 0; a folder that others can write to is warned of, and nothing is written there."""
    folder = volume.folder / "textfiles"
    folder.mkdir()
    for name in ("m.prom", "m.prom.new"):
        make(folder / name)
    folder.chmod(0o777 if open_to_all else 0o755)
    volume.config.write_text(f'metrics = "{folder}/m.prom"\n' + volume.config.read_text())

    done = volume.start("run", NAME, "--", "touch", str(volume.data / "saved"), prepare=modest).wait()

    assert 0 == done.returncode, done.stderr
    assert open_to_all == (f"the metrics file {folder}/m.prom is not written" in done.stderr)
    assert open_to_all != (folder / "m.prom").is_file()
    assert {"m.prom", "m.prom.new"} == set(os.listdir(folder))


def test_lukshook_resize_warns_of_swap_once_too(volume: CliVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command asks for the key first says it."""
    monkeypatch.setattr(swap, "in_the_clear", lambda: ("/dev/sdz9",))
    resize = ("lukshook-resize", str(volume.image), "+8MiB", "--yes", "--key", f"file:{volume.key}")

    first, second = volume.lukshook(*resize), volume.lukshook(*resize)

    assert (0, 0) == (first.returncode, second.returncode), (first.stderr, second.stderr)
    assert "warning: swap is not encrypted (/dev/sdz9)" in first.stderr
    assert "swap" not in second.stderr

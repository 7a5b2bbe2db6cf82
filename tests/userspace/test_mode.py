"""Who can look into an open volume: permissions of its root folder and of `data`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.volume import NAME, Bench


def modes(bench: Bench) -> tuple[int, int]:
    """Those of the root folder and of `data`."""
    return bench.mountpoint.stat().st_mode & 0o777, bench.data.stat().st_mode & 0o777


def opened(bench: Bench, *options: str) -> tuple[int, int]:
    """The same in a volume that is opened for it, by hand where there are options."""
    bench.do(*(("open", *options) if options else ("before-backup",)), NAME)
    try:
        return modes(bench)
    finally:
        bench.do(*(("close",) if options else ("after-backup",)), NAME)


def test_a_new_volume_is_its_users_alone(bench: Bench) -> None:
    """Nothing of it is configured."""
    assert (0o700, 0o700) == opened(bench)


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_a_new_volume_has_the_mode_that_is_configured(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is."""
    bench = Bench(tmp_path, "userspace")
    bench.prepare()
    bench.configure(mode="0750")
    try:
        bench.start("create", NAME, prepare=lambda: void(os.umask(umask))).wait()
        assert (0o750, 0o750) == opened(bench)
    finally:
        bench.remove()


def void(value: object) -> None:
    """Nothing."""


def test_opening_for_writing_sets_the_mode_of_the_root_folder_alone(bench: Bench) -> None:
    """`data` and what is in it belong to whoever writes there; a read-only opening changes nothing."""
    bench.do("before-backup", NAME)
    bench.mountpoint.chmod(0o777)
    bench.data.chmod(0o711)
    (bench.data / "file").touch(mode=0o644)
    bench.do("after-backup", NAME)

    assert (0o777, 0o711) == opened(bench, "--read-only")
    assert (0o700, 0o711) == opened(bench)
    bench.configure(mode="0755")
    assert (0o700, 0o711) == opened(bench, "--read-only")
    assert (0o755, 0o711) == opened(bench)


def test_resize_and_trust_keep_the_mode(bench: Bench) -> None:
    """They open it as a backup does."""
    bench.configure(mode="0770")
    assert "mode" in bench.refusal(78, "status", NAME)
    bench.configure(mode="0750")
    bench.do("before-backup", NAME)
    bench.data.chmod(0o711)
    bench.do("after-backup", NAME)

    bench.do("resize", NAME, "72MiB")
    bench.do("trust", NAME)

    assert (0o750, 0o711) == opened(bench, "--read-only")


def test_a_helper_without_configuration_keeps_it_as_well(bench: Bench) -> None:
    """lukshook-resize knows of no mode."""
    bench.configure(mode="0755")
    assert (0o755, 0o700) == opened(bench)

    bench.do("lukshook-resize", str(bench.image), "72MiB", "--key", f"file:{bench.key}")

    assert (0o755, 0o700) == opened(bench, "--read-only")


@pytest.mark.roots
def test_the_mode_is_set_before_the_volume_can_be_seen(bench: Bench) -> None:
    """A dry run shows the order."""
    lines = bench.do("--dry-run", "before-backup", NAME).splitlines()
    show = next(number for number, line in enumerate(lines) if line.startswith("mount --bind"))

    assert f"chmod 0700 -- {bench.run_folder}/{NAME}.private" in lines[:show]

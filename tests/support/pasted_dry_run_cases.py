"""The lines of a dry run, pasted into a shell; for any engine. A test file has the fixtures "blank" and "volume"."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lukshook.system import loops, orphans
from support.volume import NAME, CliVolume, closing

MIB = 1 << 20


def blank_in(folder: Path, engine: str) -> Iterator[CliVolume]:
    """For the fixture "blank": a configured volume of which nothing is there yet."""
    volume = CliVolume(folder, engine)
    volume.prepare()
    yield from closing(volume)


def filled(blank: CliVolume) -> CliVolume:
    """For the fixture "volume": a volume with a file in it, closed."""
    blank.do("create", NAME)
    blank.do("run", NAME, "--", "sh", "-c", f"echo content > {blank.data}/file")
    return blank


def paste(volume: CliVolume, *arguments: str) -> str:
    """Run what the dry run of a command prints; the script. It changes nothing before it is run."""
    script = volume.do("--dry-run", *arguments)
    # Where Python is the system's, its folder has the system's fuse2fs too, which may not be the first one on the PATH.
    own = [] if sys.prefix == sys.base_prefix else [os.fspath(Path(sys.executable).parent)]
    path = ":".join([*own, volume.environment["PATH"], "/usr/sbin", "/sbin"])
    places = {"PATH": path, "PYTHONPATH": ":".join(sys.path)}
    with (volume.folder / "stderr").open("w") as errors:
        shell = subprocess.Popen(
            ["sh", "-e", "-c", script],
            env=volume.environment | places,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        end = time.monotonic() + 240
        while shell.poll() is None and time.monotonic() < end:
            orphans.bury(shell.pid)  # the tests adopt orphans: else a daemon that has ended stays a zombie
            time.sleep(0.05)
        shell.kill()
        assert 0 == shell.wait(), (script, (volume.folder / "stderr").read_text())
    return script


def test_a_pasted_create_makes_the_volume(blank: CliVolume) -> None:
    """Key, image, header, file system, folder, name; and afterwards lukshook knows it."""
    blank.key.unlink()
    before = sorted(path.name for path in blank.image.parent.iterdir())
    blank.do("--dry-run", "create", NAME)
    assert before == sorted(path.name for path in blank.image.parent.iterdir())

    paste(blank, "create", NAME)

    assert [blank.image.name] == [path.name for path in blank.image.parent.iterdir()]
    assert [] == blank.standing()
    blank.do("run", NAME, "--", "sh", "-c", f"echo content > {blank.data}/file")
    blank.do("header", "verify", NAME)
    assert (blank.state_folder / f"{NAME}.header").exists()


def test_a_pasted_before_backup_opens(volume: CliVolume) -> None:
    """At the mount point, with what is in it; the same with lukshook's own closing lines closes it."""
    paste(volume, "before-backup", NAME)

    assert "content\n" == (volume.data / "file").read_text()
    options = next(
        line.split()[5]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(volume.mountpoint)
    )
    assert {"nodev", "nosuid"} <= set(options.split(","))
    if volume.engine == "kernel":  # lukshook closes only what it has opened itself
        subprocess.run(["umount", volume.mountpoint], check=True)
        subprocess.run(["cryptsetup", "close", f"lukshook-{NAME}"], check=True)
    elif not os.geteuid():
        check_kept(volume)


def check_kept(volume: CliVolume) -> None:
    """Closing does not end the daemon below a mount that lukshook did not make: it said 0, and new files were lost."""
    (volume.data / "new").write_text("new\n")
    assert "lukshook did not open it" in volume.lukshook("close", NAME).stderr
    assert 71 == volume.lukshook("after-backup", NAME).returncode
    assert "new\n" == (volume.data / "new").read_text()
    subprocess.run(["umount", volume.mountpoint], check=True)
    for node in loops.named(str(volume.run_folder / f"{NAME}.plain")):
        subprocess.run(["losetup", "--detach", node], check=True)
    volume.do("close", NAME)
    volume.do("run", NAME, "--", "grep", "--quiet", "new", str(volume.data / "new"))


def test_a_pasted_after_backup_closes(volume: CliVolume) -> None:
    """Nothing stands afterwards, and what was written is in the image."""
    volume.do("before-backup", NAME)
    (volume.data / "fresh").write_text("new\n")

    paste(volume, "after-backup", NAME)

    end = time.monotonic() + 30
    while volume.standing() and time.monotonic() < end:
        time.sleep(0.1)
    assert [] == volume.standing()
    volume.do("open", NAME, "--read-only")
    assert "new\n" == (volume.data / "fresh").read_text()
    volume.do("close", NAME)


def test_a_pasted_resize_changes_the_size(volume: CliVolume) -> None:
    """Growing and shrinking, closed."""
    for text in ("72MiB", "68MiB"):
        paste(volume, "resize", NAME, text)
        assert int(text.removesuffix("MiB")) * MIB == volume.image.stat().st_size
        assert [] == volume.standing()
        volume.do("open", NAME)
        found = os.statvfs(volume.mountpoint)
        assert found.f_blocks * found.f_frsize < volume.image.stat().st_size
        assert "content\n" == (volume.data / "file").read_text()
        volume.do("close", NAME)

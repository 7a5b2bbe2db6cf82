"""A store that runs full or fails: after-backup says 0 only when every file is safely stored."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attrs import field, frozen

from lukshook.errors import NotSafe
from support.volume import NAME, CliVolume

MIB = 1 << 20


def run(*argv: str | Path, check: bool = True) -> str:
    return subprocess.run([str(a) for a in argv], check=check, capture_output=True, text=True).stdout.strip()


@frozen
class Full:
    """A store in memory with little room, then none, then much."""

    folder: Path

    def mount(self) -> None:
        run("mount", "-t", "tmpfs", "-o", "size=22M", "small", self.folder)

    def fail(self, chance: random.Random) -> None:
        """What is free now goes, all but up to 1 MiB."""
        found = os.statvfs(self.folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        run("mount", "-o", f"remount,size={used + chance.randrange(MIB)}", self.folder)

    def heal(self) -> None:
        run("mount", "-o", "remount,size=200M", self.folder)

    def unmount(self) -> None:
        run("umount", self.folder)


@frozen
class Flaky:
    """A store on ext4 on a device whose writes fail from some moment on, for ever or for a while."""

    folder: Path
    name: str = "flaky-store"
    node: list[str] = field(factory=list)

    @property
    def below(self) -> Path:
        return self.folder.parent.with_suffix(".device")

    def mount(self) -> None:
        with self.below.open("wb") as file:
            file.truncate(160 * MIB)
        self.node.append(run("losetup", "--find", "--show", self.below))
        run("dmsetup", "create", self.name, "--table", self._table(broken=False))
        run("dmsetup", "mknodes", self.name)  # where no udev makes the node
        run("mkfs.ext4", "-q", f"/dev/mapper/{self.name}")
        run("mount", f"/dev/mapper/{self.name}", self.folder)

    def _table(self, *, broken: bool) -> str:
        start = f"0 {160 * MIB // 512}"
        return (
            f"{start} flakey {self.node[-1]} 0 0 600 1 error_writes" if broken else f"{start} linear {self.node[-1]} 0"
        )

    def _switch(self, *, broken: bool) -> None:
        run("dmsetup", "suspend", "--nolockfs", "--noflush", self.name)
        run("dmsetup", "load", self.name, "--table", self._table(broken=broken))
        run("dmsetup", "resume", self.name)

    def fail(self, chance: random.Random) -> None:
        """Writes fail now; perhaps only for a moment, so that nobody sees it later."""
        self._switch(broken=True)
        if chance.random() < 0.5:
            run("sync", "--file-system", self.folder.parent / "mnt", check=False)
            self._switch(broken=False)

    def heal(self) -> None:
        self._switch(broken=False)
        run("umount", self.folder)
        run("e2fsck", "-fy", f"/dev/mapper/{self.name}", check=False)
        run("mount", f"/dev/mapper/{self.name}", self.folder)

    def unmount(self) -> None:
        run("umount", self.folder, check=False)
        run("dmsetup", "remove", self.name)
        run("losetup", "--detach", self.node.pop())
        self.below.unlink()


STORES = {"full": Full, "flaky": Flaky}


def on(store: Full | Flaky, template: CliVolume, folder: Path) -> CliVolume:
    """A copy of the volume on a store."""
    (folder / "store").mkdir(exist_ok=True)
    store.mount()
    volume = template.copy_to(folder)
    volume.configure(space="warn")
    return volume


def write(volume: CliVolume, store: Full | Flaky, chance: random.Random) -> Mapping[str, str]:
    """Write files as a backup tool does, most without fsync; the store fails before one of them. Names and digests."""
    written = {}
    moment = chance.randrange(8)
    for number in range(8):
        if number == moment:
            store.fail(chance)
        content = chance.randbytes(chance.randrange(4096, 3 * MIB))
        try:
            with (volume.data / f"{number}").open("wb") as file:
                file.write(content)
                if chance.random() < 0.2:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError:
            return {"a host that fails says so": ""}
        written[str(number)] = hashlib.sha256(content).hexdigest()
    return written


def whole(volume: CliVolume, written: Mapping[str, str]) -> bool:
    """Whether all files are in the volume as they were written, seen by a new opening."""
    if volume.lukshook("before-backup", NAME).returncode != 0:
        return False
    try:
        found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in volume.data.iterdir()}
    except OSError:
        found = {}
    volume.lukshook("after-backup", NAME)
    return all(found.get(name) == digest for name, digest in written.items())


@pytest.mark.parametrize("kind", STORES)
def test_no_false_success(
    template: CliVolume, tmp_path: Path, kind: str, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """Over many runs with the failure at another moment each: where after-backup said 0, every file is whole."""
    told = []
    for number in range(rounds(3, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = STORES[kind](folder / "store")
        volume = on(store, template, folder)
        try:
            volume.do("before-backup", NAME)
            written = write(volume, store, chance)
            done = volume.lukshook("after-backup", NAME)
            assert done.returncode in (0, NotSafe.exit_code), done.stderr
            assert [] == [name for name in volume.standing() if str(volume.image.parent) != name]
            store.heal()
            safe = whole(volume, written)
            assert safe or done.returncode != 0, f"run {number}: said 0, and something is lost"
            told.append(done.returncode)
        finally:
            volume.lukshook("after-backup", NAME, "--kill-holders")
            volume.remove()
            store.unmount()
            shutil.rmtree(folder)  # its header backup alone has 16 MiB
    print(f"{len(told)} runs on a store that is {kind}: {told.count(0)} told as safe, and they were")
    assert NotSafe.exit_code in told


def test_an_image_that_may_outgrow_its_store_is_not_opened(template: CliVolume, tmp_path: Path) -> None:
    """69 with both sizes, and never the quiet 75; with `space = "warn"` it is a warning."""
    store = Full(tmp_path / "store")
    volume = on(store, template, tmp_path)
    volume.configure(space="refuse", soft=True)
    try:
        assert "may still grow by" in volume.refusal(69, "before-backup", NAME)
        assert [str(store.folder)] == volume.standing()

        volume.configure(space="warn")
        done = volume.lukshook("before-backup", NAME)
        assert 0 == done.returncode
        assert done.stderr.startswith("warning: the image of volume offsite may still grow by")
        volume.do("after-backup", NAME)
    finally:
        volume.remove()
        store.unmount()


def test_reading_from_a_store_in_need_is_allowed(template: CliVolume, tmp_path: Path) -> None:
    """A read-only opening needs no room."""
    store = Full(tmp_path / "store")
    volume = on(store, template, tmp_path)
    volume.configure(space="refuse")
    try:
        volume.do("open", NAME, "--read-only")
        volume.do("close", NAME)
    finally:
        volume.remove()
        store.unmount()


def test_a_lost_write_that_somebody_else_was_told_of(template: CliVolume, tmp_path: Path) -> None:
    """`lukshook run` holds the volume since before the writing: it hears of an error that a `sync` took already."""
    store = Full(tmp_path / "store")
    volume = on(store, template, tmp_path)
    lines = f"head -c 30000000 /dev/urandom >'{volume.data}/big'; sync -f '{volume.data}'; exit 0"
    try:
        done = volume.lukshook("run", NAME, "--", "sh", "-c", lines)

        assert 74 == done.returncode, done
    finally:
        volume.lukshook("after-backup", NAME)
        volume.remove()
        store.unmount()

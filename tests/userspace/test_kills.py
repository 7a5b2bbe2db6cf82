"""Daemons, and lukshook itself, are killed while somebody writes: the volume opens again, with all that was promised.

Promised is what fsync(2) and rename(2) have returned for, and what after-backup has called safe. The one file that is
being replaced or deleted at the moment of the kill is told apart: fuse2fs has no journal (docs/userspace-engine.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field, frozen

from lukshook.system import kernel
from support.daemons import daemons, processes
from support.lukshook_process import Child, kill_all
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "e2fsck")
VICTIMS = ("lowest", "highest", "all", "lukshook", "e2fsck")
SIZES = (0, 10, 3_000, 4_096, 20_000, 100_000)
MOST_FILES = 80
GONE = "No such file or directory"


@define
class Ledger:
    """What was promised: the digest of each file. *busy*: the one that was being changed at the end, *coming*: to what.

    *spoilt*: busy files that were there before, and afterwards are neither old nor new.
    """

    files: dict[str, str] = field(factory=dict)
    busy: str = ""
    coming: str = ""
    spoilt: int = 0

    def take_over(self, log: Path) -> None:
        """Read what a writer has noted; the last line may be incomplete."""
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                name, self.coming, done = json.loads(line)
                self.busy = "" if done else name
                self.files |= {name: self.coming} if done else {}
        self.files = {name: digest for name, digest in self.files.items() if digest != GONE}

    def missing(self, data: Path) -> list[str]:
        """The files that are not as promised. The busy one is looked at apart, and promised nothing from now on."""
        old = self.files.pop(self.busy, None)
        if old and _digest_of(data / self.busy) not in (old, self.coming):
            self.spoilt += 1
        return [name for name, digest in self.files.items() if digest != _digest_of(data / name)]


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error.strerror)


@frozen
class Writer:
    """Makes, replaces and deletes files as backup tools do, and notes what it begins and what was acknowledged."""

    data: Path
    log: Path
    seed: int

    def start(self, files: list[str]) -> int:
        """Begin, in a process of its own; its pid."""
        self.log.unlink(missing_ok=True)
        self.log.touch()
        pid = os.fork()
        if not pid:
            try:
                self._work(random.Random(self.seed), files)
            finally:
                os._exit(0)
        return pid

    def _work(self, choose: random.Random, files: list[str]) -> None:
        while True:
            old = bool(files) and (len(files) > MOST_FILES or choose.random() < 0.4)
            name = choose.choice(files) if old else f"{choose.randrange(5)}/{choose.random()}"
            content = choose.randbytes(choose.choice(SIZES))
            digest = GONE if len(files) > MOST_FILES else hashlib.sha256(content).hexdigest()
            self._note(name, digest, False)
            if digest == GONE:
                (self.data / name).unlink()
            else:
                self._put(self.data / name, content)
            self._note(name, digest, True)
            files = [other for other in files if other != name] + ([] if digest == GONE else [name])

    def _note(self, name: str, digest: str, done: bool) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps([name, digest, done]) + "\n")

    def _put(self, path: Path, content: bytes) -> None:
        """A temporary name, fsync, and then the name it is to have."""
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def kill(*pids: int) -> None:
    """SIGKILL, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert kernel.wait_until(lambda: all(kernel.started(pid) is None for pid in pids), 10.0)


def end(writer: int) -> None:
    """A writer lives on only where nothing was taken from under it."""
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)


def kill_a_daemon(volume: CliVolume, victim: str, writer: int) -> None:
    """Under the writer; after-backup then tells that not all is safe."""
    pids = daemons(volume)
    kill(*{"lowest": pids[:1], "highest": pids[-1:], "all": pids}[victim])
    end(writer)
    done = volume.lukshook("after-backup", NAME)
    assert 74 == done.returncode, done.stderr


def kill_lukshook(volume: CliVolume, writer: int, choose: random.Random) -> None:
    """While it closes, after the writer."""
    end(writer)
    child: Child = volume.start("after-backup", NAME)
    kernel.wait_until(child.poll, choose.uniform(0.0, 0.4))
    child.signal(signal.SIGKILL)
    child.wait()


def kill_e2fsck(volume: CliVolume, writer: int, choose: random.Random) -> None:
    """While it mends what a killed daemon has left."""
    kill_a_daemon(volume, "highest", writer)
    child: Child = volume.start("before-backup", NAME)
    kernel.wait_until(lambda: child.poll() or bool(processes(volume, "e2fsck")), 20.0)
    kernel.wait_until(child.poll, choose.uniform(0.0, 0.02))
    kill_all(processes(volume, "e2fsck").values())
    done = child.wait()
    assert done.returncode in (0, 65, 69), done.stderr


def check_clean(volume: CliVolume) -> None:
    """`e2fsck -fn` finds nothing in what a read-only opening shows."""
    volume.do("open", NAME, "--read-only")
    plain = volume.run_folder / f"{NAME}.plain"
    done = subprocess.run(["e2fsck", "-fn", plain], capture_output=True, text=True, check=False)
    volume.do("close", NAME)
    assert 0 == done.returncode, done.stdout + done.stderr


def survive(volume: CliVolume, victim: str, rounds: int, seed: int) -> Ledger:
    """Kill again and again."""
    ledger, log, choose = Ledger(), volume.folder / "log", random.Random(seed)
    for number in range(rounds):
        volume.do("before-backup", NAME)
        assert [] == ledger.missing(volume.data), (victim, seed, number)
        writer = Writer(volume.data, log, choose.getrandbits(32)).start(list(ledger.files))
        kernel.wait_until(lambda: False, choose.uniform(0.05, 0.6))
        if victim in ("lukshook", "e2fsck"):
            (kill_lukshook if victim == "lukshook" else kill_e2fsck)(volume, writer, choose)
        else:
            kill_a_daemon(volume, victim, writer)
        ledger.take_over(log)
    volume.do("before-backup", NAME)
    assert [] == ledger.missing(volume.data), (victim, seed)
    (volume.data / "after all").write_text("stored")
    volume.do("after-backup", NAME)
    assert ledger.files
    check_clean(volume)
    assert volume.is_bare()
    return ledger


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_was_acknowledged_outlives_kills(volume: CliVolume, victim: str) -> None:
    """Three kills at moments that differ from run to run."""
    survive(volume, victim, 3, random.SystemRandom().getrandbits(32))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64MiB", "160MiB", "600MiB"])
@pytest.mark.parametrize("victim", VICTIMS)
def test_what_was_acknowledged_outlives_many_kills(tmp_path: Path, victim: str, size: str) -> None:
    """The same for larger volumes too, which have a second super block, and many times."""
    for volume in volume_of(tmp_path, size):
        ledger = survive(volume, victim, 25, random.SystemRandom().getrandbits(32))
        print(
            f"{victim}, {size}: {len(ledger.files)} files at the end, {ledger.spoilt} of 25 spoilt while being replaced"
        )


def volume_of(folder: Path, size: str) -> Iterator[CliVolume]:
    """A volume of that size, which is closed and let go of at the end."""
    volume = CliVolume(folder, "userspace")
    volume.prepare()
    volume.configure(size=size)
    volume.do("create", NAME)
    yield from closing(volume)

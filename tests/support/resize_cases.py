"""What a change of size must never do: touch anything but its image, or change anything where it is refused.

For any engine: a test file imports from here and has a fixture "volume" from `volume_of_80`, and a constant ENGINE.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from lukshook.filesystems.kinds import KINDS
from lukshook.system import command, kernel
from lukshook.system.command import Command, Result
from support.lukshook_process import Done, nothing
from support.volume import NAME, CliVolume, closing

MIB = 1 << 20
LENGTH = 80
TEXT = "backed up earlier " * 1000
SIZES = {"grow": "88MiB", "shrink": "72MiB"}
PROGRAMS = ("resize", "lukshook-resize")
INSTEAD = ("link", "file", "pipe", "characters", "folder")


def arguments(volume: CliVolume, program: str, size: str) -> tuple[str, ...]:
    """The command line that gives the volume that size."""
    if program == "resize":
        return ("resize", NAME, size, "--yes")
    return ("lukshook-resize", str(volume.image), size, "--yes", "--key", f"file:{volume.key}")


def volume_of_80(folder: Path, engine: str) -> Iterator[CliVolume]:
    """For the fixture "volume": a closed volume of 80 MiB with a file in it, and a copy of all that to go back to."""
    volume = CliVolume(folder, engine)
    volume.prepare()
    volume.configure(size=f"{LENGTH}MiB", fill="fallocate")
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text(TEXT)
    volume.do("after-backup", NAME)
    keep(volume)
    yield from closing(volume)


def keep(volume: CliVolume) -> None:
    """Keep the volume as it is now, for `put_back`."""
    kept = volume.folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    shutil.copy(volume.key, kept / "key")
    shutil.copytree(volume.state_folder, kept / "state")
    subprocess.run(["cp", volume.image, kept / "image"], check=True)


def put_back(volume: CliVolume) -> None:
    """The volume as it was kept, whatever became of it."""
    kept = volume.folder / "kept"
    shutil.rmtree(volume.image.parent)
    volume.image.parent.mkdir()
    subprocess.run(["cp", kept / "image", volume.image], check=True)
    shutil.copy(kept / "key", volume.key)
    shutil.rmtree(volume.state_folder)
    shutil.copytree(kept / "state", volume.state_folder)
    os.chmod(volume.state_folder, 0o700)


@frozen
class Look:
    """All that a change of size could change of a file."""

    digest: str
    length: int
    blocks: int
    inode: int


def look(path: Path) -> Look:
    """What is at *path* now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())  # a store may count blocks only once they are written
    found = os.lstat(path)
    return Look(digest, found.st_size, found.st_blocks, found.st_ino)


def whole(volume: CliVolume) -> None:
    """What was backed up is there, and the next backup works."""
    volume.do("before-backup", NAME)
    assert TEXT == (volume.data / "file").read_text()
    volume.do("after-backup", NAME)


# Another thing in the place of the image


@frozen
class Exchange:
    """As the `prepare` of a lukshook: before its *step*-th step, *what* lies in the place of the image.

    Steps are the calls of tools and of those functions that look the image up; each is noted in *log*.
    """

    image: Path
    log: Path
    what: str | None = None
    step: int = -1
    counter: list[int] = field(factory=lambda: [-1])

    @property
    def victim(self) -> Path:
        """The file outside the store that a link leads to."""
        return self.log.with_name("victim")

    def __call__(self) -> None:
        """Wrap the functions of this process."""
        for name in ("open", "stat", "lstat", "truncate", "statvfs"):
            self._wrap(name)
        call = command.SystemRunner._call

        def called(runner: Any, wanted: Command) -> Result:
            self._step(f"run {wanted}")
            return call(runner, wanted)

        setattr(command.SystemRunner, "_call", called)  # noqa: B010 - mypy has no other way to say it

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(path: Any, *more: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and Path(path).name == self.image.name:
                self._step(f"{name} {path}")
            return original(path, *more, **options)

        setattr(os, name, wrapped)

    def _step(self, line: str) -> None:
        self.counter[0] += 1
        if self.counter[0] == self.step and self.what is not None:
            self.exchange()
        with self.log.open("a") as log:
            log.write(line.replace("\n", " ") + "\n")

    def exchange(self) -> None:
        """Do it, as the owner of the store can at any moment."""
        self.image.rename(self.away)
        if self.what == "link":
            self.image.symlink_to(self.victim)
        elif self.what == "file":
            self.image.with_name("other").rename(self.image)
        elif self.what == "pipe":
            os.mkfifo(self.image)
        elif self.what == "characters":
            os.mknod(self.image, 0o600 | 0o020000, os.makedev(1, 3))
        else:
            self.image.mkdir()

    @property
    def away(self) -> Path:
        """Where the image is then."""
        return self.image.with_name("away")


def prepare_exchange(volume: CliVolume, what: str | None, step: int) -> Exchange:
    """With a victim outside the store, and another image in it."""
    (volume.folder / "log").write_text("")
    exchange = Exchange(volume.image, volume.folder / "log", what, step)
    with exchange.victim.open("wb") as victim:
        victim.write(os.urandom(MIB))
        victim.truncate(77 * MIB)
    shutil.copy(volume.folder / "kept/image", volume.image.with_name("other"))
    return exchange


def steps_of(volume: CliVolume, program: str, size: str) -> list[str]:
    """The steps of the command when nothing happens."""
    exchange = prepare_exchange(volume, None, -1)
    done = volume.start(*arguments(volume, program, size), prepare=exchange).wait()
    assert 0 == done.returncode, done.stderr
    whole(volume)
    put_back(volume)
    return exchange.log.read_text().splitlines()


def exchange_at(volume: CliVolume, program: str, size: str, what: str, step: int) -> None:
    """The command with the image exchanged at one step, and all that has to hold then."""
    exchange = prepare_exchange(volume, what, step)
    wanted = int(size.removesuffix("MiB")) * MIB
    image, victim, other = look(volume.image), look(exchange.victim), look(volume.image.with_name("other"))
    done = volume.start(*arguments(volume, program, size), prepare=exchange).wait()
    assert exchange.away.exists(), "the step was not reached"
    assert victim == look(exchange.victim), done
    assert done.returncode in ((0, 65, 69, 74, 78) if what == "file" else (65, 69, 74, 78)), done
    if done.returncode != 74:
        assert image == look(exchange.away), done
    if what == "file":
        now = look(volume.image)
        assert now == other or (done.returncode == 0 and (now.inode, now.length) == (other.inode, wanted)), done
        volume.image.unlink()
    elif what == "folder":
        assert [] == list(volume.image.iterdir())
        volume.image.rmdir()
    else:
        volume.image.unlink()
    assert [] == volume.standing(), done
    exchange.away.rename(volume.image)
    volume.do(*arguments(volume, program, size))
    assert wanted == volume.image.stat().st_size
    whole(volume)


@pytest.mark.parametrize("direction", SIZES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_is_put_in_the_place_of_the_image_stays_as_it_is(
    volume: CliVolume, program: str, direction: str, request: pytest.FixtureRequest
) -> None:
    """At any step; and when the image is back the same command ends well."""
    instead = INSTEAD if os.geteuid() == 0 else tuple(what for what in INSTEAD if what != "characters")
    steps, failures = steps_of(volume, program, SIZES[direction]), []
    stride = 1 if request.config.getoption("--long") else 61
    for number in range(0, len(instead) * len(steps), stride):
        step, what = divmod(number, len(instead))
        try:
            exchange_at(volume, program, SIZES[direction], instead[what], step)
        except AssertionError as error:
            failures.append(f"{instead[what]} before step {step}: {steps[step]}\n    {error}")
        put_back(volume)
    assert not failures, f"{len(failures)} failed\n" + "\n".join(failures)


# Refusals


@frozen
class Reason:
    """Why a change of size is refused: *arrange* holds while the command runs; with which exit status.

    *prepare* is called in lukshook's process. *engines*, *programs* and *directions* are those that it holds for.
    """

    name: str
    code: int
    arrange: Callable[[CliVolume], Any] = lambda volume: ExitStack()
    prepare: Callable[[], None] = nothing
    engines: tuple[str, ...] = ("kernel", "userspace")
    programs: tuple[str, ...] = PROGRAMS
    directions: tuple[str, ...] = tuple(SIZES)
    features: str = ""
    said: str = ""


@contextmanager
def another_key(volume: CliVolume) -> Iterator[None]:
    """The key file holds another key."""
    volume.set_key(os.urandom(32))
    yield


@contextmanager
def nothing_known(volume: CliVolume) -> Iterator[None]:
    """This host does not know the header; the key's mark in it is taken for an answer, so it has none."""
    file = volume.state_folder / f"{NAME}.json"
    known = json.loads(file.read_text())
    known["pins"]["uuid"] = "another"
    file.write_text(json.dumps(known))
    yield


@contextmanager
def more_was_written(volume: CliVolume) -> Iterator[None]:
    """The image is older than the one that was closed last."""
    file = volume.state_folder / f"{NAME}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "written": 1 << 40}))
    yield


@contextmanager
def another_file_system(volume: CliVolume) -> Iterator[None]:
    """The file system in it is not the known one."""
    file = volume.state_folder / f"{NAME}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "filesystem": "another"}))
    yield


def locked_by_another(mode: int) -> Callable[[CliVolume], Any]:
    """Another host has it open."""

    @contextmanager
    def locked(volume: CliVolume) -> Iterator[None]:
        with volume.image.open("r+b") as file:
            fcntl.flock(file, mode)
            yield

    return locked


@contextmanager
def attached_by_another(volume: CliVolume) -> Iterator[None]:
    """Somebody has it on a loop device."""
    node = subprocess.run(
        ["losetup", "--find", "--show", volume.image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)


@contextmanager
def full_mount_point(volume: CliVolume) -> Iterator[None]:
    """There is something in the bare mount point."""
    volume.remove()
    volume.mountpoint.chmod(0o700)
    (volume.mountpoint / "file").touch()
    yield
    (volume.mountpoint / "file").unlink()


def small_files_only() -> None:
    """No file may be larger than 84 MiB, and root cannot change that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (84 * MIB, 84 * MIB))
    drop_capability(kernel.CAP_SYS_RESOURCE)


def drop_capability(number: int) -> None:
    """Take the capability *number* (0 to 31) from this process: capset(2), <linux/capability.h>."""
    libc, head, sets = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert 0 == libc.capget(head, sets), ctypes.get_errno()
    for place in (0, 1):  # effective and permitted
        sets[place] &= ~(1 << number)
    assert 0 == libc.capset(head, sets), ctypes.get_errno()


def without(tool: str) -> Callable[[], None]:
    """A tool is not installed."""

    def remove() -> None:
        found = os.access
        os.access = lambda path, *more, **options: Path(path).name != tool and found(path, *more, **options)

    return remove


OURS = ("resize",)
REASONS = (
    Reason("wrong key", 77, another_key),
    Reason("not as known", 65, nothing_known, programs=OURS),
    Reason("older", 65, more_was_written, programs=OURS),
    Reason("another file system", 65, another_file_system, programs=OURS),
    Reason("locked", 69, locked_by_another(fcntl.LOCK_EX)),
    Reason("locked for reading", 69, locked_by_another(fcntl.LOCK_SH)),
    Reason("attached", 69, attached_by_another),
    Reason("too large a file", 69, prepare=small_files_only, directions=("grow",), said="only files of up to"),
    Reason("no resize2fs", 69, prepare=without("resize2fs")),
    Reason("mount point", 78, full_mount_point, engines=("kernel",), programs=OURS, directions=("grow",)),
    Reason("bigalloc", 65, features="bigalloc", engines=("userspace",), directions=("grow",)),
    Reason("bigalloc", 65, features="bigalloc", directions=("shrink",)),
    Reason("stable_inodes", 65, features="stable_inodes", directions=("shrink",)),
)


def with_features(features: str) -> Callable[[], None]:
    """As the `prepare` of a `create`: the file system is made with these features."""

    def add() -> None:
        row = KINDS["ext4"]
        KINDS["ext4"] = evolve(row, make=(*row.make, "-O", features))

    return add


def make_with(volume: CliVolume, features: str) -> None:
    """The closed volume, made again with *features*."""
    volume.image.unlink()
    shutil.rmtree(volume.state_folder)
    made = volume.start("create", NAME, prepare=with_features(features)).wait()
    assert 0 == made.returncode, made


def reasons_of(engine: str) -> Iterator[Any]:
    """A parameter for each reason, program and direction; without --long one for each reason, each time another."""
    reasons = (reason for reason in REASONS if engine in reason.engines)
    for number, reason in enumerate(reasons):
        if os.geteuid() and reason.name == "attached":
            continue
        each = [(program, direction) for program in reason.programs for direction in reason.directions]
        for place, (program, direction) in enumerate(each):
            marks = () if place == number % len(each) else pytest.mark.slow
            yield pytest.param(reason, program, direction, id=f"{reason.name}, {program}, {direction}", marks=marks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "reason" in metafunc.fixturenames:
        metafunc.parametrize(("reason", "program", "direction"), list(reasons_of(metafunc.module.ENGINE)))


def test_what_is_refused_has_changed_nothing(volume: CliVolume, reason: Reason, program: str, direction: str) -> None:
    """Neither a byte of the image nor its length nor its blocks; with one line, a hint and the right exit status."""
    try:
        if reason.features:
            make_with(volume, reason.features)
        before = look(volume.image)
        with reason.arrange(volume):
            words = arguments(volume, program, SIZES[direction])
            done = volume.start(*words, prepare=reason.prepare).wait()
        assert before == look(volume.image), done
        assert (reason.code, "") == (done.returncode, done.stdout), done
        check_one_line_and_a_hint(done)
        assert reason.said in done.stderr
        assert [] == volume.standing()
    finally:
        put_back(volume)
    whole(volume)


def check_one_line_and_a_hint(done: Done) -> None:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning:")]
    assert 2 == len(lines), done
    assert lines[1].startswith("  hint: "), done


# What came of shrinking


def spoilt_after_resize2fs(wanted: str) -> Callable[[], None]:
    """As the `prepare` of a `resize`: resize2fs exits 0 and has left the file system with a fault."""

    def wrap() -> None:
        call = command.SystemRunner._call

        def spoil(runner: Any, asked: Command) -> Result:
            result = call(runner, asked)
            if asked.argv[0] == "resize2fs" and "-P" not in asked.argv:
                device = asked.argv[-2]
                subprocess.run(["debugfs", "-w", "-R", wanted, device], check=True, capture_output=True)
            return result

        setattr(command.SystemRunner, "_call", spoil)  # noqa: B010 - mypy has no other way to say it

    return wrap


@pytest.mark.needs("debugfs")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("set_inode_field <7> links_count 0", id="resize inode: e2fsck exits 0"),
        pytest.param("clri /data/file", id="a file"),
        pytest.param("freeb 1000 20", id="blocks that are in use"),
    ],
)
def test_nothing_is_cut_off_a_file_system_that_has_errors(volume: CliVolume, fault: str) -> None:
    """The image keeps its length, and what was backed up can still be reached by whoever repairs it."""
    try:
        done = volume.start(*arguments(volume, "resize", "72MiB"), prepare=spoilt_after_resize2fs(fault)).wait()
        assert (65, LENGTH * MIB) == (done.returncode, volume.image.stat().st_size), done
        check_one_line_and_a_hint(done)
        assert [] == volume.standing()
    finally:
        put_back(volume)

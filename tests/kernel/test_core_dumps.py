"""Crashes with the caller's core dumps on: no dump has the key, whoever held it and wherever dumps go."""

from __future__ import annotations

import base64
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.system import kernel
from support import header_forgery
from support.key_traces import memory, traces
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "qemu-storage-daemon")

KEY = os.urandom(32)
WANTED = traces(KEY)
PATTERN, HELPERS = Path("/proc/sys/kernel/core_pattern"), Path("/proc/sys/kernel/core_pipe_limit")
#: Many enough for cryptsetup to hold the key for seconds, within what a header may ask for.
ITERATIONS = 50_000_000
HANDLER = '#!/bin/sh\nexec cat >"{folder}/core.$1"\n'
HOLDER = "import base64, os, signal; key = base64.b64decode(input()); os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture(params=["to a file", "to a handler"])
def dumps(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for all core dumps of this kernel, which our caller wants whole."""
    folder, handler = tmp_path / "cores", tmp_path / "handler"
    folder.mkdir()
    handler.write_text(HANDLER.format(folder=folder))
    handler.chmod(0o755)
    before = PATTERN.read_text(), HELPERS.read_text(), resource.getrlimit(resource.RLIMIT_CORE)
    PATTERN.write_text(f"{folder}/core.%p" if request.param == "to a file" else f"|{handler} %p")
    HELPERS.write_text("4")  # a process that crashes ends after its handler (core(5))
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    yield folder
    PATTERN.write_text(before[0])
    HELPERS.write_text(before[1])
    resource.setrlimit(resource.RLIMIT_CORE, before[2])


def dumped(folder: Path) -> dict[int, bool]:
    """The processes that were dumped, and whether the key is in the dump."""
    return {int(file.suffix[1:]): WANTED.search(file.read_bytes()) is not None for file in folder.iterdir()}


def holds(pid: int) -> bool:
    """Whether a process has the key in its memory now."""
    return any(map(WANTED.search, memory(Path("/proc", str(pid)))))


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent only: its dump is written then."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def soon(what: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that holds nothing yet, with the key we look for."""
    volume = CliVolume(tmp_path)
    volume.prepare(KEY)
    yield from closing(volume)


def test_a_program_without_care_is_dumped_with_its_key(dumps: Path) -> None:
    """So that the tests below look at the right place for the right thing."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE)
    child.communicate(base64.b64encode(KEY))
    assert (-signal.SIGSEGV, {child.pid: True}) == (child.returncode, dumped(dumps))


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("lukshook", signal.SIGSEGV),
        ("cryptsetup", signal.SIGABRT),
        pytest.param("lukshook", signal.SIGABRT, marks=pytest.mark.slow),
        pytest.param("cryptsetup", signal.SIGSEGV, marks=pytest.mark.slow),
    ],
)
def test_neither_lukshook_nor_its_cryptsetup_is_dumped(
    volume: CliVolume, dumps: Path, victim: str, number: int
) -> None:
    """Both hold the key when they are made to crash: while cryptsetup computes for a header that asks for much."""
    image = header_forgery.luks2()
    for slot in (0, 1):
        header_forgery.put(f"keyslots.{slot}.kdf.iterations", ITERATIONS)(image)
    volume.image.write_bytes(image)
    child = volume.start("key", "test", NAME)
    soon(lambda: kernel.children(child.pid))
    (tool,) = kernel.children(child.pid)
    soon(lambda: holds(child.pid) and holds(tool))
    os.kill(child.pid if victim == "lukshook" else tool, number)
    done = child.wait()
    if victim == "lukshook":
        assert -number == done.returncode
        os.kill(tool, signal.SIGKILL)
    else:
        assert 69 == done.returncode, done.stderr
    assert not WANTED.search((done.stdout + done.stderr).encode())
    assert {} == dumped(dumps)


def test_the_daemon_of_an_open_volume_is_not_dumped(volume: CliVolume, dumps: Path) -> None:
    """qemu-storage-daemon has the key while the volume is open; what it leaves behind is closed, and told (74)."""
    userspace = CliVolume(volume.folder, "userspace")
    userspace.configure()
    userspace.do("create", NAME)
    userspace.do("before-backup", NAME)
    (daemon,) = (int(entry.name) for entry in Path("/proc").glob("[0-9]*") if is_daemon(entry))
    assert holds(daemon)
    os.kill(daemon, signal.SIGSEGV)
    soon(lambda: ended(daemon))
    assert {} == dumped(dumps)
    assert 74 == userspace.lukshook("after-backup", NAME).returncode
    assert [] == userspace.standing()


def is_daemon(entry: Path) -> bool:
    try:
        return (entry / "comm").read_text().startswith("qemu-storage") and not ended(int(entry.name))
    except OSError:
        return False


@pytest.mark.parametrize("dumps", ["to a file"], indirect=True)
def test_a_job_is_dumped_as_its_caller_wants_and_has_no_key(volume: CliVolume, dumps: Path) -> None:
    """lukshook, which waits for its job, crashes first and is not dumped; then the job crashes and is."""
    volume.do("create", NAME)
    job = f"echo $$ >{volume.folder}/job; kill -SEGV $PPID; kill -SEGV $$"
    assert -signal.SIGSEGV == volume.lukshook("run", NAME, "--", "sh", "-c", job).returncode
    pid = int((volume.folder / "job").read_text())
    soon(lambda: ended(pid))
    assert {pid: False} == dumped(dumps)
    volume.do("close", NAME)

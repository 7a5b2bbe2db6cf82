"""A backup tool that is told to stop, or killed, in the middle of a backup."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from hosts.house import LUKSHOOK, House, need
from hosts.test_borgmatic import modern
from hosts.test_rsnapshot import GOOD, write
from lukshook import kernel

pytestmark = pytest.mark.hosts
PATIENCE = 60.0
#: Kilobytes per second, so that a copy lasts until the signal comes, and one that outlives its host ends soon.
SLOW = "--bwlimit=300"


@contextmanager
def in_the_middle(
    house: House, command: Sequence[str | Path], tool: str, more: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A host in a session of its own, when its *tool* is at work; waited for at the end."""
    path = os.pathsep.join([*more, house.environment()["PATH"]])
    host = subprocess.Popen(
        command,
        env={**house.environment(), "PATH": path},
        cwd=house.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert kernel.wait_until(lambda: house.is_open() and bool(working(house, tool)), PATIENCE)
        yield host
    finally:
        host.kill()
        host.wait(PATIENCE)


def working(house: House, tool: str) -> list[str]:
    """The processes of that name that have a file of the volume open."""
    device = house.mountpoint.stat().st_dev
    return [entry.name for entry in Path("/proc").glob("[0-9]*") if is_named(entry, tool) and holds(entry, device)]


def is_named(entry: Path, tool: str) -> bool:
    try:
        return (entry / "comm").read_text().strip() == tool
    except OSError:
        return False


def holds(entry: Path, device: int) -> bool:
    try:
        return any(os.stat(link).st_dev == device for link in (*(entry / "fd").iterdir(), entry / "cwd"))
    except OSError:
        return False


def send(host: subprocess.Popen[bytes], number: signal.Signals, *, group: bool) -> int:
    """Send a signal to the host, or to its process group as a terminal does; its exit status."""
    (os.killpg if group else os.kill)(host.pid, number)
    return host.wait(PATIENCE)


def check_next_run(house: House) -> None:
    """The next run works and ends closed, whatever the last one left."""
    done = house.lukshook("run", "offsite", "--", "true")
    assert (0, True) == (done.returncode, house.closed_and_bare()), done.stderr


STOPS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
GROUPS = pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])


@contextmanager
def rsync(house: House) -> Iterator[subprocess.Popen[bytes]]:
    command: list[str | Path] = [LUKSHOOK, "-c", house.config, "run", "offsite", "--", need("rsync"), "-a", SLOW]
    with in_the_middle(house, [*command, f"{house.tree}/", f"{house.data}/home/"], "rsync") as host:
        yield host


@contextmanager
def rsnapshot(house: House) -> Iterator[subprocess.Popen[bytes]]:
    config = write(house, house.lines("rsnapshot-preexec"), f"{GOOD} {SLOW}")
    with in_the_middle(house, [need("rsnapshot"), "-c", config, "alpha"], "rsync") as host:
        yield host


@contextmanager
def borgmatic(house: House) -> Iterator[subprocess.Popen[bytes]]:
    """A tree of random content, packed as hard as borg can, takes it longer than the test."""
    source = house.home / "large"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(48 << 20))
    made = modern(House(house.home, source))
    with made.config.open("a") as config:
        config.write("compression: lzma,9\n")
    folder = str(Path(made.program).parent)
    for name in ("borg", "two"):
        init = ("run", "offsite", "--", f"{folder}/borg", "init", "--encryption=none", str(house.data / name))
        assert 0 == house.lukshook(*init).returncode
    with in_the_middle(house, [made.program, "--config", made.config, "create"], "borg", [folder]) as host:
        yield host


@GROUPS
@STOPS
def test_rsync_under_run_is_closed_at_once(house: House, number: signal.Signals, group: bool) -> None:
    """Told to stop: rsync's own 20 comes through, and the volume is closed when `lukshook run` ends."""
    with rsync(house) as host:
        status = send(host, number, group=group)

        assert (20, True) == (status, house.closed_and_bare())
    check_next_run(house)


@STOPS
def test_borgmatic_is_closed_at_once(house: House, number: signal.Signals) -> None:
    """Told to stop: borgmatic fails, and its after hook has closed the volume when it ends."""
    with borgmatic(house) as host:
        status = send(host, number, group=True)

        assert 0 != status
        assert house.closed_and_bare()
    check_next_run(house)


@STOPS
def test_rsnapshot_is_closed_by_the_next_run(house: House, number: signal.Signals) -> None:
    """Told to stop: rsnapshot fails; it may run no cmd_postexec then."""
    with rsnapshot(house) as host:
        assert 0 != send(host, number, group=True)
    check_next_run(house)


Start = Callable[[House], AbstractContextManager[subprocess.Popen[bytes]]]


@GROUPS
@pytest.mark.parametrize("start", [rsync, rsnapshot, borgmatic])
def test_killed_hosts_are_closed_by_the_next_run(house: House, start: Start, group: bool) -> None:
    """Killed: nobody closes; the next run does, once a tool that outlives its host has ended."""
    with start(house) as host:
        tools = working(house, "borg") if start is borgmatic else []
        assert -signal.SIGKILL == send(host, signal.SIGKILL, group=group)
        for tool in tools:  # borg goes on for minutes
            with suppress(ProcessLookupError):
                os.kill(int(tool), signal.SIGKILL)
    check_next_run(house)

"""One case of the matrix of signals: a tool is held at a moment, gets its signals, and is seen to end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import attrs

from lukshook.system import kernel
from lukshook.volume import records
from support.backup_tools import TOOLS
from support.host_volume import HostVolume
from support.lukshook_process import kill_all
from support.tool_phases import Tool

PATIENCE = 60.0


@attrs.frozen
class Case:
    """*who* gets it: the process that was started alone, its group (as from a terminal), or the tool below `run`."""

    host: str
    moment: str
    stop: str
    who: str

    def __str__(self) -> str:
        return f"{self.host}, {self.moment}, {self.stop}, {self.who}"

    @property
    def wrapped(self) -> bool:
        """Under `lukshook run`, which is then what was started."""
        return not TOOLS[self.host].hooks

    @property
    def reaches_us(self) -> bool:
        """Is lukshook itself signalled at that moment?"""
        return self.who == "group" or (self.wrapped and self.who == "alone")

    @property
    def may_stay_open(self) -> bool:
        """Nobody is left to close: lukshook was killed, or the tool was and has no lukshook above it, or it calls no
        hook when it is stopped (borgmatic 1.7, rsnapshot)."""
        if self.stop == "KILL":
            return self.reaches_us or (not self.wrapped and self.moment == "during")
        return self.moment == "during" and self.host in ("borgmatic-1.7", "rsnapshot-preexec")


@contextmanager
def started(tool: Tool, case: Case, *, plain: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The tool in a session of its own, held at the moment of *case*; nothing of it runs any more at the end."""
    tool.hold(case.moment)
    host = subprocess.Popen(
        tool.command(case.moment, plain=plain),
        env={**tool.house.environment, **tool.environment()},
        cwd=tool.house.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await_(lambda: tool.waits(case.moment, tool.data(plain=plain)), f"{case.moment} does not come")
        yield host
        await_(lambda: not family(host.pid), "something of the tool goes on")
    finally:
        tool.go_on()
        kill_all(family(host.pid))
        host.wait(PATIENCE)
        bury(host.pid)


def bury(session: int) -> None:
    """Take leave of orphans, whom init would: a lock of borg or rsnapshot that names a zombie looks alive."""
    for entry in Path("/proc").glob("[0-9]*"):
        if stat_of(entry)[1] == session:
            os.waitpid(int(entry.name), 0)


def stopped(tool: Tool, case: Case, host: subprocess.Popen[bytes], *, plain: bool) -> int:
    """Send the signals of *case*, then let everything go on; the exit status as a shell gives it."""
    with busy(tool, plain=plain) if case.moment == "after" else nullcontext():
        send(case, host, plain=plain)
        with suppress(subprocess.TimeoutExpired):
            host.wait(0.5)  # what is to be ended by the signal has ended before the rest goes on
        tool.go_on()
    status = host.wait(PATIENCE)
    return status if status >= 0 else 128 - status


@contextmanager
def busy(tool: Tool, *, plain: bool) -> Iterator[None]:
    """Keep the volume busy, have the backup finish, and go on inside when closing has begun."""
    house, flag = tool.house, tool.house.folder / "busy"
    flag.touch()
    held = os.open(tool.data(plain=plain), os.O_RDONLY)
    try:
        tool.go_on()
        await_(lambda: (house.folder / "closing").exists() if plain else is_closing(house), "closing does not begin")
        yield
    finally:
        os.close(held)
        flag.unlink()


def is_closing(house: HostVolume) -> bool:
    """Has all been written out, so that only unmounting is left?"""
    record = records.peek(house.folder / "run", "offsite")
    return record is not None and record.settled


def send(case: Case, host: subprocess.Popen[bytes], *, plain: bool) -> None:
    """Send the signals of *case*, a millisecond apart."""
    for name in case.stop.split():
        number = signal.Signals[f"SIG{name}"]
        if case.who == "group":
            os.killpg(host.pid, number)
        else:
            os.kill(kernel.children(host.pid)[0] if case.who == "tool" and not plain else host.pid, number)
        time.sleep(0.001)


def references(tool: Tool, case: Case) -> set[int]:
    """How the tool ends without lukshook. `run` itself is ended by the signal in "before", and goes through in "after".

    Of two signals a millisecond apart a tool sees the one or the other first, so it may end as by either, and the
    second may end it while it deals with the first.
    """
    if case.wrapped and case.stop == "KILL" and case.reaches_us:
        return {128 + signal.SIGKILL}
    if case.wrapped and case.moment == "before":
        return {128 + signal.Signals[f"SIG{case.stop.split()[0]}"]}
    if case.wrapped and case.moment == "after":
        return {0}
    stops = case.stop.split()
    statuses = {128 + signal.Signals[f"SIG{stop}"] for stop in stops if len(stops) > 1}
    for stop in {case.stop, *stops}:
        alone = attrs.evolve(case, stop=stop)
        with started(tool, alone, plain=True) as host:
            statuses.add(stopped(tool, alone, host, plain=True))
    return statuses


def family(session: int) -> list[int]:
    """The living processes of a session; lukshook's own tools and daemons have others."""
    found = ((entry.name, *stat_of(entry)) for entry in Path("/proc").glob("[0-9]*"))
    return [int(pid) for pid, state, its_session in found if its_session == session and state not in "ZX"]


def stat_of(entry: Path) -> tuple[str, int]:
    """State and session of a process (proc(5)); a session of 0 for one that is gone."""
    try:
        state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return "X", 0
    return state, int(session)


def await_(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until it is so."""
    assert kernel.wait_until(condition, PATIENCE), otherwise

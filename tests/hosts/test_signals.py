"""A backup tool is told to stop, or killed: host x signal x who gets it x moment.

Expected: closed at the end, or closed by the next run where nobody was left to close; backups that were acknowledged
are whole; the next run works; and the tool ends as the same tool does by the same signal without lukshook.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from shutil import rmtree

import pytest

from support.backup_tools import TOOLS
from support.host_volume import HostVolume, build, same
from support.stop_tools import Case, references, started, stopped
from support.tool_phases import Tool, under_run

pytestmark = pytest.mark.hosts
STOPS = ("INT", "TERM", "HUP", "KILL")
MOMENTS = ("before", "during", "after")


def cases() -> Iterator[Case]:
    """All of them. Ctrl-C reaches some tools as INT and, a millisecond later, TERM."""
    for host, moment in product(TOOLS, MOMENTS):
        for stop in STOPS:
            yield from (Case(host, moment, stop, who) for who in ("alone", "group"))
        yield Case(host, moment, "INT TERM", "group")
        if moment == "during" and not TOOLS[host].hooks:
            yield from (Case(host, moment, stop, "tool") for stop in STOPS)


#: Always run: borgmatic is told to stop, and a tool is gone before its volume is open.
ALSO = (Case("borgmatic", "during", "TERM", "alone"), Case("rsnapshot-preexec", "before", "KILL", "alone"))


def sampled(number: int, case: Case) -> bool:
    """Those of the default run: every host, with moments, signals and targets in turn."""
    return number % 19 == 1 or case in ALSO


def marks(number: int, case: Case) -> list[pytest.MarkDecorator]:
    """Whether it runs here, and by default."""
    old = [pytest.mark.borgmatic_1_7] if case.host == "borgmatic-1.7" else []
    return old if sampled(number, case) else [*old, pytest.mark.slow]


CASES = [pytest.param(case, id=str(case), marks=marks(number, case)) for number, case in enumerate(cases())]


@pytest.fixture(name="tools", scope="module")
def _tools() -> dict[str, Tool]:
    """One tool of each host, made when it is first needed. It lives through all cases, as a user's does."""
    return {}


@pytest.fixture(autouse=True)
def _nothing_for_the_next_case(tools: dict[str, Tool]) -> Iterator[None]:
    """A case that failed leaves nothing open for the next one."""
    yield
    for tool in tools.values():
        if tool.house.is_open():
            tool.house.lukshook("close", "offsite", "--kill-holders")


def tool_of(host: str, tools: dict[str, Tool], folder: Path) -> Tool:
    """The tool of that host, with its first backup done."""
    if host not in tools:
        tool = TOOLS[host](build(HostVolume(folder, tree=Path())))
        tool.hold("")
        tool.go_on()
        back_up(tool)
        tools[host] = tool
    return tools[host]


def back_up(tool: Tool) -> None:
    """A run of the tool that nobody disturbs: it works, and the volume is closed after it."""
    done = tool.house.host(*tool.command(), **tool.environment())
    assert done.returncode in tool.good, done.stdout + done.stderr
    assert tool.house.closed_and_bare()


def test_what_a_stopped_tool_leaves_behind_is_stopped(
    tools: dict[str, Tool], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """rsnapshot ends at once and its rsync would write for minutes: lukshook stops it, and can close."""
    tool = tool_of("rsnapshot", tools, tmp_path_factory.mktemp("house"))
    case = Case("rsnapshot", "during", "TERM", "alone")
    tool.pace = 10
    with started(tool, case, plain=False) as host:
        status = stopped(tool, case, host, plain=False)
    tool.pace = Tool.pace

    assert (1, True) == (status, tool.house.closed_and_bare())
    assert acknowledged(tool, tmp_path / "first")


def acknowledged(tool: Tool, target: Path, *, whole: bool = False) -> bool:
    """Is what the last finished backup took there? *whole*: all that there is now. Closed after looking."""
    target.mkdir()
    done = tool.house.host(*under_run(tool.house, tool.restoring(target)), **tool.environment())
    assert (0, True) == (done.returncode, tool.house.closed_and_bare()), done.stdout + done.stderr
    part = "." if whole else "small"
    copies = tool.restored(target)
    equal = any(copy.exists() and same(tool.source / part, copy / part) for copy in copies[: 1 if whole else None])
    rmtree(target)
    return equal


@pytest.mark.parametrize("case", CASES)
def test_closed_whole_and_unbent(
    tools: dict[str, Tool], case: Case, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One case of the matrix."""
    tool = tool_of(case.host, tools, tmp_path_factory.mktemp("house"))
    expected = references(tool, case)
    with started(tool, case, plain=False) as host:
        status = stopped(tool, case, host, plain=False)
    was_open = tool.house.is_open()

    print(f"{case}: status {status}, without lukshook {expected}, {'open' if was_open else 'closed'}")
    assert case.may_stay_open or not was_open
    assert acknowledged(tool, tmp_path / "first")
    back_up(tool)
    assert acknowledged(tool, tmp_path / "second", whole=True)
    assert status in expected

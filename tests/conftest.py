"""Tiers, tools and leaks: what holds for every test.

The folder of a test is its tier. ``@pytest.mark.needs("tool", ...)`` skips a test where a tool is missing, and fails
it where CI or LUKSHOOK_REQUIRE_ALL is set. Kernel, userspace and hosts tests must leave nothing behind.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lukshook.system import signals
from support import key_volume, leaks
from support.key_volume import KeyVolume
from support.volume import CliVolume, closing, created

if TYPE_CHECKING:
    import pluggy

CASES = (
    *("command_fault_cases", "copy_cases", "drill_cases", "far_cases", "far_volume", "honest_life", "ledger_cases"),
    *("rekey_cases", "resize_cases", "tampering"),
)
pytest.register_assert_rewrite(*(f"support.{name}" for name in CASES))

HERE = Path(__file__).resolve().parent
MARKED_TIERS = ("files", "userspace", "kernel", "hosts")
CLEAN_TIERS = ("userspace", "kernel", "hosts")
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on the PATH of an ordinary user of Debian


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests marked slow, and the long form of others")
    parser.addoption("--rounds", type=int, metavar="N", help="how often tests repeat that have a number of rounds")
    parser.addoption("--seed", default="", metavar="TEXT", help="other random choices")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*tools): skipped, or failed in CI, where one of the tools is missing")
    config.addinivalue_line("markers", "roots: about what only root's volumes have; no test for an ordinary user")
    config.addinivalue_line("markers", "outside: starts guests of its own, so it cannot run inside of one")
    config.addinivalue_line("markers", "guest_too: a test of the hosts tier that the kernel tier runs on dm-crypt")
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*path, *SYSTEM_FOLDERS]))
    leaks.adopt_orphans()
    # A shell's job in the background has Ctrl-C ignored (POSIX, sh), and so would all that tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def tier_of(path: Path) -> str:
    """The folder below tests/ that a test file lies in, "linters" for one that lies in none."""
    parts = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return parts[0] if len(parts) > 1 else "linters"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        tier = tier_of(item.path)
        if tier in MARKED_TIERS:
            item.add_marker(tier)
    unwanted = [] if config.getoption("--long") else ["slow"]
    unwanted += ["roots"] if os.geteuid() else []
    left_out = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def everything_required() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("LUKSHOOK_REQUIRE_ALL") == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
    missing = [tool for tool in wanted if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.hookimpl(hookwrapper=True)  # Debian 12's pytest has no other
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    report = (yield).get_result()
    if report.skipped and everything_required() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {call.excinfo and call.excinfo.value}"


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to repeat: the number for the short run, that for `--long`, or `--rounds`."""
    given, long = request.config.getoption("--rounds"), request.config.getoption("--long")
    return lambda few, many: given or (many if long else few)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Choices that are the same in every run with the same `--seed`, and others in every test."""
    return random.Random(f"{request.node.name} {request.config.getoption('--seed')}")


@pytest.fixture(scope="module")
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume that was created once; tests work on copies.

    The folder of the test names the engine that makes it, unless its file has a constant ENGINE.
    """
    engine = getattr(request.module, "ENGINE", tier_of(request.path))
    yield from created(tmp_path_factory.mktemp("template"), engine)


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that was created, and is closed."""
    yield from closing(template.copy_to(tmp_path))


@pytest.fixture
def house(tmp_path: Path) -> KeyVolume:
    """A volume that is nothing but a header, and is configured for the command line."""
    made = key_volume.build(tmp_path)
    key_volume.configure(made)
    return made


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Closing ignores signals for the rest of the process, and what a test starts would inherit that."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test of these tiers no mount, mapping, loop device, process or file is there that was not before."""
    if tier_of(request.path) not in CLEAN_TIERS:
        yield
        return
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    counter = leak_counter(factory.getbasetemp(), Path(request.config.rootpath))
    before = counter.snapshot()
    yield
    leaked = counter.leaked_since(before)
    if leaked:
        pytest.fail("left behind:\n  " + "\n  ".join(leaked), pytrace=False)


def leak_counter(own: Path, project: Path) -> leaks.Counter:
    alone = "LUKSHOOK_GUEST" in os.environ
    temporary = Path(tempfile.gettempdir())
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    shared = {temporary, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")}  # others' tests write there too
    folders = {Path("/run/lukshook"), *(shared if alone else ())}
    if runtime:
        folders.add(Path(runtime) / "lukshook")
    return leaks.Counter(roots=(own, project), folders=tuple(sorted(folders)), alone=alone)

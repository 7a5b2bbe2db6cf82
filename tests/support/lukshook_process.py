"""lukshook in a process of its own, forked from the tests'."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from attrs import frozen

import lukshook
from lukshook.cli import main, resize
from lukshook.system import signals

for module in set(main.COMMANDS.values()):  # so that a forked lukshook need not import them
    importlib.import_module(f"lukshook.cli.{module}")
PROGRAMS: dict[str, Callable[[], object]] = {"lukshook": main.lukshook, "lukshook-resize": resize.main}
#: Seconds any lukshook may take on a loaded machine; `tests/run --patient` gives more.
USUAL_PATIENCE = 240.0
PATIENCE = float(os.environ.get("LUKSHOOK_TEST_PATIENCE", USUAL_PATIENCE))
#: The user and group id of nobody.
NOBODY = 65534


def nothing() -> None:
    """Prepare nothing."""


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each; one may have ended with the one before."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def to_nobody() -> None:
    """Where we are root: go on as an ordinary user, with the places of Python that this user can read.

    The project may lie where only root can read, such as /root: all of lukshook is imported before.
    """
    if not os.geteuid():
        for module in pkgutil.walk_packages(lukshook.__path__, "lukshook."):
            importlib.import_module(module.name)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        sys.path[:] = [place for place in sys.path if os.access(place, os.R_OK)]


@frozen
class Done:
    """How a lukshook ended; a negative status is the number of the signal that ended it."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A lukshook in a process of its own, forked from the tests': starting Python takes longer than the work.

    The first of *arguments* may name another program of ours.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], prepare: Callable[[], None]) -> None:
        self.out, self.err = os.memfd_create("out"), os.memfd_create("err")
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, environment, prepare)
        self.code: int | None = None

    def _become(self, arguments: Sequence[str], environment: Mapping[str, str], prepare: Callable[[], None]) -> None:
        status = 70
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (self.out, 1), (self.err, 2)):
                os.dup2(source, target)
            os.closerange(3, 256)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir("/")
            program, words = PROGRAMS["lukshook"], arguments
            if arguments[0] in PROGRAMS:
                program, words = PROGRAMS[arguments[0]], arguments[1:]
            sys.argv = ["lukshook", *words]
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            for number in signals.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            prepare()
            program()
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send a signal to it alone."""
        if not self.poll():
            os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> Done:
        """Its end, after at most *timeout* seconds: else it is killed, and that is an error."""
        end = time.monotonic() + timeout
        while not self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"lukshook did not end: {self._text(self.err)}")
            time.sleep(0.005)
        assert self.code is not None
        done = Done(self.code, self._text(self.out), self._text(self.err))
        os.close(self.out)
        os.close(self.err)
        return done

    def _text(self, descriptor: int) -> str:
        return os.pread(descriptor, 1 << 20, 0).decode(errors="replace")

"""Commands as values, and the runners that carry them out. The only module that starts a process."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from attrs import evolve, field, frozen

from lukshook.errors import Denied, LukshookError, NotInstalled, Unavailable
from lukshook.system import caller_limits, core_dumps, orphans, processes, signals
from lukshook.system.secret import Secret
from lukshook.system.text import clipped, one_line
from lukshook.system.tool_output import Ear, Kept, TooMuch, Whole, listen

#: Where tools are looked for; a user's PATH on Debian has no sbin, and a hook's may be anything.
TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The environment of every tool, built from nothing: stable messages, no secrets of the host's. libext2fs zeroes blocks
#: behind the back of its own cache and reads the old ones out of that afterwards (github.com/tytso/e2fsprogs/pull/283;
#: with 1.47.0 resize2fs exits 0 and has spoilt the resize inode). The last variable has it write zeroes like all else.
TOOL_ENVIRONMENT = {"PATH": TOOL_PATH, "LC_ALL": "C", "UNIX_IO_NOZEROOUT": "1"}
#: What distributions have for root; what is ours alone we make ourselves.
_TOOL_UMASK = 0o022
#: Lines in which a tool says nothing of what is wrong: mount(8) of util-linux 2.38, e2fsck(8), age(1).
_CHATTER = ("dmesg(1) may have more", "(i.e., without -a or -p", "age: report unexpected or unhelpful errors")
#: A tool ends a line, and one that shows how far it is begins it again.
_LINE_END = re.compile("[\n\r]")
#: Characters that a message shows of what a tool says.
_MOST_SHOWN = 300
#: Seconds after which a tool that should answer at once is taken for stuck (a dead store, a hung daemon).
DEFAULT_TIMEOUT = 60.0
#: Seconds for work that grows with the file system; only there so that a dead store ends it some day.
LONG_SECONDS = 12 * 3600.0
#: The largest exit status of a process (wait(2)).
_LAST_STATUS = 255


class Effect(enum.Enum):
    """Whether a command only looks. Everything counts as a change unless it says otherwise."""

    READ = "read"
    CHANGE = "change"


@frozen(repr=False)
class Command:
    """One call of a tool: what to run, what it may do, what it is given.

    *stdin* goes to the tool through a pipe; *stdin_from* says how a person would produce it and is what dry-run
    prints. *ok* are the exit statuses that mean success. *timeout* is in seconds, None for work whose length depends
    on the amount of data. *fds* are descriptors the tool inherits under the same number. *environment* is added to
    the empty one. *stays*: the tool continues to run in the background, so it is lent nothing (`lent`).
    """

    argv: tuple[str, ...]
    effect: Effect = Effect.CHANGE
    stdin: Secret | None = None
    stdin_from: str = ""
    ok: frozenset[int] = frozenset({0})
    timeout: float | None = DEFAULT_TIMEOUT
    fds: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    stays: bool = False

    def __str__(self) -> str:
        line = shlex.join(self.argv)
        return f"{self.stdin_from} | {line}" if self.stdin_from else line


def read(*argv: str, ok: Sequence[int] = (0,), timeout: float | None = DEFAULT_TIMEOUT) -> Command:
    """A command that only looks: runs in a dry run too."""
    return Command(argv, Effect.READ, ok=frozenset(ok), timeout=timeout)


def change(*argv: str, ok: Sequence[int] = (0,), timeout: float | None = DEFAULT_TIMEOUT) -> Command:
    """A command that changes something."""
    return Command(argv, ok=frozenset(ok), timeout=timeout)


@frozen(repr=False)
class Result:
    """What a tool answered: exit status (negative: killed by that signal), standard output and standard error."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def reason(self) -> str:
        """The tool's own last words, on one line, its begin only where it is long."""
        lines = [line.strip(" \t") for line in _LINE_END.split(self.err or self.out)]
        lines = [line for line in lines if line and not line.startswith(_CHATTER)]
        if self.code < 0 and not lines:
            return f"ended by {signal.Signals(-self.code).name}"
        return clipped(lines[-1], _MOST_SHOWN) if lines else f"exit status {self.code}"


class CommandFailed(LukshookError):
    """A tool exited with a status that does not mean success; layers turn it into what the user can act on."""

    exit_code = 69

    def __init__(self, command: Command, result: Result) -> None:
        super().__init__(f"{command.argv[0]} failed: {result.reason}", hint=f"the command was: {command}")
        self.command = command
        self.result = result


class TimedOut(Unavailable):
    """A tool did not answer within its time: most often the store is dead. *lost*: as in `Busy`."""

    def __init__(self, command: Command) -> None:
        super().__init__(
            f"{command.argv[0]} did not finish within {command.timeout:.0f} s: the store does not answer",
            hint=f"the command was: {command}",
        )
        self.command = command
        self.lost = ""


class Runner(Protocol):
    """Carries out commands. *dry* tells those who change things without a tool to leave them."""

    dry: bool

    def run(self, command: Command) -> Result:
        """Run *command*; raises `CommandFailed`, `TimedOut`, or `Unavailable` where the tool is missing."""
        ...

    def note(self, line: str) -> None:
        """Show *line* in a dry run: a change that is made without a tool."""
        ...


def _silent(line: str) -> None:
    """What a runner tells of its steps when none was asked for."""


class SystemRunner:
    """Starts the tools for real: a list, an empty environment, no terminal, a session of its own.

    *trace* gets each step as a line, and how it failed.
    """

    dry = False

    def __init__(self, trace: Callable[[str], None] = _silent) -> None:
        self._trace = trace

    def run(self, command: Command) -> Result:
        """Run *command* and wait for it."""
        self._trace(f"+ {command}")
        # A change is never broken in two by a signal; looking may be.
        with signals.allowed() if command.effect is Effect.READ else contextlib.nullcontext():
            result = self._call(command)
        if result.code not in command.ok:
            self._trace(f"  -> {result.code}: {result.reason}")
            raise CommandFailed(command, result)
        return result

    def note(self, line: str) -> None:
        """Tell *line*."""
        self._trace(f"+ {line}")

    def _call(self, command: Command) -> Result:
        process = subprocess.Popen(
            [find_tool(command.argv[0]), *command.argv[1:]],
            stdin=subprocess.DEVNULL if command.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**TOOL_ENVIRONMENT, **command.environment},
            pass_fds=command.fds if command.stays else (*command.fds, *_lent),
            start_new_session=True,
            cwd="/",
            umask=_TOOL_UMASK,
        )
        out, err = Kept(), Kept()
        try:
            _give(process, command.stdin)
            _hear(process, out, err, command.timeout)
        except BaseException as error:
            _abandon(process)
            if isinstance(error, TimeoutError):
                raise TimedOut(command) from None
            raise
        return Result(process.returncode, out.text(), err.text())


@contextlib.contextmanager
def conversation(
    command: Command, *, errors: int = subprocess.DEVNULL, within: float | None = None
) -> Iterator[tuple[BinaryIO, BinaryIO, Callable[[float], int | None]]]:
    """Start a tool and talk to it: its standard input and output. It is ended afterwards, or after *within* seconds.

    The third is for one that leaves by itself: it waits for so many seconds, and gives the exit status, negative for
    a signal, or None. *errors*: the descriptor that gets its standard error. Raises `Unavailable` where there is no
    such tool.
    """
    process = subprocess.Popen(
        [find_tool(command.argv[0]), *command.argv[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**TOOL_ENVIRONMENT, **command.environment},
        pass_fds=command.fds,
        start_new_session=True,
        cwd="/",
        umask=_TOOL_UMASK,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with _ended_after(process, within):
        try:
            yield (
                cast(BinaryIO, process.stdin),
                cast(BinaryIO, process.stdout),
                lambda seconds: _status(process, seconds),
            )
        finally:
            _abandon(process)


@contextlib.contextmanager
def _ended_after(process: subprocess.Popen[bytes], seconds: float | None) -> Iterator[None]:
    """*process*, which nobody waits for inside, is killed after that time: then its output ends."""
    if seconds is None:
        yield
        return
    from threading import Timer  # noqa: PLC0415 - only for conversations

    timer = Timer(seconds, _kill_session, (process,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _status(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """How *process* has ended, or None after that time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill all that *process* has started, unless it was waited for: then the number may be another's."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _give(process: subprocess.Popen[bytes], secret: Secret | None) -> None:
    """Write *secret* into the standard input of a child, without a copy, which could not be wiped.

    The longest, 32 MACs in JSON, has less than the 4096 bytes that every pipe takes in one write (pipe(7)).
    """
    if process.stdin is not None and secret is not None:
        with contextlib.suppress(BrokenPipeError):  # a tool that needs none may have ended
            os.write(process.stdin.fileno(), secret.reveal())
        process.stdin.close()


def _hear(process: subprocess.Popen[bytes], out: Ear, err: Ear, seconds: float | None) -> None:
    """Take in what a child says, and wait for its end. Raises TimeoutError, `TooMuch`."""
    assert process.stdout is not None
    assert process.stderr is not None
    started = time.monotonic()
    with process.stdout, process.stderr:
        listen({process.stdout.fileno(): out, process.stderr.fileno(): err}, seconds)
    try:
        process.wait(None if seconds is None else max(started + seconds - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


_lent: list[int] = []


@contextlib.contextmanager
def lent(descriptor: int) -> Iterator[None]:
    """Every tool that is started inside inherits *descriptor*.

    For a lock: when we are killed in the middle of a step, the tool that does it runs on for a moment, and nobody
    else may start before it has ended (flock(2): the lock goes with the last descriptor).
    """
    _lent.append(descriptor)
    try:
        yield
    finally:
        _lent.remove(descriptor)


def lent_now() -> tuple[int, ...]:
    """The descriptors that a child started now inherits."""
    return tuple(_lent)


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End a child that takes too long; one that hangs in the kernel on a dead store cannot be waited for."""
    _kill_session(process)  # only SIGKILL ends cryptsetup while it derives a key
    _let_go(process)


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Stop waiting for what a killed child's own children, or the kernel, may hold back."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)


class DryRunRunner:
    """Runs what only looks, prints what would change as a line one could paste into a shell."""

    dry = True

    def __init__(self, show: Callable[[str], None] = print, trace: Callable[[str], None] = _silent) -> None:
        self._show = show
        self._system = SystemRunner(trace)

    def run(self, command: Command) -> Result:
        """Run a READ, print a CHANGE."""
        if command.effect is Effect.READ:
            return self._system.run(command)
        self._show(f"{_with_environment(command)}{_accepted(command.ok)}")
        return Result(0)

    def note(self, line: str) -> None:
        """Print *line*."""
        self._show(line)


def _with_environment(command: Command) -> Command:
    """*command* as a shell has to run it: with what its tool needs to do its work right."""
    if not command.environment:
        return command
    return evolve(
        command, argv=("env", *(f"{name}={value}" for name, value in command.environment.items()), *command.argv)
    )


def _accepted(ok: frozenset[int]) -> str:
    """What lets a shell script continue (`sh -e`) after an exit status that means success, though it is not 0."""
    others = sorted(ok - {0})
    if not others:
        return ""
    if len(others) == _LAST_STATUS:
        return " || true"
    return " || case $? in " + "|".join(map(str, others)) + ") ;; *) exit 1 ;; esac"


def find_tool(name: str) -> str:
    """Absolute path of a tool, which *name* may be already. Raises `Unavailable` with the package to install."""
    found = _tool_at(name)
    if not found:
        raise _not_installed(name)
    return found


def find_tools(names: Iterable[str]) -> None:
    """Check that all these tools are there. Raises `Unavailable`, which names all that are missing at once."""
    missing = [name for name in dict.fromkeys(names) if not _tool_at(name)]
    if missing:
        raise _not_installed(*missing)


def _tool_at(name: str) -> str:
    """The path of a tool, "" where there is none."""
    paths = (str(Path(folder, name)) for folder in TOOL_PATH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def _not_installed(name: str, *others: str) -> NotInstalled:
    if name.startswith("/"):
        return NotInstalled(f"{name} is not installed", hint="is the path right? the file has to be executable")
    from lukshook.system import platforms  # noqa: PLC0415 - only where something is missing

    hint = platforms.install_hint(name, platforms.this_system(), *others)
    return NotInstalled(f"{', '.join((name, *others))} {'are' if others else 'is'} not installed", hint=hint)


def output_of(argv: Sequence[str], environment: Mapping[str, str], timeout: float, most: int) -> bytearray:
    """What a user's own command prints, for key sources: with the user's environment and terminal session.

    Raises `Unavailable` (not there, no answer in time) or `Denied` (it failed, and its standard error is the reason;
    or it prints more than *most* bytes).
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            umask=caller_limits.umask(),
        )
    except OSError as error:
        raise Unavailable(
            f"the key command {argv[0]} cannot be started: {error.strerror}",
            hint="use its full path: hooks run with a short PATH",
        ) from error
    out, err = Whole(most), Kept()
    try:
        _hear(process, out, err, timeout)
    except BaseException as error:
        _end_family(process)
        if isinstance(error, TimeoutError):
            raise Unavailable(
                f"the key command {argv[0]} did not answer within {timeout:.0f} s",
                hint="run it by hand as the same user: does it wait for input?",
            ) from None
        if isinstance(error, TooMuch):
            raise Denied(
                f"the key command {argv[0]} printed more than {most} bytes and was stopped",
                hint="it must print only the key: 44 characters of base64",
            ) from None
        raise
    if process.returncode:
        reason = Result(process.returncode, "", err.text()).reason
        raise Denied(f"the key command {argv[0]} failed: {reason}", hint="run it by hand as the same user")
    return out.content


def _end_family(process: subprocess.Popen[bytes]) -> None:
    """End a child and all that it has started: it is in our own session, for a terminal, so not by its group."""
    for pid, started in processes.family(process.pid):
        processes.tell(pid, started, signal.SIGKILL)
    process.kill()
    _let_go(process)


def passed_down() -> tuple[int, ...]:
    """The descriptors above standard error that our caller gave us: what we open ourselves no child inherits (PEP 446).

    To be asked before code of others runs, which may open some that are inherited.
    """
    return tuple(number for number in map(int, os.listdir("/proc/self/fd")) if number > 2 and _is_inherited(number))


def _is_inherited(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # the list's own
        return False


def run_foreground(
    argv: Sequence[str], directory: Path, environment: Mapping[str, str], passed: tuple[int, ...] = ()
) -> int:
    """Run a user's own command with our terminal and pipes, in *directory*; its exit status as a shell gives it.

    It inherits those of the descriptors *passed* that are still the caller's.

    INT, TERM and HUP that were sent to us alone are passed on, and the command is waited for: what it holds open has
    to be let go before the volume can close. Those the kernel sends (Ctrl-C) reach the whole group without us.
    """
    stop = signals.pending()
    if stop is not None:
        return 128 + stop
    orphans.adopt()
    try:
        with core_dumps.as_the_caller_had(), caller_limits.as_the_caller_had():
            still = [descriptor for descriptor in passed if _is_inherited(descriptor)]
            process = subprocess.Popen(
                list(argv), cwd=directory, env=dict(environment), pass_fds=still, umask=caller_limits.umask()
            )
    except OSError as error:  # of the command, or of its folder
        print(one_line(f"lukshook: {error.filename or argv[0]}: {error.strerror}"), file=sys.stderr)  # noqa: T201
        return 127 if isinstance(error, FileNotFoundError) else 126
    stop = _wait_and_pass_on(process)
    status = process.returncode
    if stop is not None or status < 0:
        orphans.stop(stop or signal.SIGTERM)
    return status if status >= 0 else 128 - status


def _wait_and_pass_on(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for *process* and pass on the signals that are sent to us; the last one, None where none came."""
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        stop = signals.pending()  # it may have come before there was a process to pass it on to
        if stop is not None:
            process.send_signal(stop)
        while process.poll() is None:
            news = signal.sigtimedwait(watched, 1.0)
            if news is not None and news.si_signo == signal.SIGCHLD:
                orphans.bury(process.pid)
            elif news is not None and news.si_code <= 0:
                stop = news.si_signo
                process.send_signal(stop)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return stop


def descriptor_path(fd: int) -> str:
    """How a child that inherits *fd* names it as a file."""
    return os.fspath(Path("/proc/self/fd") / str(fd))

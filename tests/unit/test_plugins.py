"""Plugins that fail in every way, installed for real: closing and the exit status do not depend on them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from lukshook.errors import Busy
from lukshook.plugins import open_and_close as hooks_plugin
from support.installed_plugins import IMPORT, Host, code
from support.lukshook_process import Done
from support.volume import NAME

RAISED = {
    "exit 0": "sys.exit(0)",
    "exit without status": "sys.exit()",
    "exit text": "sys.exit('all is well')",
    "interrupt": "raise KeyboardInterrupt",
    "generator exit": "raise GeneratorExit",
    "stop iteration": "raise StopIteration",
    "bare": "raise BaseException",
    "value": "raise ValueError('no')",
    "import": "import no_such_module",
    "attribute": "raise AttributeError('no')",
    "memory": "raise MemoryError",
    "recursion": "def deep(): deep()\ndeep()",
    "system": "raise OSError(28, 'No space left on device')",
    "broken pipe": "raise BrokenPipeError(32, 'Broken pipe')",
    "letters": "b'\\xff'.decode()",
    "control": "raise ValueError('one\\n\\x1b[2Jtwo\\rthree\\u2028four')",
    "long": "raise ValueError('x' * 100000)",
    "text fails": "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad",
    "text exits": "class Bad(Exception):\n    def __str__(self): sys.exit(0)\nraise Bad",
    "text is none": "class Bad(Exception):\n    def __str__(self): return None\nraise Bad",
    "odd name": "raise type('A\\nB', (Exception,), {})('no')",
    "click exit": "import click\nraise click.exceptions.Exit(0)",
    "click abort": "import click\nraise click.exceptions.Abort",
    "ours": "from lukshook.errors import Unavailable\nraise Unavailable('no')",
    "ours with lines": "from lukshook.errors import Unavailable\nraise Unavailable('no\\nno', hint='a\\nb')",
    "as good as 0": (
        "from lukshook.errors import LukshookError\nclass Bad(LukshookError): exit_code = 0\nraise Bad('no', hint='')"
    ),
    "ours without init": (
        "from lukshook.errors import LukshookError\nclass Bad(LukshookError):\n    def __init__(self): pass\nraise Bad"
    ),
    "not our signal": "from lukshook.system.signals import Interrupted\nraise Interrupted(2)",
}
RUNS = (("run", NAME, "--", "true"), ("run", NAME, "--", "false"))


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def named(done: Done, name: str = "bad") -> bool:
    """Whether the plugin is named, in lines of our form only, all of them short and printable."""
    lines = done.stderr.split("\n")[:-1]
    forms = ("lukshook: ", "  hint: ", "warning: ")
    assert all(line.isprintable() and len(line) < 1500 and line.startswith(forms) for line in lines), done.stderr
    return any(f"plugin {name}" in line for line in lines if not line.startswith("  hint: "))


def worse_than_good(done: Done) -> bool:
    """An exit status of ours, with the plugin named."""
    return done.returncode in (69, 78) and named(done)


@pytest.mark.parametrize("what", RAISED)
def test_raised_at_import(host: Host, what: str) -> None:
    """Nothing is opened; what is open is closed, and then it is told."""
    host.install(code(**{IMPORT: RAISED[what]}))

    for before in (("before-backup", NAME), *RUNS):
        assert worse_than_good(host.lukshook(*before))
        assert [] == host.log

    host.opened.touch()
    done = host.lukshook("after-backup", NAME)
    assert worse_than_good(done)
    assert ["CLOSE-failed"] == host.log
    assert "is closed" in done.stderr


@pytest.mark.parametrize("what", RAISED)
def test_raised_in_before(host: Host, what: str) -> None:
    """The volume is closed again, the job does not run, and no backup is begun."""
    host.install(code(before_backup=RAISED[what]))

    for before in (("before-backup", NAME), ("run", NAME, "--", "touch", str(host.folder / "ran"))):
        assert worse_than_good(host.lukshook(*before))
        assert not host.opened.exists()
        assert not (host.folder / "ran").exists()
    assert ["OPEN", "CLOSE-failed"] * 2 == host.log

    assert 0 == host.lukshook("after-backup", NAME).returncode


@pytest.mark.parametrize("what", RAISED)
def test_raised_in_after(host: Host, what: str) -> None:
    """The volume is closed, and then it is told."""
    host.install(code(after_backup=RAISED[what]))

    assert (0, "") == (host.lukshook("before-backup", NAME).returncode, "")
    for after in (("after-backup", NAME), *RUNS):
        done = host.lukshook(*after)
        assert worse_than_good(done)
        assert not host.opened.exists()
        assert "CLOSE-failed" == host.log[-1]
        assert "is closed" in done.stderr


@pytest.mark.parametrize("what", RAISED)
def test_raised_in_report(host: Host, what: str) -> None:
    """It changes nothing any more, and those that report after it do so."""
    host.install(code(report=RAISED[what]))
    for name in ("first", "second"):  # pluggy calls the one registered last first
        host.install(code(report=f"print('warning: {name} was called', file=sys.stderr)"), name=name)

    for after, status in ((("after-backup", NAME), 0), (RUNS[0], 0), (RUNS[1], 1)):
        done = host.lukshook(*after)
        assert status == done.returncode
        assert named(done)
        assert not host.opened.exists()
        assert all(f"{name} was called" in done.stderr for name in ("first", "second"))


WRAPPERS = {
    "before the yield": "sys.exit(0)\nyield",
    "after the yield": "yield\nsys.exit(0)",
    "around the yield": "try:\n    yield\nfinally:\n    sys.exit(0)",
    "no yield": "if False:\n    yield",
    "two yields": "yield\nyield",
}


@pytest.mark.parametrize("kind", ["wrapper=True", "wrapper=True, tryfirst=True", "hookwrapper=True, tryfirst=True"])
@pytest.mark.parametrize("body", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.filterwarnings("ignore:A plugin raised an exception during:Warning")  # which older ones do not warn of
def test_wrappers_are_inside_ours(host: Host, kind: str, body: str) -> None:
    """Also those that ask to be the first."""
    source = code(before_backup=body, after_backup=body).replace("@hookimpl\n", f"@hookimpl({kind})\n")
    host.install(source)

    for command in (("before-backup", NAME), ("after-backup", NAME), RUNS[0]):
        assert worse_than_good(host.lukshook(*command))
        assert not host.opened.exists()
        assert "CLOSE-failed" == host.log[-1]


WRAPPED = """
@hookimpl(wrapper=True, tryfirst=True)
def after_backup(volume, outcome):
    given = yield
    print('warning:', given, file=sys.stderr)
    return ['changed']

@hookimpl(hookwrapper=True)
def before_backup(volume):
    yield
"""


def test_a_wrapper_that_lets_an_error_through_has_not_failed(host: Host) -> None:
    """The plugin inside is named. A good wrapper is sent what the others return, as pluggy has it."""
    host.install(code() + WRAPPED, name="outer")
    host.install(code(before_backup="raise ValueError('no')", after_backup="return 7"))

    done = host.lukshook("before-backup", NAME)
    assert worse_than_good(done)
    assert not named(done, "outer")

    done = host.lukshook("after-backup", NAME)
    assert (0, "warning: [7]\n") == (done.returncode, done.stderr)


LOADS = {
    "syntax": {"source": "def f(:\n"},
    "null bytes": {"source": "\0"},
    "no module": {"source": "", "value": "no_such_module"},
    "no attribute": {"source": "", "value": "bad_plugin:nothing"},
    "no value": {"source": "", "line": "bad ="},
    "no equals sign": {"source": "", "line": "bad"},
    "no name of a module": {"source": "", "line": "bad = a b\x1b[2J"},
    "misspelt": {"source": "from lukshook import hookimpl\n@hookimpl\ndef befor_backup(volume): pass\n"},
    "argument": {"source": "from lukshook import hookimpl\n@hookimpl\ndef after_backup(volumes): pass\n"},
    "no generator": {
        "source": "from lukshook import hookimpl\n@hookimpl(wrapper=True)\ndef after_backup(volume): pass\n"
    },
    "exits when it is looked at": {
        "source": "import sys\nclass P:\n    def __dir__(self): sys.exit(0)\np = P()\n",
        "value": "bad_plugin:p",
    },
}


@pytest.mark.parametrize("how", LOADS.values(), ids=LOADS)
def test_a_plugin_that_cannot_be_loaded(host: Host, how: dict[str, str]) -> None:
    """It is named and blocks what would open, and never what closes; the others are called as ever."""
    host.install(**how)
    host.install(code(after_backup="print('warning: good was called', file=sys.stderr)"), name="good")

    assert worse_than_good(host.lukshook("before-backup", NAME))
    assert [] == host.log
    done = host.lukshook("after-backup", NAME)
    assert (78, ["CLOSE-failed"]) == (done.returncode, host.log)
    assert named(done)
    assert "good was called" in done.stderr


def test_all_that_cannot_be_loaded_are_named(host: Host) -> None:
    """In one message."""
    for name in ("one", "two"):
        host.install("sys.exit(0)\n", name=name)

    done = host.lukshook("after-backup", NAME)

    assert (78, True, True) == (done.returncode, named(done, "one"), named(done, "two"))


def test_a_name_with_control_characters(host: Host) -> None:
    """It cannot change what the terminal shows."""
    host.install("", line="x\x1b[2Jy = no_such_module")

    done = host.lukshook("after-backup", NAME)

    assert named(done, r"x\x1b[2Jy")


def test_closing_that_fails_is_worse_than_a_plugin_that_fails(host: Host) -> None:
    """The exit status is that of the closing, and the plugin is named as well."""
    host.install(code(after_backup="sys.exit(0)"))
    host.install("import no_such_module", name="worse")

    def busy() -> None:
        def close(*_: object, **__: object) -> None:
            raise Busy("still in use", hint="wait")

        hooks_plugin.closing = SimpleNamespace(close_volume=close)  # type: ignore[attr-defined, assignment]

    done = host.lukshook("after-backup", NAME, prepare=busy)

    assert 71 == done.returncode
    assert named(done) and named(done, "worse")


def test_a_distribution_of_others_that_is_broken(host: Host) -> None:
    """It is a warning: whether it has a plugin, nobody knows. Broken metadata beside the list does not matter."""
    host.install(code(after_backup="pass"), name="good")
    (host.plugins / "other-1.0.dist-info/entry_points.txt").mkdir(parents=True)
    (host.plugins / "third-1.0.dist-info").mkdir()
    (host.plugins / "third-1.0.dist-info/entry_points.txt").write_bytes(b"\xff\xfe\0[console_scripts\nx")
    (host.plugins / "third-1.0.dist-info/METADATA").write_bytes(b"\xff\0")

    for command in ("before-backup", "after-backup"):
        done = host.lukshook(command, NAME)
        assert 0 == done.returncode
        assert re.fullmatch(r"warning: .*other-1\.0.*Is a directory\n", done.stderr), done.stderr


def test_two_plugins_of_one_name_are_both_called(host: Host) -> None:
    """pluggy alone leaves out the second without a word."""
    for name in ("one", "two"):
        source = code(after_backup=f"print('warning: {name} was called', file=sys.stderr)")
        host.install(source, name=name, line=f"same = {name}_plugin")

    done = host.lukshook("after-backup", NAME)

    assert ["warning: one was called", "warning: two was called"] == sorted(done.stderr.splitlines())


CHANGES = {
    "folder": "os.chdir('/proc')",
    "folder that is gone": "import tempfile\nfolder = tempfile.mkdtemp()\nos.chdir(folder)\nos.rmdir(folder)",
    "streams closed": "os.closerange(0, 3)",
    "objects closed": "sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "objects gone": "sys.stdout = sys.stderr = sys.stdin = None",
    "objects detached": "sys.stdout.detach(); sys.stderr.detach()",
    "streams elsewhere": "null = os.open('/dev/null', os.O_RDWR)\nfor n in (0, 1, 2): os.dup2(null, n)",
    "everything closed": "os.closerange(3, 256)",
    "mask of files": "os.umask(0o777)",
    "children's ends are ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "signals": "for n in (1, 2, 15): signal.signal(n, signal.SIG_DFL)",
    "signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "timer": "signal.setitimer(signal.ITIMER_REAL, 0.05)",
    "a forked child that comes back": "os.fork()",
    "a forked child that exits": "if os.fork() == 0: sys.exit(0)",
    "a thread": "threading.Thread(target=sys.exit, args=(0,)).start()",
}
#: What would be seen of it in the job.
SEEN = [name for name in CHANGES if not name.startswith(("folder", "everything", "signals", "a thread"))]
#: What the job shows of the process that it was started from; it takes longer than the timer above.
JOB = "pwd; umask; grep Sig[BI] /proc/self/status; sleep 0.1; echo told >&2; exit 23"


@pytest.fixture(name="plain", scope="module")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The job without any plugin."""
    return Host(tmp_path_factory.mktemp("plain")).lukshook("run", NAME, "--", "sh", "-c", JOB)


@pytest.mark.parametrize("change", SEEN)
@pytest.mark.parametrize("place", [IMPORT, "before_backup"])
def test_the_process_is_as_before(host: Host, plain: Done, place: str, change: str) -> None:
    """The job under `run` sees nothing of what a plugin did to our process, and its exit status comes through."""
    host.install(code(**{place: CHANGES[change]}))

    done = host.lukshook("run", NAME, "--", "sh", "-c", JOB)

    assert plain == done
    assert (23, "told\n") == (done.returncode, done.stderr)
    assert ["OPEN", "CLOSE-failed"] == host.log


@pytest.mark.parametrize("place", ["after_backup", "report"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_messages_arrive_after_a_plugin(host: Host, place: str, change: str) -> None:
    """Also where it has closed our streams, and in none of our own files."""
    host.install(code(**{place: f"{change}\nraise ValueError('no')"}))

    done = host.lukshook("after-backup", NAME)

    assert named(done)
    assert ["CLOSE" if place == "report" else "CLOSE-failed"] == host.log


@pytest.mark.parametrize("place", [IMPORT, "before_backup"])
@pytest.mark.parametrize(
    "caught", ["except BaseException: pass", "except BaseException as e: raise ValueError", "finally: sys.exit(0)"]
)
def test_a_signal_that_a_plugin_catches_still_stops(host: Host, place: str, caught: str) -> None:
    """Ctrl-C during a hook: no backup begins, and it is told as the signal that it was."""
    body = f"try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\n{caught}"
    host.install(code(**{place: body}))

    done = host.lukshook("run", NAME, "--", "touch", str(host.folder / "ran"))

    assert 128 + signal.SIGTERM == done.returncode, done.stderr
    assert not host.opened.exists()
    assert not (host.folder / "ran").exists()


@pytest.mark.parametrize("place", [IMPORT, "after_backup"])
@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.default_int_handler", "lambda *_: sys.exit(0)"])
def test_a_signal_handler_of_a_plugin_does_not_stop_the_closing(host: Host, place: str, handler: str) -> None:
    """Closing ignores signals, as ever."""
    host.install(code(**{place: f"for n in (1, 2, 15): signal.signal(n, {handler})"}))

    def killed_while_it_closes() -> None:
        closing = host.close_volume

        def close(*_: object, failed: bool, **__: object) -> tuple[()]:
            os.kill(os.getpid(), signal.SIGTERM)
            return closing(failed=failed)

        hooks_plugin.closing = SimpleNamespace(close_volume=close)  # type: ignore[attr-defined, assignment]

    done = host.lukshook("after-backup", NAME, prepare=killed_while_it_closes)

    assert (0, ["CLOSE"]) == (done.returncode, host.log), done.stderr


def test_a_caller_that_ignores_the_ends_of_children(host: Host) -> None:
    """The kernel keeps no exit status for it, and every command seemed to end with 0 (wait(2))."""

    def ignoring() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert 1 == host.lukshook(*RUNS[1], prepare=ignoring).returncode

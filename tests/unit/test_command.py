"""Commands as values and the runners that carry them out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lukshook.errors import Denied, Unavailable
from lukshook.system import command, kernel
from lukshook.system.command import CommandFailed, DryRunRunner, Effect, Result, SystemRunner, TimedOut, change, read
from lukshook.system.forked_call import apart
from lukshook.system.secret import Secret
from lukshook.system.text import one_line
from lukshook.system.tool_output import Kept

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def test_a_command_shows_itself_as_a_line_to_paste() -> None:
    """Words are quoted, and the key is shown as where it comes from."""
    given = evolve(change("cryptsetup", "open", "/a b"), stdin=Secret(b"secret"), stdin_from="pass show x | base64 -d")

    assert "pass show x | base64 -d | cryptsetup open '/a b'" == str(given)
    assert "secret" not in repr(given)


def test_everything_is_a_change_unless_it_says_otherwise() -> None:
    """What nobody thought about is not run in a dry run."""
    assert Effect.CHANGE == command.Command(("x",)).effect
    assert Effect.READ == read("x").effect


def test_children_get_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment from nothing, root folder, no input, a session of its own."""
    monkeypatch.setenv("BORG_PASSPHRASE", "hush")

    found = SystemRunner().run(read("sh", "-c", "env; pwd; cat; ps -o sid= -p $$ || true")).out

    assert "hush" not in found
    assert "LC_ALL=C" in found
    assert "\n/\n" in found


def test_the_secret_arrives_on_standard_input_whole() -> None:
    """Also bytes that a shell or a line reader would change."""
    key = b"\n\0\xff\r" * 8

    found = SystemRunner().run(evolve(read("od", "-An", "-v", "-tx1"), stdin=Secret(key)))

    assert key.hex() == "".join(found.out.split())


def test_a_failure_says_the_tools_last_words() -> None:
    """One line, and the command as a hint."""
    with pytest.raises(CommandFailed) as caught:
        SystemRunner().run(change("sh", "-c", "echo first >&2; echo 'no such luck' >&2; exit 3"))

    assert "sh failed: no such luck" == caught.value.message
    assert 3 == caught.value.result.code


def test_a_child_that_hangs_is_ended_with_all_its_children() -> None:
    """A dead store is reported within the command's time."""
    started = time.monotonic()
    with pytest.raises(TimedOut):
        SystemRunner().run(change("sh", "-c", "trap '' TERM; sleep 60 & sleep 60", timeout=0.3))

    assert 10 > time.monotonic() - started


def test_a_missing_tool_is_named_with_its_package() -> None:
    """The hint can be pasted."""
    with pytest.raises(Unavailable) as caught:
        command.find_tool("qemu-storage-daemon-that-is-not-there")

    assert "is not installed" in caught.value.message


def test_all_tools_that_are_missing_are_named_at_once() -> None:
    """Whoever begins on a bare machine installs once, not once for each tool."""
    with pytest.raises(Unavailable) as caught:
        command.find_tools(["sh", "no-such-tool", "none-such", "no-such-tool"])

    assert "no-such-tool, none-such are not installed" == caught.value.message
    assert "no-such-tool none-such" in caught.value.hint


def test_a_dry_run_looks_but_does_not_touch(tmp_path: Path) -> None:
    """READ runs, CHANGE is printed."""
    shown: list[str] = []
    runner = DryRunRunner(shown.append)

    looked = runner.run(read("echo", "seen")).out
    runner.run(change("touch", str(tmp_path / "x")))

    assert "seen\n" == looked
    assert [f"touch {tmp_path}/x"] == shown
    assert [] == list(tmp_path.iterdir())


def test_a_dry_run_prints_the_environment_that_a_tool_needs() -> None:
    """resize2fs 1.47.0 spoils the resize inode without it."""
    shown: list[str] = []
    DryRunRunner(shown.append).run(evolve(change("resize2fs", "/d"), environment={"UNIX_IO_NOZEROOUT": "1"}))

    assert ["env UNIX_IO_NOZEROOUT=1 resize2fs /d"] == shown


def test_a_key_command_gets_the_users_environment() -> None:
    """`pass` and its like need HOME and the agent's socket."""
    found = command.output_of(("sh", "-c", "printf %s $HOME"), {**ENVIRONMENT, "HOME": "/home/me"}, 10, 4096)

    assert b"/home/me" == found


def test_a_failing_key_command_is_denied_with_its_reason() -> None:
    """What gpg says helps."""
    with pytest.raises(Denied) as caught:
        command.output_of(("sh", "-c", "echo 'no secret key' >&2; exit 2"), ENVIRONMENT, 10, 4096)

    assert "the key command sh failed: no secret key" == caught.value.message


def test_a_key_command_that_is_not_there_is_unavailable() -> None:
    """And the hint says why hooks do not find it."""
    with pytest.raises(Unavailable) as caught:
        command.output_of(("no-such-manager",), ENVIRONMENT, 10, 4096)

    assert "PATH" in caught.value.hint


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 23", 23), ("kill -9 $$", 137)])
def test_a_users_command_keeps_its_status(script: str, status: int, tmp_path: Path) -> None:
    """As a shell gives it, also for a signal."""
    assert status == command.run_foreground(("sh", "-c", script), tmp_path, ENVIRONMENT)


def test_a_users_command_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """127, as in a shell, and said so."""
    assert 127 == command.run_foreground(("no-such-command",), tmp_path, ENVIRONMENT)
    assert "no-such-command: No such file" in capfd.readouterr().err


ORPHANS = """
import os, sys
from pathlib import Path
from lukshook.system import command
sys.exit(command.run_foreground(("sh", "-c", sys.argv[1]), Path("/"), os.environ))
"""


@pytest.mark.parametrize(
    ("end", "start", "stopped"),
    [
        ("kill -KILL $$", "sleep 300", True),
        ("kill -KILL $$", "setsid sleep 300", False),
        ("exit 1", "sleep 300", False),
    ],
    ids=["killed", "a daemon", "over"],
)
def test_what_a_killed_command_leaves_behind_is_stopped(end: str, start: str, stopped: bool, tmp_path: Path) -> None:
    """Tools that go on writing keep the volume busy. A daemon is spared, and what a command left that simply ended."""
    script = f"{start} & echo $! >{tmp_path}/pid; sleep 0.2; {end}"

    subprocess.run([sys.executable, "-c", ORPHANS, script], stdout=subprocess.DEVNULL, check=False)

    pid = int((tmp_path / "pid").read_text())
    ended = kernel.wait_until(lambda: kernel.started(pid) is None, 10.0 if stopped else 0.3)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    assert stopped == ended


def test_orphans_of_a_users_command_do_not_stay_as_zombies() -> None:
    """A tool that looks whether the process in its lock is alive would wait for one that has ended."""
    script = "(sleep 0.1 &); sleep 0.4; ps -o stat= --ppid $PPID | grep -c Z"

    done = subprocess.run([sys.executable, "-c", ORPHANS, script], capture_output=True, text=True, check=False)

    assert "0\n" == done.stdout, done.stderr


def test_a_key_command_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    """Within its time, although what it started holds the pipe."""
    script = f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & sleep 60"
    started = time.monotonic()

    with pytest.raises(Unavailable, match="did not answer"):
        command.output_of(("sh", "-c", script), ENVIRONMENT, 0.5, 4096)

    assert 10 > time.monotonic() - started
    assert kernel.wait_until(lambda: kernel.started(int((tmp_path / "pid").read_text())) is None, 5.0)


CORE_LIMITS = """
import os, resource, sys
from pathlib import Path
from lukshook.cli import main; from lukshook.system import command
resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))
main.harden()
main.harden()
show = "echo $(ulimit -Sc) $(ulimit -Hc)"
print(command.SystemRunner().run(command.read("bash", "-c", show)).out, end="", flush=True)
command.run_foreground(("bash", "-c", show), Path("/"), os.environ)
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_users_command_has_the_callers_core_limit() -> None:
    """Tools and we ourselves have none (`ulimit -c` counts in KiB)."""
    done = subprocess.run([sys.executable, "-c", CORE_LIMITS], capture_output=True, text=True, check=True)

    assert ["0 8", "4 8", "1 8192"] == done.stdout.splitlines()


def test_a_caller_without_core_dumps_gets_none_back() -> None:
    """A hard limit of 0 is raised to ours where the kernel allows it, and the user's command has it as it was."""
    limits = CORE_LIMITS.replace("(4096, 8192)", "(0, 0)")
    done = subprocess.run([sys.executable, "-c", limits], capture_output=True, text=True, check=True)

    assert ["0 0", "0 0", "1 1" if may_raise_limits() else "0 0"] == done.stdout.splitlines()


def may_raise_limits() -> bool:
    """CAP_SYS_RESOURCE, number 24: root in a container may lack it."""
    capabilities = next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
    return bool(int(capabilities.split()[1], 16) >> 24 & 1)


def test_a_call_that_may_hang_is_made_by_a_child() -> None:
    """Its errno comes back; one that hangs is left behind with none of our pipes, and is told as a dead store."""
    reading, writing = os.pipe()
    with Path("/dev/null").open("w") as file:
        device = os.fstat(file.fileno()).st_dev
        apart(lambda: None, device, change("sync"))
        apart(lambda: os.close(file.fileno()), device, change("sync"), (file.fileno(),))
        with pytest.raises(OSError, match="Bad file descriptor"):
            apart(lambda: os.close(file.fileno()), device, change("sync"))
        with pytest.raises(OSError, match="No space left on device"):
            apart(full, device, change("sync"))
        begun = time.monotonic()
        with pytest.raises(TimedOut, match="sync did not finish within 1 s: the store does not answer"):
            apart(stopped, device, change("sync", timeout=0.6))
        assert time.monotonic() - begun < 5
    os.close(writing)
    assert b"" == os.read(reading, 1)
    os.close(reading)


def full() -> None:
    raise OSError(errno.ENOSPC, "in the child")


def stopped() -> None:
    time.sleep(60)


def test_libext2fs_is_kept_from_zeroing_behind_its_cache() -> None:
    """As every tool sees it (tests/kernel/test_resize.py has what comes of it otherwise)."""
    assert "UNIX_IO_NOZEROOUT=1" in SystemRunner().run(read("env")).out.splitlines()


def test_the_reason_is_the_line_that_says_what_is_wrong() -> None:
    """e2fsck -p ends with a line that explains the one before."""
    said = "x: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n"
    assert "x: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY." == Result(4, said).reason


PEAK = """
import resource, sys
from lukshook.system import command; from lukshook.keys import key_sources
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def tool(script):
    return command.SystemRunner().run(command.read("sh", "-c", script, ok=range(256)))
def key(script):
    return command.output_of(("sh", "-c", script), {"PATH": "/usr/bin:/bin"}, 60, key_sources.MOST_BYTES)
try:
    found = (tool if sys.argv[1] == "tool" else key)(sys.argv[2])
    print(found.code, found.out[:5], found.err[:5], found.reason if found.code else "")
except Exception as error:
    print(getattr(error, "exit_code", 0), error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
LONG = "echo first; head -c 150000000 /dev/zero | tr '\\\\0' x; echo; echo last"


@pytest.mark.parametrize(
    ("who", "script", "said"),
    [
        ("tool", LONG, "0 first"),
        ("tool", f"({LONG}) >&2; exit 3", "3  first last"),
        ("tool", f"{LONG}; exit 3", "3 first  last"),
        ("key", "yes", "77 the key command sh printed more than 4096 bytes and was stopped"),
        ("key", LONG, "77 the key command sh printed more than 4096 bytes and was stopped"),
        ("key", f"({LONG}) >&2; exit 3", "77 the key command sh failed: last"),
    ],
)
def test_what_prints_without_end_does_not_fill_our_memory(who: str, script: str, said: str) -> None:
    """A tool is read to its end, so that it does not block; its first and last words are kept. A key command ends."""
    done = subprocess.run([sys.executable, "-c", PEAK, who, script], capture_output=True, timeout=120, check=True)

    told, mebibytes = done.stdout.decode().replace("\n ", " ").rstrip().split("\n")[-2:]
    assert said.split() == told.split()
    assert int(mebibytes) < 60


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 100_000])
def test_a_key_command_may_print_as_much_as_a_key_has(length: int) -> None:
    """All of it is taken, or none."""
    argv = ("head", "-c", str(length), "/dev/zero")
    if length > 4096:
        with pytest.raises(Denied, match="more than 4096 bytes"):
            command.output_of(argv, ENVIRONMENT, 10, 4096)
    else:
        assert bytes(length) == command.output_of(argv, ENVIRONMENT, 10, 4096)


@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40))
def test_the_first_and_the_last_of_what_is_said_are_kept(parts: list[bytes], most: int) -> None:
    """Up to twice as much is kept whole, however it comes in pieces."""
    kept = Kept(most)
    for part in parts:
        kept.take(part)

    said = b"".join(parts)
    assert os.fsdecode(said[:most] + said[most:][-most:]) == kept.text()


@pytest.mark.parametrize("name", [b"\x1b[2J", b"a\x0bb", b"a\xe2\x80\xa8b", b"caf\xe9", b"\xc2\x85warning: forged"])
def test_what_a_tool_says_is_one_line(name: bytes) -> None:
    """Whatever the name of a file in it is; only the tool's own line ends end a line."""
    with pytest.raises(CommandFailed) as caught:
        SystemRunner().run(change("sh", "-c", 'echo no >&2; echo "last $1 word" >&2; exit 1', "sh", os.fsdecode(name)))

    assert one_line(f"last {os.fsdecode(name)} word") == caught.value.result.reason
    assert caught.value.result.reason.isprintable()


def test_the_last_words_of_a_tool_are_not_shown_without_end() -> None:
    """The log takes no line of a megabyte."""
    assert 310 > len(Result(1, "", "x" * 1_000_000).reason)

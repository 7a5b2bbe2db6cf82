"""What a run tells the system's log, on real datagram sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from lukshook.cli.logged import logged
from lukshook.cli.main import App, group, pass_app
from lukshook.errors import Busy
from lukshook.system import journald


def fields_of(datagram: bytes) -> dict[str, bytes]:
    """What the journal reads in an entry."""
    found = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[name.decode()] = value
        datagram = rest
    return found


@pytest.fixture(autouse=True)
def _nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own log is left alone."""
    monkeypatch.setattr(journald, "JOURNAL", tmp_path / "journal")
    monkeypatch.setattr(journald, "SYSLOG", tmp_path / "log")


def listen(place: Path) -> socket.socket:
    """A log that is read when we like."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(os.fspath(place))
    listening.setblocking(False)
    return listening


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Iterator[socket.socket]:
    """A journal in the place where systemd's is."""
    with listen(tmp_path / "journal") as listening:
        yield listening


def test_fields_arrive_whole(journal: socket.socket) -> None:
    """A line break, and a byte that is no text, are escaped: neither is another field or line."""
    name = "\udcff.img"
    journald.write("two\nlines", journald.ERROR, {"LUKSHOOK_VOLUME": "offsite", "LUKSHOOK_REASON": f"a=b\n\n{name}"})

    assert {
        "MESSAGE": b"two\\nlines",
        "PRIORITY": b"3",
        "SYSLOG_IDENTIFIER": b"lukshook",
        "LUKSHOOK_VOLUME": b"offsite",
        "LUKSHOOK_REASON": b"a=b\\n\\n\\xff.img",
    } == fields_of(journal.recv(4096))


def test_without_a_journal_it_is_a_line_for_syslog(tmp_path: Path) -> None:
    """One line with facility daemon, the command and its process."""
    with listen(tmp_path / "log") as listening:
        journald.write("two\nlines", journald.INFO, {})

        assert f"<30>lukshook[{os.getpid()}]: two\\nlines" == listening.recv(4096).decode()


def test_no_log_is_no_failure() -> None:
    """Neither a journal nor syslog."""
    journald.write("x", journald.INFO, {})


def test_a_log_that_nobody_reads_holds_nobody_up(journal: socket.socket) -> None:
    """What does not fit is left out, without waiting."""
    started = time.monotonic()
    for _ in range(5000):  # net.unix.max_dgram_qlen is 10 to 512 on Linux distributions
        journald.write("x" * 1000, journald.INFO, {})

    received = 0
    try:
        while journal.recv(4096):
            received += 1
    except BlockingIOError:
        pass
    assert 0 < received < 5000
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("status", "raised", "line", "fields"),
    [
        (0, None, "work offsite: done after 0.0 s", {"LUKSHOOK_EXIT": b"0", "PRIORITY": b"6"}),
        (23, None, "work offsite: ended with 23 after 0.0 s", {"LUKSHOOK_EXIT": b"23", "PRIORITY": b"3"}),
        (
            71,
            Busy("in use", hint="wait"),
            "work offsite: failed with 71 after 0.0 s: in use",
            {"LUKSHOOK_EXIT": b"71", "PRIORITY": b"3", "LUKSHOOK_REASON": b"in use"},
        ),
    ],
    ids=["done", "a status", "an error"],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_a_run_is_one_line(
    journal: socket.socket,
    capsys: pytest.CaptureFixture[str],
    status: int,
    raised: Busy | None,
    line: str,
    fields: dict[str, bytes],
    verbose: bool,
) -> None:
    """It goes to the journal and, with -v only, to stderr; an error stands on stderr anyway."""

    def work() -> int:
        if raised:
            raise raised
        return status

    assert (raised.exit_code if raised else status) == run(work, verbose=verbose)

    entry = fields_of(journal.recv(4096))
    assert line == entry["MESSAGE"].decode()
    assert (fields | {"LUKSHOOK_VOLUME": b"offsite", "LUKSHOOK_COMMAND": b"work"}).items() <= entry.items()
    assert float(entry["LUKSHOOK_SECONDS"]) < 5
    shown = ["lukshook: in use", "  hint: wait"] if raised else []
    out, err = capsys.readouterr()
    assert ("", [*shown, *([line] if verbose else [])]) == (out, err.splitlines())
    with pytest.raises(BlockingIOError):
        journal.recv(4096)


CHANGING = (
    *(["create"], ["before-backup"], ["after-backup"], ["open"], ["close"], ["compact"], ["trust"]),
    *(
        ["verify"],
        ["copy"],
        ["heal", "--from", "/copy"],
        ["drill"],
        ["resize", "+1GiB"],
        ["run", "--", "true"],
        ["header", "backup"],
        ["header", "restore"],
    ),
    *(["key", "add", "--key", "prompt"], ["key", "remove", "--slot", "1"], ["key", "rotate"], ["key", "rekey"]),
    ["key", "split", "2/3"],
)
GROUPS = ("key", "header", "config")
LOOKING = (
    ["header", "verify"],
    ["key", "test"],
    ["status"],
    ["history"],
    ["versions"],
    ["check"],
    ["notify"],
    ["sheet"],
    ["config", "show"],
)


@pytest.mark.parametrize("words", [*CHANGING, *LOOKING], ids=" ".join)
def test_whoever_changes_a_volume_says_so(journal: socket.socket, tmp_path: Path, words: list[str]) -> None:
    """Also where it fails, here for want of a configuration; whoever only looks says nothing."""
    verbs = words[:2] if words[0] in GROUPS else words[:1]
    arguments = ["-c", f"{tmp_path}/none.toml", *verbs, "offsite", *words[len(verbs) :]]

    assert 78 == group.main(args=arguments, prog_name="lukshook", standalone_mode=False)

    if words in LOOKING:
        with pytest.raises(BlockingIOError):
            journal.recv(4096)
    else:
        entry = fields_of(journal.recv(4096))
        assert (" ".join(verbs), "offsite") == (entry["LUKSHOOK_COMMAND"].decode(), entry["LUKSHOOK_VOLUME"].decode())


def test_no_command_is_forgotten() -> None:
    """A new one is either here, or is about no volume: `hooks` prints, `init` creates one."""
    known = {" ".join(words[: 2 if words[0] in GROUPS else 1]) for words in (*CHANGING, *LOOKING)}
    of_none = {"key new", "key combine", "hooks", "config schema", "init"}
    assert known | of_none == set(all_commands(group, click.Context(group)))


def all_commands(above: click.Group, context: click.Context, path: str = "") -> Iterator[str]:
    """The words of each command."""
    for name in above.list_commands(context):
        found = above.get_command(context, name)
        if isinstance(found, click.Group) and (found.name or "") != "hooks":
            yield from all_commands(found, click.Context(found), f"{name} ")
        else:
            yield path + name


def test_a_dry_run_says_nothing(journal: socket.socket) -> None:
    """Nothing happened."""
    run(lambda: 0, dry_run=True)

    with pytest.raises(BlockingIOError):
        journal.recv(4096)


def run(work: Callable[[], int], *, dry_run: bool = False, verbose: bool = False) -> object:
    """Exit status of a command `work` for the volume "offsite"."""

    @click.command()
    @pass_app
    def command(app: App) -> int:
        return logged(app, "offsite", work)

    app = App(None, dry_run=dry_run, verbose=verbose)
    return command.main(args=[], prog_name="work", obj=app, standalone_mode=False)

"""A copy on a host with SFTP, alone or beside a shell: OpenSSH's own server, spoken to through pipes."""

from __future__ import annotations

import fcntl
import os
import random
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from lukshook.errors import Exists, NotSafe, Refused, Unavailable, Usage
from lukshook.ledger.pieces import PIECE
from lukshook.proof import copy, heal, verify_copy
from lukshook.proof.copy import Asked, Copied
from lukshook.replica import targets
from lukshook.store import sftp_client
from lukshook.store.pipes import SILENCE, Pipes
from lukshook.store.remote import sftp_session, ssh
from lukshook.system.command import Command
from lukshook.system.signals import Interrupted
from support.kept_volume import KeptVolume, kept_volume
from support.noted_signals import noted_signals

SERVER = "/usr/lib/openssh/sftp-server"
pytestmark = pytest.mark.needs(SERVER)


class Line:
    """What goes through the pipes. *most*: bytes that are sent until the line is cut, None for all.

    *shell*: the one of the user there.
    """

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.shell = "sh -c"
        self.sent = 0
        self.most: int | None = None
        self.commands: list[Command] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.silence = SILENCE
        self.stopped = False
        self.at_most: Callable[[Pipes], None] = cut

    def url(self, path: Path) -> str:
        return f"{self.scheme}://user@host:2222{path}"

    @contextmanager
    def conversation(
        self, command: Command, *, errors: int = subprocess.DEVNULL, **_: object
    ) -> Iterator[tuple[BinaryIO, BinaryIO, Callable[[float], int | None]]]:
        """In the place of ssh, which starts sshd's own server, or the shell of the user."""
        self.commands.append(command)
        words = [SERVER] if "-s" in command.argv else [*shlex.split(self.shell), command.argv[-1]]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(words, **pipes, start_new_session=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            self.server = server
            try:
                yield cast(BinaryIO, server.stdin), cast(BinaryIO, server.stdout), lambda _: ended(server)
            finally:
                if self.stopped:  # it goes on, and finds that the line is gone
                    os.killpg(server.pid, signal.SIGCONT)
                    self.stopped = False
                server.kill()
                with suppress(OSError):  # as the real one: it may have left before it took all
                    server.stdin.close()

    def pipes(self, requests: BinaryIO, answers: BinaryIO, *, stops: bool) -> Pipes:
        """Those of the conversation."""
        line = self

        class Counted(Pipes):
            def say(self, data: bytes) -> None:
                if line.most is not None and line.sent + len(data) > line.most:
                    super().say(data[: line.most - line.sent])
                    line.most = None
                    line.at_most(self)
                line.sent += len(data)
                super().say(data)

        return Counted(requests, answers, self.silence, stops=stops)


def cut(pipes: Pipes) -> None:
    """The line is cut."""
    pipes.lost = True
    raise ConnectionResetError(104, "Connection reset by peer")


def ended(server: subprocess.Popen[bytes]) -> int | None:
    """How it has ended, within a second."""
    with suppress(subprocess.TimeoutExpired):
        return server.wait(1)
    return None


@pytest.fixture(params=["sftp", "ssh"])
def line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Line:
    return laid(Line(request.param), monkeypatch)


def laid(line: Line, monkeypatch: pytest.MonkeyPatch) -> Line:
    """From now on, it leads to every host."""
    monkeypatch.setattr(sftp_session, "conversation", line.conversation)
    monkeypatch.setattr(sftp_session, "Pipes", line.pipes)
    return line


@pytest.fixture
def volume(tmp_path: Path) -> KeptVolume:
    return kept_volume(tmp_path, lambda text: None)


def sent(volume: KeptVolume, line: Line, asked: Asked | None = None) -> Copied:
    url = line.url(volume.target)
    done = copy.copy(volume.volume, volume.site, url, asked or Asked(), lambda done, total: None)
    assert done is not None
    return done


def test_a_copy_over_sftp_is_the_image_and_stays_it(volume: KeptVolume, line: Line, chance: random.Random) -> None:
    sent(volume, line)
    assert volume.image.read_bytes() == volume.target.read_bytes()
    assert 0o600 == volume.target.stat().st_mode & 0o777
    for _ in range(4):
        volume.write(chance)
        line.sent = 0
        done = sent(volume, line)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()
        assert line.sent < done.sent * 1.1 + 10_000  # what changed, once
    url = line.url(volume.target)
    found = verify_copy.verify_copy(volume.volume, volume.site, url, lambda done, total: None)
    assert ((), 0) == (found.bad, found.behind)
    assert "ssh" == line.commands[0].argv[0]
    first = line.commands[0].argv
    assert ("-p", "2222", "--", "user@host") == first[-5:-1]
    assert ("sftp" == first[-1]) == ("-s" == first[-6]) == ("sftp" == line.scheme)


def test_a_line_that_is_cut_leaves_the_old_or_the_new_state(
    volume: KeptVolume, line: Line, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    sent(volume, line)
    for _ in range(rounds(15, 200)):
        old = volume.target.read_bytes()
        volume.write(chance)
        line.sent, line.most = 0, chance.randrange(2_000_000)
        try:
            sent(volume, line)
        except (NotSafe, Unavailable):
            if "copy.img.READ-ME-FIRST" not in volume.names():
                assert volume.target.read_bytes() in (old, volume.image.read_bytes())
        line.most = None
        sent(volume, line)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()


def stopped(line: Line, most: int) -> None:
    """The server there, with the shell that starts it, stops once it was sent so much; what leads to it goes on."""

    def stop(pipes: Pipes) -> None:
        assert line.server is not None
        os.killpg(line.server.pid, signal.SIGSTOP)
        line.stopped = True

    line.sent, line.most, line.at_most = 0, most, stop


def test_a_server_that_is_silent_is_given_up(volume: KeptVolume, line: Line, chance: random.Random) -> None:
    """The lock of the volume is not kept for ever; the next run continues."""
    sent(volume, line)
    for most in (0, 200, 60_000):
        volume.write(chance)
        line.silence = 0.5
        stopped(line, most)
        with pytest.raises((NotSafe, Unavailable), match="has not answered"):
            sent(volume, line)
        line.silence = SILENCE
        sent(volume, line)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()


@pytest.mark.parametrize("most", [0, 200, 60_000])
def test_a_copy_to_a_server_that_is_silent_can_be_interrupted(
    volume: KeptVolume, line: Line, chance: random.Random, most: int
) -> None:
    sent(volume, line)
    volume.write(chance)
    stopped(line, most)
    with noted_signals():
        killer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        killer.start()
        with pytest.raises(Interrupted):
            sent(volume, line)
        killer.join()
    sent(volume, line)
    assert volume.image.read_bytes() == volume.target.read_bytes()
    assert ["copy.img"] == volume.names()


def test_a_server_without_extensions_will_do(
    volume: KeptVolume, line: Line, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = sftp_client.Sftp._begin
    monkeypatch.setattr(sftp_client.Sftp, "_begin", lambda self, greeting: begin(self, greeting) & set())
    sent(volume, line)
    for _ in range(3):
        volume.write(chance)
        sent(volume, line)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()


def test_an_image_is_healed_over_sftp(volume: KeptVolume, line: Line) -> None:
    sent(volume, line)
    good = volume.image.read_bytes()
    with volume.image.open("r+b") as file:
        file.seek(5 * PIECE)
        file.write(b"damage")
    heal.heal(volume.volume, volume.site, line.url(volume.target), lambda done, total: None)
    assert good == volume.image.read_bytes()


def test_what_lies_there_is_not_replaced(volume: KeptVolume, line: Line) -> None:
    volume.target.write_bytes(b"somebody's")
    with pytest.raises(Exists):
        sent(volume, line)
    volume.target.unlink()
    volume.target.symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="not a regular file"):
        sent(volume, line, Asked(adopt=True))


@pytest.mark.parametrize("said", [b"", b"Welcome to this host!\n" * 20, b"\0\0\0\5\2\0\0\0\3"[:7]])
def test_a_host_that_speaks_no_sftp_is_not_available(
    volume: KeptVolume, said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def conversation(command: Command, **_: object) -> Iterator[tuple[BinaryIO, BinaryIO, Callable[[float], None]]]:
        (tmp_path / "said").write_bytes(said)
        with (tmp_path / "said").open("rb") as answers, Path("/dev/null").open("wb") as requests:
            yield requests, answers, lambda _: None

    monkeypatch.setattr(sftp_session, "conversation", conversation)
    with pytest.raises(Unavailable, match="host cannot be reached"):
        sent(volume, Line("sftp"))


@pytest.mark.parametrize("url", ["sftp://-oProxyCommand=x/a", "ftp://host/a", "sftp://host", "sftp://a b/c"])
def test_what_is_no_url_of_a_target(volume: KeptVolume, url: str) -> None:
    with pytest.raises(Usage, match="is not a URL"):
        copy.copy(volume.volume, volume.site, url, Asked(), lambda done, total: None)
    with pytest.raises(ValueError, match="a URL"):
        targets.store_of(url)


# A host with a shell


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Line:
    return laid(Line("ssh"), monkeypatch)


def test_an_image_that_is_open_there_is_not_written(
    volume: KeptVolume, shell: Line, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever serves it has the lock; to read it needs none."""
    monkeypatch.setattr(ssh, "_UNLOCK_SECONDS", 0)
    sent(volume, shell)
    old = volume.target.read_bytes()
    volume.write(chance)
    with volume.target.open("rb") as served:
        fcntl.flock(served, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="is open elsewhere"):
            sent(volume, shell)
        assert old == volume.target.read_bytes()
        url = shell.url(volume.target)
        assert () == verify_copy.verify_copy(volume.volume, volume.site, url, lambda done, total: None).bad
    sent(volume, shell)
    assert volume.image.read_bytes() == volume.target.read_bytes()


def test_a_host_that_had_the_copy_open_as_its_image_does_not_come_back(volume: KeptVolume, shell: Line) -> None:
    """Its mark is replaced before anything else; where nobody has ever had it open, there is none."""
    sent(volume, shell)
    assert ["copy.img"] == volume.names()
    holder = volume.target.with_name(".copy.img.lukshook-holder")
    holder.write_text("another 0123\n")
    url = shell.url(volume.target)
    verify_copy.verify_copy(volume.volume, volume.site, url, lambda done, total: None)
    assert "another 0123\n" == holder.read_text()
    sent(volume, shell)
    assert "another 0123\n" != holder.read_text()


def test_a_server_that_still_writes_a_first_copy_keeps_the_next_one_out(
    volume: KeptVolume, shell: Line, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection may be gone, with writes that it has not carried out yet. So it has the lock on the folder."""
    monkeypatch.setattr(ssh, "_UNLOCK_SECONDS", 0)
    url, of, site = shell.url(volume.target), volume.volume, volume.site
    with targets.open_target(url, site.runner, of.access, "", site.state(of).holder, writable=True):
        with pytest.raises(Unavailable, match=r"host .* \(process .*\), for a first copy into this folder, has it"):
            sent(volume, shell)
        assert [] == volume.names()
    monkeypatch.undo()
    monkeypatch.setattr(sftp_session, "conversation", shell.conversation)
    sent(volume, shell)
    volume.write(chance)
    with directory(volume.target.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        sent(volume, shell)
    assert volume.image.read_bytes() == volume.target.read_bytes()


def test_a_folder_that_cannot_be_locked(volume: KeptVolume, shell: Line, tmp_path: Path) -> None:
    """As on NFS: there a first copy goes without a lock."""
    (tools := tmp_path / "tools").mkdir()
    (tools / "flock").write_text("#!/bin/sh\nexit 1\n")
    (tools / "flock").chmod(0o755)
    shell.shell = f"env PATH={tools}:/usr/bin:/bin sh -c"
    sent(volume, shell)
    assert volume.image.read_bytes() == volume.target.read_bytes()


@contextmanager
def directory(folder: Path) -> Iterator[int]:
    """A descriptor of it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_an_image_of_another_host_keeps_its_mark(volume: KeptVolume, shell: Line) -> None:
    """That host may be away for a moment only: a copy that is refused locks it out of nothing."""
    volume.target.write_bytes(b"another volume")
    holder = volume.target.with_name(".copy.img.lukshook-holder")
    holder.write_text("another 0123\n")
    for asked in (Asked(), Asked(adopt=True)):
        with pytest.raises((Exists, Refused)):
            sent(volume, shell, asked)
        assert "another 0123\n" == holder.read_text()
    assert b"another volume" == volume.target.read_bytes()


def test_a_mark_that_cannot_be_replaced(volume: KeptVolume, shell: Line, chance: random.Random) -> None:
    """Then that host could come back and write into the copy, so nothing is sent."""
    sent(volume, shell)
    old = volume.target.read_bytes()
    volume.write(chance)
    volume.target.with_name(".copy.img.lukshook-holder").mkdir()
    with pytest.raises(Refused, match="is not a regular file"):
        sent(volume, shell)
    assert old == volume.target.read_bytes()


def test_a_lock_file_beside_a_copy_is_looked_at(volume: KeptVolume, line: Line, chance: random.Random) -> None:
    """That of a host that has it open as its image through SFTP."""
    sent(volume, line)
    volume.write(chance)
    lock = volume.target.with_name(".copy.img.lukshook-lock")
    lock.write_text('{"host": "other", "pid": 1, "since": "today", "holder": "h"}\n')
    if line.scheme == "ssh":  # which nobody has looked at there either
        sent(volume, line)
        return
    with pytest.raises(Unavailable, match="host other "):
        sent(volume, line)
    lock.unlink()
    sent(volume, line)


@pytest.mark.parametrize(
    ("user", "server", "message", "hint"),
    [
        ("sh -c", "/nonexistent", "host has no sftp-server", "apt install openssh-sftp-server"),
        (f"sh -c {shlex.quote(f'exec {SERVER}')}", SERVER, "has no shell that starts an SFTP server", "use sftp://"),
        ("/bin/false", SERVER, "has no shell that starts an SFTP server", "use sftp://"),
        ("echo Welcome", SERVER, "has no shell that starts an SFTP server", "echo yes"),
    ],
    ids=["no server", "sftp alone", "no login", "greeter"],
)
def test_a_host_that_cannot_serve_a_copy_is_refused_at_once(
    volume: KeptVolume, shell: Line, user: str, server: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line, before anything is sent."""
    monkeypatch.setattr(ssh, "SFTP_SERVERS", (server,))
    shell.shell = user
    with pytest.raises(Unavailable, match=message) as caught:
        sent(volume, shell)
    assert hint in caught.value.hint
    assert [] == volume.names()

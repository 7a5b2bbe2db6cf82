"""A copy on a host that has nothing but SFTP: OpenSSH's own server, spoken to through pipes."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from lukshook.errors import Exists, NotSafe, Refused, Unavailable, Usage
from lukshook.ledger.pieces import PIECE
from lukshook.proof import copy, heal, verify_copy
from lukshook.proof.copy import Asked, Copied
from lukshook.replica import targets
from lukshook.store import sftp_client
from lukshook.store.remote import sftp_session
from lukshook.system.command import Command
from support.kept_volume import KeptVolume, kept_volume

SERVER = "/usr/lib/openssh/sftp-server"
pytestmark = pytest.mark.needs(SERVER)


class Line:
    """What goes through the pipes. *most*: bytes that are sent until the line is cut, None for all."""

    def __init__(self) -> None:
        self.sent = 0
        self.most: int | None = None
        self.commands: list[Command] = []

    @contextmanager
    def conversation(
        self, command: Command, **_: object
    ) -> Iterator[tuple[BinaryIO, BinaryIO, Callable[[float], int | None]]]:
        """In the place of ssh; how that has ended is not known."""
        self.commands.append(command)
        with subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            write = server.stdin.write

            class Counted:
                def write(counted, content: bytes) -> None:  # noqa: N805
                    if self.most is not None and self.sent + len(content) > self.most:
                        write(content[: self.most - self.sent])
                        server.stdin.flush()  # type: ignore[union-attr]
                        self.most = 0
                        raise ConnectionResetError(104, "Connection reset by peer")
                    self.sent += len(content)
                    write(content)

                def flush(counted) -> None:  # noqa: N805
                    server.stdin.flush()  # type: ignore[union-attr]

            try:
                yield Counted(), server.stdout, lambda _: None  # type: ignore[misc]
            finally:
                server.kill()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr(sftp_session, "conversation", line.conversation)
    return line


@pytest.fixture
def volume(tmp_path: Path) -> KeptVolume:
    return kept_volume(tmp_path, lambda text: None)


def sent(volume: KeptVolume, asked: Asked | None = None) -> Copied:
    url = f"sftp://user@host:2222{volume.target}"
    done = copy.copy(volume.volume, volume.site, url, asked or Asked(), lambda done, total: None)
    assert done is not None
    return done


def test_a_copy_over_sftp_is_the_image_and_stays_it(volume: KeptVolume, line: Line, chance: random.Random) -> None:
    sent(volume)
    assert volume.image.read_bytes() == volume.target.read_bytes()
    assert 0o600 == volume.target.stat().st_mode & 0o777
    for _ in range(4):
        volume.write(chance)
        line.sent = 0
        done = sent(volume)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()
        assert line.sent < done.sent * 1.1 + 10_000  # what changed, once
    url = f"sftp://user@host:2222{volume.target}"
    found = verify_copy.verify_copy(volume.volume, volume.site, url, lambda done, total: None)
    assert ((), 0) == (found.bad, found.behind)
    assert "ssh" == line.commands[0].argv[0]
    assert ("-s", "-p", "2222", "--", "user@host", "sftp") == line.commands[0].argv[-6:]


def test_a_line_that_is_cut_leaves_the_old_or_the_new_state(
    volume: KeptVolume, line: Line, chance: random.Random, rounds: Callable[[int, int], int]
) -> None:
    sent(volume)
    for _ in range(rounds(15, 200)):
        old = volume.target.read_bytes()
        volume.write(chance)
        line.sent, line.most = 0, chance.randrange(2_000_000)
        try:
            sent(volume)
        except (NotSafe, Unavailable):
            if "copy.img.READ-ME-FIRST" not in volume.names():
                assert volume.target.read_bytes() in (old, volume.image.read_bytes())
        line.most = None
        sent(volume)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()


def test_a_server_without_extensions_will_do(
    volume: KeptVolume, line: Line, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = sftp_client.Sftp._begin
    monkeypatch.setattr(sftp_client.Sftp, "_begin", lambda self: begin(self) & set())
    sent(volume)
    for _ in range(3):
        volume.write(chance)
        sent(volume)
        assert volume.image.read_bytes() == volume.target.read_bytes()
        assert ["copy.img"] == volume.names()


def test_an_image_is_healed_over_sftp(volume: KeptVolume, line: Line) -> None:
    sent(volume)
    good = volume.image.read_bytes()
    with volume.image.open("r+b") as file:
        file.seek(5 * PIECE)
        file.write(b"damage")
    url = f"sftp://host{volume.target}"
    heal.heal(volume.volume, volume.site, url, lambda done, total: None)
    assert good == volume.image.read_bytes()


def test_what_lies_there_is_not_replaced(volume: KeptVolume, line: Line) -> None:
    volume.target.write_bytes(b"somebody's")
    with pytest.raises(Exists):
        sent(volume)
    volume.target.unlink()
    volume.target.symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="not a regular file"):
        sent(volume, Asked(adopt=True))


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
        sent(volume)


@pytest.mark.parametrize("url", ["sftp://-oProxyCommand=x/a", "ftp://host/a", "sftp://host", "sftp://a b/c"])
def test_what_is_no_url_of_a_target(volume: KeptVolume, url: str) -> None:
    with pytest.raises(Usage):
        copy.copy(volume.volume, volume.site, url, Asked(), lambda done, total: None)
    with pytest.raises(ValueError, match="a URL such as"):
        targets.check_url(url)

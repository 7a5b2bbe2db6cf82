"""What is asked of qemu through a monitor, and monitors that answer nothing, or anything."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lukshook.errors import Unavailable
from lukshook.system import qmp

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
FINE = b'{"return": {}}\r\n'
EVENT = b'{"event": "BLOCK_EXPORT_DELETED", "data": {}}\r\n'
#: Long enough for an answer on a busy machine.
SECONDS = 20.0
SHORT = 0.2
Talk = Callable[[socket.socket], None]


@contextmanager
def monitor(folder: Path, talk: Talk) -> Iterator[Path]:
    """A socket whose first client is talked to so."""
    place = folder / "monitor"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(1)
        talking = threading.Thread(target=lambda: _talk(listener, talk))
        talking.start()
        try:
            yield place
        finally:
            talking.join(SECONDS)
            assert not talking.is_alive()


def _talk(listener: socket.socket, talk: Talk) -> None:
    connection, _ = listener.accept()
    with connection:
        talk(connection)


def scripted(*answers: bytes, heard: list[object] | None = None) -> Talk:
    """Say the first answer at once, and each of the others when a line has come; then hang up."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(answers[0])
        with connection.makefile("rb") as lines:
            for answer in answers[1:]:
                line = lines.readline()
                if line and heard is not None:
                    heard.append(json.loads(line))
                connection.sendall(answer)

    return talk


def test_a_question_is_answered(tmp_path: Path) -> None:
    """Events between question and answer are not taken for the answer, and a message may come in parts."""
    heard: list[object] = []
    answer = b'{"timestamp": {}, "event": "x"}\r\n{"return": [{"node-name": "im'
    talk = scripted(GREETING, FINE, EVENT + answer + b'age"}]}\r\n', heard=heard)
    with monitor(tmp_path, talk) as place, qmp.connect(place, SECONDS) as daemon:
        found = daemon.ask("query-named-block-nodes", {"flat": True})

    assert [{"node-name": "image"}] == found
    asked = {"execute": "query-named-block-nodes", "arguments": {"flat": True}}
    assert [{"execute": "qmp_capabilities", "arguments": {}}, asked] == heard


def test_an_error_is_told_in_the_words_of_qemu(tmp_path: Path) -> None:
    """On one line, whatever is in it; and the monitor can be asked on."""
    error = b'{"error": {"class": "GenericError", "desc": "Cannot find\\nnode \\u001b[31m"}}\r\n'
    with monitor(tmp_path, scripted(GREETING, FINE, error, FINE)) as place, qmp.connect(place, SECONDS) as daemon:
        with pytest.raises(qmp.Rejected) as caught:
            daemon.ask("blockdev-del")
        assert {} == daemon.ask("nbd-server-stop")

    assert "qemu cannot do blockdev-del: Cannot find\\nnode \\x1b[31m" == caught.value.message


NONSENSE = {
    "no JSON": b"SSH-2.0-OpenSSH\r\n",
    "no text": b"\xff\xfe\x00\n",
    "no object": b"[1, 2]\n",
    "empty": b"\n",
    "deep": b"[" * 500_000 + b"\n",
    "without an end": b"x" * (3 << 20),
    "not hung up but cut off": b'{"return"',
    "hung up": b"",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_in_place_of_a_greeting_is_an_error(tmp_path: Path, what: str) -> None:
    """One line, no traceback, no memory without limit."""

    def talk(connection: socket.socket) -> None:
        try:
            connection.sendall(NONSENSE[what])
        except OSError:  # the client had enough
            return

    silent = pytest.raises(Unavailable, match="does not answer: ")
    with monitor(tmp_path, talk) as place, silent, qmp.connect(place, SECONDS):
        pytest.fail("was taken for a monitor")


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_in_place_of_an_answer_is_an_error(tmp_path: Path, what: str) -> None:
    """After which nothing more is asked: an answer could be that to an earlier question."""
    talk = scripted(GREETING, FINE, NONSENSE[what])

    def patient(connection: socket.socket) -> None:
        try:
            talk(connection)
        except OSError:
            return

    with monitor(tmp_path, patient) as place, qmp.connect(place, SECONDS) as daemon:
        for _ in range(2):
            with pytest.raises(Unavailable, match="does not answer: "):
                daemon.ask("query-status")


@pytest.mark.parametrize("answers", [(b"",), (GREETING,), (GREETING, FINE), (GREETING, FINE, EVENT)])
def test_silence_has_an_end(tmp_path: Path, answers: tuple[bytes, ...]) -> None:
    """A daemon that hangs on a dead store answers nothing; events alone are no answer."""
    over = threading.Event()

    def talk(connection: socket.socket) -> None:
        scripted(*answers)(connection)
        over.wait(SECONDS)

    with monitor(tmp_path, talk) as place:
        with pytest.raises(Unavailable, match="timed out"), qmp.connect(place, SHORT) as daemon:
            daemon.ask("query-status")
        over.set()


def test_a_queue_that_stays_full_has_an_end(tmp_path: Path) -> None:
    """Others talk to the daemon, one of them for ever."""
    place = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(place))
        listener.listen(0)
        other.connect(str(place))
        with pytest.raises(Unavailable, match="it talks to others"), qmp.connect(place, SHORT):
            pytest.fail("nobody was there")


def test_no_monitor_at_all(tmp_path: Path) -> None:
    """It has ended, or was killed and left its socket."""
    with pytest.raises(Unavailable, match="No such file"), qmp.connect(tmp_path / "monitor", SHORT):
        pytest.fail("nobody was there")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "monitor"))
    with pytest.raises(Unavailable, match="refused"), qmp.connect(tmp_path / "monitor", SHORT):
        pytest.fail("nobody was there")

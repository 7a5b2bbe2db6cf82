"""The lines that docs/keys.md has for password managers, with the real programs."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.errors import Denied
from lukshook.keys import key_sources

pytestmark = pytest.mark.files

DOCS = Path(__file__).parents[2] / "docs/keys.md"
TANGD, TANGD_KEYGEN = "/usr/libexec/tangd", "/usr/libexec/tangd-keygen"
RAW = os.urandom(32)
TEXT = base64.b64encode(RAW).decode() + "\n"


def line(name: str) -> str:
    """The key source that the table of docs/keys.md has for *name*."""
    (found,) = re.findall(rf"^\| {name} \| `(.*?)`", DOCS.read_text(), re.MULTILINE)
    return str(found)


def obtain(source: str, environment: dict[str, str]) -> bytes:
    def warn(message: str) -> None:
        raise AssertionError(message)

    return bytes(key_sources.obtain([source], key_sources.Asking(environment, "offsite", warn)).reveal())


def sh(script: str, environment: dict[str, str], given: str = "") -> None:
    """Lines of the documentation that a person types."""
    done = subprocess.run(
        ["sh", "-ec", script], input=given, env=environment, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a gpg key that asks for nothing; its path is short, for the agent's socket lies in it."""
    home = tmp_path_factory.mktemp("h")
    (home / ".gnupg").mkdir(mode=0o700)
    environment = at(home)
    sh("gpg --batch --quiet --passphrase '' --quick-generate-key backup default default never", environment)
    yield home
    sh("gpgconf --kill all", environment)


def at(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"]}


@pytest.mark.needs("pass", "gpg")
def test_pass(home: Path) -> None:
    """An entry with nothing but the key; without a home, as in a unit of systemd, the line says where it is."""
    sh("pass init backup && pass insert --multiline backup/offsite", at(home), TEXT)
    assert RAW == obtain(line("pass"), at(home))
    without = {"PATH": os.environ["PATH"]}
    assert RAW == obtain(line("pass, without a home").replace("/root", str(home)), without)
    with pytest.raises(Denied, match="the key command pass failed"):
        obtain(line("pass").replace("offsite", "absent"), at(home))
    sh("pass insert --force --multiline backup/offsite", at(home), TEXT + "user: me\n")
    with pytest.raises(Denied, match="more than one line"):
        obtain(line("pass"), at(home))


class Tang(socketserver.ThreadingTCPServer):
    """A tang server on the loopback interface: systemd's socket unit starts tangd the same way."""

    daemon_threads = True

    def __init__(self, database: Path) -> None:
        self.database = database
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.BaseRequestHandler):
    """One connection, handed to tangd as its standard input and output."""

    def handle(self) -> None:
        assert isinstance(self.server, Tang)
        subprocess.run([TANGD, self.server.database], stdin=self.request, stdout=self.request, check=False)


@pytest.fixture
def tang(tmp_path: Path) -> Iterator[Tang]:
    database = tmp_path / "tang"
    database.mkdir()
    subprocess.run([TANGD_KEYGEN, database], check=True, capture_output=True)
    with Tang(database) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.needs("clevis", "curl", TANGD)
@pytest.mark.parametrize("pin", ["tang", "sss"])
def test_clevis(tmp_path: Path, tang: Tang, pin: str) -> None:
    """The key's text is bound to a tang server, or to one of several; without the server there is no key."""
    bound = tmp_path / "offsite.jwe"
    one = f'{{"url": "http://127.0.0.1:{tang.server_address[1]}"}}'
    policy = one if pin == "tang" else f'{{"t": 1, "pins": {{"tang": [{one}]}}}}'
    environment = {"PATH": os.environ["PATH"]}
    sh(f"clevis encrypt {pin} '{policy}' -y >{bound}", environment, TEXT)
    assert TEXT.strip() not in bound.read_text()
    source = line("clevis").replace("/etc/lukshook/offsite.jwe", str(bound))
    assert RAW == obtain(source, environment)
    shutil.rmtree(tang.database)
    with pytest.raises(Denied, match="the key command sh failed"):
        obtain(source, environment)

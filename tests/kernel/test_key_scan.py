"""The key is nowhere: not in argv, environment, memory of any process, files or messages, during a backup and after."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.key_traces import in_memory, others, read, traces

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")

PROJECT = Path(__file__).resolve().parents[2]
#: Those after which every process and file is looked into: while the volume is open, and after it was closed.
LOOKED_INTO = ("create", "before-backup", "key", "close")
STEPS = (
    ("create", "house"),
    ("before-backup", "house"),
    ("after-backup", "house"),
    ("run", "house", "--", "env"),
    ("--dry-run", "open", "house"),
    ("key", "add", "house", "--key", "file:{keys}/second.key"),
    ("open", "house"),
    ("status",),
    ("header", "verify", "house"),
    ("close", "house"),
)


class Looker(threading.Thread):
    """Reads command lines and environments of all processes as often as it can."""

    def __init__(self, wanted: re.Pattern[bytes]) -> None:
        super().__init__(daemon=True)
        self.wanted = wanted
        self.found: set[str] = set()
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.005):
            for entry in others():
                for name in ("cmdline", "environ"):
                    content = read(entry / name)
                    self.seen.add(content.split(b"\0")[0].decode(errors="replace"))
                    if self.wanted.search(content):
                        self.found.add(f"{entry / name}: {content[:80]!r}")


def in_files(wanted: re.Pattern[bytes], *folders: Path) -> list[str]:
    """The files that have a trace of the key; the project, which may lie in one of *folders*, is not looked into."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(file) for file in files if not file.is_relative_to(PROJECT) and wanted.search(file.read_bytes())]


def test_the_key_is_nowhere_but_in_its_source(tmp_path: Path) -> None:
    """All commands in a row; the key's own files are the only place where it is found."""
    keys = tmp_path / "keys"
    keys.mkdir()
    house = tmp_path / "house"
    house.mkdir()
    key = os.urandom(32)
    (keys / "own.key").write_bytes(base64.b64encode(key))
    (keys / "own.key").chmod(0o600)
    (house / "config.toml").write_text(
        f'[volumes.house]\nimage = "{house}/image"\nmountpoint = "{house}/mnt"\nkey = "file:{keys}/own.key"\n'
        'size = "64MiB"\nfill = "sparse"\nspace = "warn"\nengine = "kernel"\n'
    )
    environment = {
        **os.environ,
        "LUKSHOOK_CONFIG": f"{house}/config.toml",
        "LUKSHOOK_RUN_DIR": f"{house}/run",
        "LUKSHOOK_STATE_DIR": f"{house}/state",
    }
    wanted = traces(key)
    assert [str(keys / "own.key")] == in_files(wanted, keys)
    looker = Looker(wanted)
    looker.start()
    for step in STEPS:
        argv = [sys.executable, "-m", "lukshook", "-vv", *(word.format(keys=keys) for word in step)]
        done = subprocess.run(argv, capture_output=True, env=environment, timeout=120, check=False)
        assert (step, 0) == (step, done.returncode), done.stderr.decode()
        assert not wanted.search(done.stdout + done.stderr)
        if step[0] in LOOKED_INTO:
            assert [] == in_memory(wanted)
            assert [] == in_files(wanted, house, Path("/run"), Path("/tmp"), Path("/dev/shm"), Path("/var/log"))
    looker.over.set()
    looker.join()
    assert set() == looker.found
    assert "cryptsetup" in {Path(name).name for name in looker.seen}

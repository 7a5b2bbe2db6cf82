"""The script of one connection, and the tool that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lukshook.store.remote import kinds
from lukshook.store.remote.kind import connecting
from lukshook.store.remote.nbds import NbdTls
from lukshook.store.remote.own_folder import OwnFolder
from lukshook.system import kernel, processes

KEEPS_A_TOOL = """
import sys
from pathlib import Path
from lukshook.store.remote import connection
with connection.tool((sys.argv[1] + "/nbdkit",), Path(sys.argv[1]), {}):
    print("started", flush=True)
    sys.stdin.read()
"""


def test_what_the_far_side_says_fills_no_disk(tmp_path: Path) -> None:
    """Who says more than is kept goes on all the same."""
    script = connecting(("sh", "-c", "head -c 1000000 /dev/zero >&2; echo went on")).replace("@FOLDER@", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert "went on\n" == done.stdout
    assert 0 < (tmp_path / "said").stat().st_size <= 1 << 17


def test_a_tool_goes_with_the_process_that_started_it(tmp_path: Path) -> None:
    """And it is found by the folder, for as long as it is there: nbdkit waits for a silent server for ever."""
    os.mkfifo(tmp_path / "silence")
    (tmp_path / "nbdkit").write_text(f"#!/bin/sh\nread words <{tmp_path}/silence\n")
    (tmp_path / "nbdkit").chmod(0o755)
    own = OwnFolder(tmp_path)
    words = [sys.executable, "-c", KEEPS_A_TOOL, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert b"started\n" == keeper.stdout.readline()
        assert kernel.wait_until(lambda: bool(own.connecting()), 60.0)
        started = [*own.connecting(), *processes.family(keeper.pid)]
        keeper.kill()
    assert kernel.wait_until(lambda: all(kernel.started(pid) != since for pid, since in started), 60.0)


def test_an_authority_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """libnbd would verify nobody."""
    store = kinds.parse("nbds://h/x")
    assert isinstance(store, NbdTls)
    (tmp_path / "ca-cert.pem").write_text("certificate")
    script = store.with_tls(tmp_path, None).link(read_only=False, silence=0.0).script
    look = next(line for line in script.split("\n") if "ca-cert.pem" in line)
    caps = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if not os.geteuid() else []
    for mode, status in ((0o644, 0), (0o000, 1)):
        (tmp_path / "ca-cert.pem").chmod(mode)
        assert status == subprocess.run([*caps, "sh", "-c", look], check=False).returncode

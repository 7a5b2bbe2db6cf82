"""The table of docs/fleet.md, gathered from hosts with a real sshd: well, in need, hostile, and not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.far_host import SSHD, FarHost
from support.store_examples import EXAMPLES

pytestmark = [pytest.mark.roots, pytest.mark.needs("ssh", SSHD, "ssh-keygen")]
VOLUME = {"name": "offsite", "state": "closed", "problem": None, "used": 61, "capacity": 100, "last_result": "done"}
PAGE = (EXAMPLES.parent / "docs/fleet.md").read_text()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHost]:
    """A host whose key may run what docs/fleet.md says, and nothing else."""
    restricted = re.search(r"^restrict,\S+ status --json\"", PAGE, re.MULTILINE)
    assert restricted
    host = FarHost(tmp_path_factory.mktemp("fleet") / "far")
    host.prepare()
    allowed = restricted[0].replace("/usr/local/bin/lukshook", str(host.shadows / "lukshook"))
    public = host.folder / "user.pub"
    public.write_text(f"{allowed} {public.read_text()}")
    host.start()
    try:
        yield host
    finally:
        host.stop()


def answer(far: FarHost, text: str) -> None:
    """What lukshook prints there."""
    (far.folder / "answer").write_text(text)
    far.shadow("lukshook", f'test "$*" = "status --json" && exec cat {far.folder}/answer')


def table(far: FarHost, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "fleet/fleet-status", "-F", far.config, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, done.stdout.splitlines()


def test_what_lukshook_prints_is_understood(far: FarHost, tmp_path: Path) -> None:
    """With the real program, of two volumes that have had no backup yet."""
    config = tmp_path / "config.toml"
    config.write_text(
        "".join(
            f'[volumes.{name}]\nimage = "/srv/{name}"\nmountpoint = "/mnt/{name}"\nkey = "stdin"\n' for name in "ab"
        )
    )
    program = [f"LUKSHOOK_STATE_DIR={tmp_path}/state", f"LUKSHOOK_CONFIG={config}", sys.executable, "-m", "lukshook"]
    python_path = ":".join(sys.path)
    far.shadow("lukshook", f'exec env PYTHONPATH={python_path} {" ".join(program)} "$@"')

    status, lines = table(far, "far")

    assert 1 == status
    assert ["VOLUME", "a", "b"] == [line.split()[1] for line in lines]
    assert all(line.endswith("there is no good backup") for line in lines[1:])


def test_problems_come_first(far: FarHost) -> None:
    """A host that is well is no problem; one that does not answer is one."""
    well = VOLUME | {"last_success": time.time() - 3600}
    others = [
        well | {"name": "old", "last_success": time.time() - 3 * 86400},
        well | {"name": "bad", "problem": "the store does not answer"},
        well | {"name": "failed", "last_result": "not safe"},
    ]
    answer(far, json.dumps([well]))
    assert (0, []) == table(far, "--quiet", "far")
    status, lines = table(far, "far")
    assert (0, "far   offsite  closed") == (status, lines[1][:21])
    assert lines[1].endswith("61%")

    answer(far, json.dumps([well, *others]))
    status, lines = table(far, "--quiet", "far", "nowhere.invalid")

    assert 1 == status
    assert ["old", "bad", "failed", "-", "offsite"] == [line.split()[1] for line in lines[1:]]
    assert "the store does not answer" in lines[2]
    assert "nowhere.invalid" in lines[4]


HOSTILE = [
    "",
    "{}",
    "[1]",
    "[[]]",
    '[{"name": 1}]',
    "[" * 100_000,
    json.dumps([VOLUME | {"last_success": 1e300}]),
    json.dumps([VOLUME | {"last_success": float("nan")}]),
    json.dumps([VOLUME | {"last_success": "now", "name": ["a"]}]),
    json.dumps([VOLUME | {"last_success": 1, "capacity": "x", "used": []}]),
    json.dumps([VOLUME | {"last_success": 1, "name": "\x1b[2J\n\u202e", "problem": "p\r" * 1000}]),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_host_spoils_one_line(far: FarHost, text: str) -> None:
    """Its own: no traceback, and nothing for the terminal."""
    answer(far, text)
    status, lines = table(far, "far")

    assert (1, 2) == (status, len(lines))
    assert lines[1].isprintable()
    assert lines[1].startswith("far ")

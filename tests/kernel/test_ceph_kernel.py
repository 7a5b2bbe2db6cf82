"""Images in a Ceph cluster under dm-crypt: `test_remote_kernel.py` in a guest, with a cluster outside of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from support.ceph_cluster import CEPH, OUTSIDE, ceph_cluster, obey
from support.far_network import guest_line
from support.guest import PROJECT, Guest
from support.lukshook_process import PATIENCE

pytestmark = [
    pytest.mark.outside,
    pytest.mark.slow,
    pytest.mark.needs("linux.uml", "ip", *CEPH),
    pytest.mark.skipif(os.geteuid() != 0, reason="a line to a guest is made by root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="a line to a guest needs /dev/net/tun"),
]
#: For all tests there; with `tests/run --patient` more, as each lukshook has.
SECONDS = 15 * PATIENCE
TESTS = "tests/kernel/test_remote_kernel.py"
PYTEST = ("-m", "pytest", TESTS, "-q", "--long", "-k", "rbd", "-p", "no:cacheprovider", "--basetemp=/disk/pytest")


def test_a_cluster_outside_of_the_guest(tmp_path: Path) -> None:
    """All that is tried with rbd there passes; the guest sees the cluster's folder under the same name."""
    folder, disk = tmp_path / "ceph", tmp_path / "disk"
    with guest_line() as line, ceph_cluster(folder, 3, line.near) as cluster:
        cluster.host("h1")
        with Guest(disk=disk, share=folder, line=line.name) as guest:
            seen = f"mkdir -p {folder}; mount --bind /out {folder}"
            guest.run(["sh", "-ec", f"{line.join}; {seen}"], check=True)
            variables = {OUTSIDE: str(folder), "LUKSHOOK_REQUIRE_ALL": "1"}
            job = guest.start([sys.executable, *PYTEST], env=variables, cwd=PROJECT)
            end = time.monotonic() + SECONDS
            while not job.ended.wait(0.5) and time.monotonic() < end:
                obey(cluster)
            done = job.wait(10)
    assert 0 == done.returncode, f"{done.stdout}{done.stderr}"

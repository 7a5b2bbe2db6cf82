"""One image, both engines of root: what the one has written, the other reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import NAME, Bench, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "qemu-storage-daemon", "fusermount3")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume that the userspace engine has created."""
    bench = Bench(tmp_path_factory.mktemp("template"), "userspace")
    bench.prepare()
    bench.do("create", NAME)
    yield bench
    bench.remove()


@pytest.fixture
def bench(template: Bench, tmp_path: Path) -> Iterator[Bench]:
    """A volume that was created, and is closed."""
    assert Path("/dev/fuse").exists()
    yield from closing(template.copy_to(tmp_path))


def write(bench: Bench, engine: str, name: str) -> bytes:
    """A backup of one file by an engine; its content."""
    content = os.urandom(3 << 20)
    bench.configure(engine=engine)
    bench.do("before-backup", NAME)
    assert (engine == "kernel") == bool(bench.mappings())
    (bench.data / name).write_bytes(content)
    bench.do("after-backup", NAME)
    assert bench.is_bare()
    return content


def read(bench: Bench, engine: str, name: str) -> bytes:
    """What an engine finds in the file."""
    bench.configure(engine=engine)
    bench.do("open", NAME, "--read-only")
    content = (bench.data / name).read_bytes()
    bench.do("close", NAME)
    assert bench.is_bare()
    return content


def check(bench: Bench) -> None:
    """`e2fsck -fn` finds nothing, without lukshook's help."""
    lines = f"""set -e
        base64 --decode {bench.key} | cryptsetup open --readonly --type luks1 --key-file=- {bench.image} checked
        trap 'cryptsetup close checked' EXIT
        e2fsck -fn /dev/mapper/checked"""
    done = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("writer", "reader"), [("userspace", "kernel"), ("kernel", "userspace")])
def test_what_one_engine_writes_the_other_reads(bench: Bench, writer: str, reader: str) -> None:
    """Both ways, and then the other engine goes on writing; the file system is clean each time."""
    first = write(bench, writer, "first")
    check(bench)
    assert first == read(bench, reader, "first")

    second = write(bench, reader, "second")
    check(bench)
    assert [first, second] == [read(bench, writer, name) for name in ("first", "second")]


def test_a_volume_that_is_open_with_one_engine_is_not_opened_with_the_other(bench: Bench) -> None:
    """The second before joins the first, whatever the configuration says meanwhile."""
    bench.do("before-backup", NAME)
    bench.configure(engine="kernel")
    bench.do("before-backup", NAME)
    assert [] == bench.mappings()

    bench.do("after-backup", NAME)
    assert bench.is_bare()

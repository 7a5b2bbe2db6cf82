"""What a change of size believes of a closed volume before it changes anything."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lukshook import config
from lukshook.errors import Refused
from lukshook.layers import filesystem
from lukshook.layers import image as image_layer
from lukshook.resize import job as jobs
from lukshook.resize import offline
from lukshook.resize.intent import Intent, Interaction
from lukshook.resize.job import Job
from lukshook.resize.plan import Measured
from lukshook.store import room
from lukshook.store.image_file import open_image
from lukshook.system.command import SystemRunner
from lukshook.system.secret import Secret
from lukshook.volume.context import Site
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import Known
from lukshook.volume.work import work_on

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not shutil.which("debugfs", path="/usr/sbin:/sbin"), reason="debugfs is not installed")


def tool(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def only_in_the_journal(image: Path, small: int, large: int) -> None:
    """A file system that has grown from *small* to *large* MiB, of whose super block only the journal knows that."""
    tool("mkfs.ext4", "-q", "-b", "4096", image, f"{small}M")
    with image.open("r+b") as file:
        before = file.read(4096)
        file.truncate(large * MIB)
    tool("e2fsck", "-f", "-p", image)
    tool("resize2fs", image)
    fresh = image.with_name("fresh")
    with image.open("r+b") as file:
        fresh.write_bytes(file.read(4096))
        file.seek(0)
        file.write(before)
    commands = image.with_name("commands")
    commands.write_text(f"jo -c\njw -b 0 {fresh}\njc\n")
    tool("debugfs", "-w", "-f", commands, image)


@pytest.fixture(name="job")
def _job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A change of a volume whose image is the bare file system, for it is the file system that matters here."""
    image = tmp_path / "image"
    image.touch()
    table = {"image": str(image), "mountpoint": str(tmp_path / "mount"), "key": f"file:{tmp_path}/key"}
    volume = config.parse({"volumes": {"v": {**table, "engine": "kernel"}}}, tmp_path / "config.toml").volumes["v"]
    site = Site(tmp_path / "run", tmp_path / "state", SystemRunner(), lambda volume: Secret(b""), print)

    @contextmanager
    def opened(job: Job, layers: object = None, *, read_only: bool = False) -> Iterator[Mapping[str, Any]]:
        yield {"image": image_layer.handle_of(job.image)}

    def measured(job: Job, size: int | None = None) -> Measured:
        return Measured(job.image.size, 0, filesystem=size)

    monkeypatch.setattr(offline, "opened", opened)
    monkeypatch.setattr(jobs, "measure_closed", measured)
    with open_image(image, writable=True) as there, work_on(volume, site) as work:
        yield Job(work, there, Pinned("v", Known()), "sparse", lambda done, total: None)


def change(job: Job, size: int) -> int | None:
    """`offline.change_closed` to *size* bytes."""
    intent = Intent(f"{size // MIB}MiB", job.image.size, size)
    talk = Interaction(job.progress, lambda question: True, print)
    return offline.change_closed(job, intent, room.of(job.image), talk, lambda: None)


def test_a_larger_file_system_in_the_journal_is_not_cut_off(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The super block says that it fits: only what has been checked is believed."""
    image = job.image.path
    only_in_the_journal(image, 40, 64)
    found = filesystem.facts("ext4", str(image))
    assert found is not None
    assert (40 * MIB, True) == (found.size, found.unfinished)
    gone_into: list[int] = []

    def within(job: Job, intent: Intent, *_: object) -> int:
        checked = filesystem.facts("ext4", str(image))
        assert checked is not None
        gone_into.append(checked.size)
        tool("e2fsck", "-f", "-p", image)
        tool("resize2fs", image, f"{intent.target // MIB}M")
        return intent.target

    monkeypatch.setattr(offline, "_within", within)
    assert 40 * MIB == change(job, 40 * MIB)

    assert [64 * MIB] == gone_into
    assert 40 * MIB == job.image.size
    tool("e2fsck", "-f", "-n", image)


def test_a_clean_file_system_is_believed(job: Job) -> None:
    """With its size and the least it needs, so that what does not fit is refused before anything changes."""
    tool("mkfs.ext4", "-q", "-b", "4096", job.image.path, "40M")

    _, seen = offline._look(job, Intent("40MiB", 40 * MIB, 40 * MIB))

    assert (True, 40 * MIB) == (seen.clean, seen.measured.filesystem)
    assert seen.least is not None


def test_a_super_block_that_still_reaches_beyond_the_new_end_is_not_cut_off(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the tool said: it exited 0 and changed nothing."""
    tool("mkfs.ext4", "-q", "-b", "4096", job.image.path, "80M")
    monkeypatch.setattr(offline, "_within", lambda *_: 72 * MIB)

    with pytest.raises(Refused, match="is damaged after it was shrunk: it does not fit into 72MiB"):
        change(job, 72 * MIB)

    assert 80 * MIB == job.image.size

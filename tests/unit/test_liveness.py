"""What is told of a store by its mount alone, without touching it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lukshook.errors import Unavailable
from lukshook.store import liveness
from lukshook.system import kernel
from lukshook.system.command import Command, Result, TimedOut, change
from lukshook.system.kernel import Mount
from support.fake_runner import FakeRunner


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[Mount]:
    """The mounts there are: a local root, and what a test adds."""
    found = [mount("/", "ext4")]
    monkeypatch.setattr(kernel, "mounts", lambda: tuple(found))
    monkeypatch.setattr(liveness, "_silent", set())
    monkeypatch.setattr(liveness, "_asked", set())
    return found


def mount(target: str, kind: str, *options: str) -> Mount:
    return Mount(f"0:{len(target)}", "/", target, kind, "source", frozenset(options))


LOCAL = [
    ("fuse.sshfs", (), "fuse.sshfs"),
    ("fuse", (), "fuse"),
    ("fuseblk", (), ""),  # ntfs-3g, on a disk of this machine
    ("nfs4", ("local_lock=none",), ""),
    ("nfs4", ("local_lock=flock",), "nfs4 with local_lock=flock"),
    ("nfs", ("local_lock=all", "nolock"), "nfs with local_lock=all,nolock"),
    ("cifs", ("nobrl",), "cifs with nobrl"),
    ("cifs", (), ""),
    ("ext4", (), ""),
]


@pytest.mark.parametrize(("kind", "options", "why"), LOCAL)
def test_whose_locks_stay_on_one_host(mounted: list[Mount], kind: str, options: tuple[str, ...], why: str) -> None:
    """By file system and options, as mountinfo has them; of several mounts the innermost counts."""
    mounted += [mount("/srv", "nfs4", "local_lock=all"), mount("/srv/store", kind, *options)]

    assert why == liveness.local_locks(Path("/srv/store/folder/image"))


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        *(("/srv/store/sheet", True), ("/srv/store/images/sheet", True), ("/srv/store/images/deep/sheet", True)),
        *(("/srv/sheet", False), ("/root/sheet", False)),
    ],
)
def test_what_the_server_of_an_image_would_get(mounted: list[Mount], file: str, wanted: bool) -> None:
    """All of its folders; on a disk of this machine only the image's own folder."""
    mounted += [mount("/srv/store", "fuse.sshfs")]

    assert wanted == liveness.is_on_store_of(Path("/srv/store/images/image"), Path(file))
    assert liveness.is_on_store_of(Path("/root/image"), Path("/root/sheet"))
    assert not liveness.is_on_store_of(Path("/root/image"), Path("/root/folder/sheet"))


@pytest.mark.parametrize(("kind", "wanted"), [("cifs", True), ("smb3", True), ("nfs4", False), ("ext4", False)])
def test_which_store_wants_direct_io_when_a_file_is_opened(mounted: list[Mount], kind: str, wanted: bool) -> None:
    """By the innermost mount."""
    mounted += [mount("/srv", "cifs"), mount("/srv/store", kind)]

    assert wanted == liveness.is_direct_when_opened(Path("/srv/store/image"))


@pytest.mark.parametrize(
    ("kind", "asked"), [("ext4", 0), ("btrfs", 0), ("tmpfs", 0), ("nfs4", 2), ("fuse.x", 2), ("virtiofs", 2)]
)
def test_only_stores_that_may_be_dead_are_asked(mounted: list[Mount], kind: str, asked: int) -> None:
    """Two commands, only where there is a server or daemon."""
    mounted.append(mount("/srv", kind))
    runner = FakeRunner()

    liveness.probe(Path("/srv/image"), runner)

    assert asked == len(runner.commands)


def test_links_are_followed_as_far_as_that_is_safe(mounted: list[Mount], tmp_path: Path) -> None:
    """The folder of the image may be a link into a store, which nobody looks at."""
    (tmp_path / "link").symlink_to("/nowhere/store")
    mounted.append(mount("/nowhere", "nfs4"))
    runner = FakeRunner()

    liveness.probe(tmp_path / "link/image", runner)

    assert 2 == len(runner.commands)


def test_a_dead_store_is_waited_for_once(mounted: list[Mount]) -> None:
    """However many volumes lie on it; another store is asked all the same."""
    mounted += [mount("/srv", "nfs4"), mount("/other", "nfs4")]

    def answer(command: Command) -> Result:
        if "/srv" in str(command):
            raise TimedOut(command)
        return Result(0)

    runner = FakeRunner({"stat": answer})
    for image in ("/srv/first", "/srv/second"):
        with pytest.raises(Unavailable, match=f"the store of {image} does not answer within 20 s"):
            liveness.probe(Path(image), runner)
    liveness.probe(Path("/other/third"), runner)

    assert 3 == len(runner.commands)


def test_a_child_writes_out_only_where_a_store_may_die(mounted: list[Mount]) -> None:
    """On a disk of this machine it would only take time; the errno is the same."""
    mounted.append(mount("/srv", "nfs4"))
    seen: list[int] = []

    def work(descriptor: int) -> None:
        seen.append(os.getpid())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Path("/dev/null").open() as file:
        with pytest.raises(OSError, match="No space left on device"):
            liveness.call(work, file.fileno(), change("sync"))
        assert [os.getpid()] == seen
        liveness.probe(Path("/srv/image"), FakeRunner())
        with pytest.raises(OSError, match="No space left on device"):
            liveness.call(work, file.fileno(), change("sync"))
        assert [os.getpid()] == seen

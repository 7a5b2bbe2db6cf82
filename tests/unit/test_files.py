"""Reading what may be anything, and writing whole files."""

from __future__ import annotations

import errno
import os
import re
import socket as sockets
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lukshook.system import files


def pipe(place: Path) -> None:
    os.mkfifo(place)


def to_zeroes(place: Path) -> None:
    place.symlink_to("/dev/zero")


def folder(place: Path) -> None:
    place.mkdir()


def socket(place: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as made:
        made.bind(place.name)


@pytest.mark.parametrize("make", [pipe, to_zeroes, folder, socket])
def test_only_a_regular_file_is_read(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that waits, and nothing without an end."""
    monkeypatch.chdir(tmp_path)  # a socket's name must not be long
    make(tmp_path / "thing")

    with pytest.raises(OSError, match=r"regular file|directory"):
        files.read(tmp_path / "thing", 100)


@pytest.mark.parametrize("size", [0, 99, 100, 101, 5000])
def test_no_more_is_read_than_allowed(size: int, tmp_path: Path) -> None:
    """A longer file is refused, not shortened."""
    (tmp_path / "file").write_bytes(bytes(size))

    if size > 100:
        with pytest.raises(OSError, match="larger than 100 bytes"):
            files.read(tmp_path / "file", 100)
    else:
        assert bytes(size) == files.read(tmp_path / "file", 100)


def test_what_others_prepared_is_not_written_to(tmp_path: Path) -> None:
    """A file, pipe or link at the place itself, or where earlier versions wrote first."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("file", "file.new", "file.part"):
        (tmp_path / name).symlink_to(victim)

    files.write_whole(tmp_path / "file", b"content", durable=True)

    assert "mine" == victim.read_text()
    assert stat.S_ISREG((tmp_path / "file").lstat().st_mode)
    assert b"content" == (tmp_path / "file").read_bytes()


def test_a_pipe_in_the_way_does_not_hang(tmp_path: Path) -> None:
    """Neither at the place itself nor beside it."""
    for name in ("file", "file.new"):
        os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=files.write_whole, args=(tmp_path / "file", b"x"), kwargs={"durable": False})
    writer.daemon = True

    writer.start()
    writer.join(20)

    assert not writer.is_alive()
    assert b"x" == (tmp_path / "file").read_bytes()


def test_who_opened_the_old_file_cannot_write_to_the_new_one(tmp_path: Path) -> None:
    """A new file each time: nobody has it open."""
    for name in ("file", "file.new"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
    held = [(tmp_path / name).open("a") for name in ("file", "file.new")]

    files.write_whole(tmp_path / "file", b"content", durable=True)
    for one in held:
        one.write("more")
        one.close()

    assert b"content" == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_the_mode_is_what_is_asked_for(mask: int, tmp_path: Path) -> None:
    """Whatever the umask."""
    before = os.umask(mask)
    try:
        files.write_whole(tmp_path / "secret", b"", durable=False)
        files.write_whole(tmp_path / "public", b"", durable=False, mode=0o644)
    finally:
        os.umask(before)

    assert [0o600, 0o644] == [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("secret", "public")]


def test_without_replacing_the_old_file_stays(tmp_path: Path) -> None:
    """Also a link that leads nowhere counts as there."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("nowhere")

    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            files.write_whole(tmp_path / name, b"new", durable=True, replace=False)

    assert "old" == (tmp_path / "file").read_text()
    assert {"file", "link"} == set(os.listdir(tmp_path))


class Cut(BaseException):
    """An interruption."""


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    """Nor is the old content touched."""
    (tmp_path / "file").write_text("old")

    def half(descriptor: int) -> None:
        os.write(descriptor, b"ha")
        raise Cut

    with pytest.raises(Cut):
        files.write_whole(tmp_path / "file", half, durable=True)

    assert ["file"] == os.listdir(tmp_path)
    assert "old" == (tmp_path / "file").read_text()


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    """It may hold a key or an old header; files of others with names that look alike stay."""
    pid = os.fork()
    if not pid:
        files.write_whole(tmp_path / "file", lambda descriptor: os._exit(9), durable=True)
    os.waitpid(pid, 0)
    (left,) = os.listdir(tmp_path)
    assert re.fullmatch(r"file\.[0-9a-f]{8}\.part", left)
    others = {"file.new", "file.part", "other.01234567.part", "file.01234567.part.kept"}
    for name in others:
        (tmp_path / name).touch()

    files.write_whole(tmp_path / "file", b"", durable=True)

    assert {"file", *others} == set(os.listdir(tmp_path))


def test_two_writers_at_a_time_do_not_meet(tmp_path: Path) -> None:
    """Each writes a file of its own; the last one stays, whole."""

    def first(descriptor: int) -> None:
        files.write_whole(tmp_path / "file", b"second", durable=False)
        os.write(descriptor, b"first")

    files.write_whole(tmp_path / "file", first, durable=False)

    assert b"first" == (tmp_path / "file").read_bytes()
    assert ["file"] == os.listdir(tmp_path)


def test_a_new_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves nothing that the next try meets."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_new(tmp_path / "new", b"all")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["file", "link", "pipe"])
def test_a_new_file_replaces_nothing(tmp_path: Path, there: str) -> None:
    """Nor follows a link."""
    place = tmp_path / "there"
    if there == "link":
        place.symlink_to(tmp_path / "x")
    elif there == "pipe":
        pipe(place)
    else:
        place.touch()

    with pytest.raises(FileExistsError):
        files.write_new(place, b"new")

    assert [place] == list(tmp_path.iterdir())


def test_a_new_file_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system keeps no modes, the caller is told."""
    assert files.write_new(tmp_path / "new", b"all")
    assert (b"all", 0o600) == ((tmp_path / "new").read_bytes(), stat.S_IMODE((tmp_path / "new").stat().st_mode))

    monkeypatch.setattr(os, "fchmod", lambda descriptor, mode: Path(f"/proc/self/fd/{descriptor}").chmod(0o755))
    assert not files.write_new(tmp_path / "stick", b"all")

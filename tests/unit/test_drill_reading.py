"""How a drill chooses and compares files."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from lukshook.options.values import Drill
from lukshook.proof import drill, reading
from lukshook.proof.drill import Found
from lukshook.proof.reading import File
from lukshook.volume.copies import Age
from support.direct_volume import parsed


def unexpected(text: str) -> None:
    raise AssertionError(text)


def tree(folder: Path) -> Path:
    """Files at several depths, and what is none."""
    (folder / "a/b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to("one")
    (folder / "away").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    return folder


def test_only_regular_files_are_found(tmp_path: Path) -> None:
    """At every depth; no link is followed, and nothing waits for a pipe."""
    found = {file.path: file.size for file in reading.files_in(tree(tmp_path), unexpected)}
    assert {"one": 3, "a/two": 5, "a/b/three": 9} == found


def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """It is named, and the others are read."""
    faults: list[str] = []
    tree(tmp_path)
    assert [] == list(reading.files_in(tmp_path / "gone", faults.append))
    assert ["the root folder in the volume cannot be read: No such file or directory"] == faults


def test_a_folder_as_deep_as_a_path_can_be_is_no_fault(tmp_path: Path) -> None:
    """What lies deeper has no path."""
    name = "d" * 250
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(18):
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert [] == list(reading.files_in(tmp_path, unexpected))


@pytest.mark.parametrize(("count", "items"), [(0, 5), (3, 0), (3, 2), (3, 3), (3, 100)])
def test_a_sample_has_as_many_as_there_are(count: int, items: int) -> None:
    """Each at most once, and all are counted."""
    chosen, seen = reading.sample(range(items), count)
    assert (min(count, items), items) == (len(set(chosen)), seen)


def test_every_item_can_be_in_a_sample() -> None:
    """Also the last one."""
    met: set[int] = set()
    for _ in range(1000):
        met.update(reading.sample(range(10), 3)[0])
    assert set(range(10)) == met


def test_contents_are_compared_to_their_ends(tmp_path: Path) -> None:
    """The same, another byte at the end of the second block, one that is shorter."""
    one, other = tmp_path / "one", tmp_path / "other"
    content = os.urandom((1 << 20) + 7)
    one.write_bytes(content)
    for changed, expected in ((content, False), (content[:-1] + b"\0", content[-1:] != b"\0"), (content[:-1], True)):
        other.write_bytes(changed)
        assert expected == reading.differs(one, other)
    assert len(content) == reading.read_whole(one)


def test_a_file_that_changed_is_not_compared(tmp_path: Path) -> None:
    """Another size or another time, another kind, or gone; parts of a second do not count."""
    file = tmp_path / "file"
    file.write_text("text")
    os.utime(file, (1000.25, 1000.25))
    assert reading.is_unchanged(file, File("file", 4, 1000))
    assert not reading.is_unchanged(file, File("file", 5, 1000))
    assert not reading.is_unchanged(file, File("file", 4, 1001))
    (tmp_path / "link").symlink_to(file)
    assert not reading.is_unchanged(tmp_path / "link", File("link", 4, 1000))
    assert not reading.is_unchanged(tmp_path / "gone", File("gone", 4, 1000))


@pytest.mark.parametrize(
    ("ago", "faults", "unproven"),
    [(60.0, 0, 0), (-60.0, 0, 0), (2 * 86400.0, 1, 0), (-2 * 86400.0, 0, 1), (None, 0, 1)],
)
def test_the_age_of_an_image(tmp_path: Path, ago: float | None, faults: int, unproven: int) -> None:
    """A last write that is still to come, or that is not known, shows nothing: a replica may have stopped long ago."""
    last_write = None if ago is None else time.time() - ago
    found = Found(age=Age(last_write, 0, 1024, None, whole=True, own=False))
    drill._check_age(parsed(tmp_path), Drill(newer_than=86400.0), found)
    assert (faults, unproven) == (len(found.faults), len(found.unproven))
    assert found.passed == (ago is not None and abs(ago) < 86400)


@pytest.mark.parametrize("content", ["", "cut", "longer than it was"])
@pytest.mark.parametrize("ago", [0.0, -1000.0])
def test_a_file_of_another_size_is_a_fault_where_its_source_is_older(tmp_path: Path, content: str, ago: float) -> None:
    """Emptied or cut off after it was backed up: with a later time in the volume, or with the time that it had."""
    source, folder, found = tmp_path / "home", tmp_path / "volume/home", Found()
    for place in (source, folder):
        place.mkdir(parents=True)
        (place / "good").write_text("content")
        os.utime(place / "good", (1, 1))
        (place / "bad").write_text("content")
        os.utime(place / "bad", (time.time() + ago,) * 2)
    (folder / "bad").write_text(content)
    times = (time.time() + 10,) * 2 if ago == 0.0 else ((source / "bad").stat().st_mtime,) * 2
    os.utime(folder / "bad", times)

    drill.compare(source, tmp_path / "volume", "home", 10, found, None if ago == 0.0 else time.time() + 10)

    assert [f"bad in the volume has not the size of {source / 'bad'}, which has not changed since"] == found.faults
    assert 1 == found.compared


def test_a_source_that_changed_since_is_no_fault(tmp_path: Path) -> None:
    """An older copy of it, and one whose source was changed without that its time shows it."""
    source, folder, found = tmp_path / "home", tmp_path / "volume/home", Found()
    for place, content in ((source, "changed"), (folder, "as it was")):
        place.mkdir(parents=True)
        for name in ("old", "time"):
            (place / name).write_text(content)
    os.utime(folder / "old", (1, 1))
    os.utime(source / "time", (1, 1))
    os.utime(folder / "time", (1, 1))
    for before in (None, time.time() - 1000):
        drill.compare(source, tmp_path / "volume", "home", 10, found, before)
    assert [] == found.faults


def test_a_source_that_gives_nothing_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files that cannot be read any more, nor files that change meanwhile, count as compared."""
    for place in ("home", "volume/home"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "file").write_text("content")
        os.utime(tmp_path / place / "file", (1, 1))
    source, found = tmp_path / "home", Found()

    def lost(path: Path, other: Path) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(other))

    def rewritten(path: Path, other: Path) -> bool:
        other.write_text("other content")
        return True

    for differs in (lost, rewritten):
        monkeypatch.setattr(reading, "differs", differs)
        drill.compare(source, tmp_path / "volume", "home", 10, found)

    assert ([], 0, 2) == (found.faults, found.compared, len(found.unproven))
    assert not found.passed

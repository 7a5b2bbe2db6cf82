"""A path is followed once, part by part, as the kernel follows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.system.path_walk import walk


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Whatever a walk meets, and wherever it is given up."""
    before = os.listdir("/proc/self/fd")
    yield
    assert before == os.listdir("/proc/self/fd")


def end_of(path: Path) -> tuple[int, int]:
    """Which file the walk ends at."""
    *_, last = ((part.found.st_dev, part.found.st_ino) for part in walk(path))
    return last


@pytest.mark.parametrize(
    "target", [".", "..", "/", "real", "./real/../real", "real/inner", "../{name}/real", "{folder}/real", "second"]
)
def test_it_ends_where_the_kernel_ends(tmp_path: Path, target: str) -> None:
    """Through links of every form, alone and with more behind them."""
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "second").symlink_to("real")
    (tmp_path / "link").symlink_to(target.format(name=tmp_path.name, folder=tmp_path))
    for path in (tmp_path / "link", tmp_path / "link/.."):
        found = path.stat()
        assert (found.st_dev, found.st_ino) == end_of(path)


def test_a_circle_ends(tmp_path: Path) -> None:
    """As the kernel ends it."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links") as caught:
        list(walk(tmp_path / "one"))
    assert errno.ELOOP == caught.value.errno


def test_a_link_is_shown_before_it_is_followed(tmp_path: Path) -> None:
    """Who walks can stop there: nothing behind it is touched."""
    (tmp_path / "link").symlink_to("nowhere")
    seen = []
    for part in walk(tmp_path / "link/more"):
        seen.append(part.name)
        if part.is_link:
            break
    assert "link" == seen[-1]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    """With the mode that was asked for, where the umask allows it."""
    list(walk(tmp_path / "a/b", make=0o700))
    assert 0o700 == (tmp_path / "a/b").stat().st_mode & 0o777


def test_what_is_renamed_on_the_way_changes_nothing(tmp_path: Path) -> None:
    """The next part is looked up in the folder that was opened, wherever that is now."""
    (tmp_path / "store/inner").mkdir(parents=True)
    (tmp_path / "other/inner").mkdir(parents=True)
    right = (tmp_path / "store/inner").stat().st_ino
    for part in walk(tmp_path / "store/inner"):
        if part.name == "store":
            (tmp_path / "store").rename(tmp_path / "aside")
            (tmp_path / "other").rename(tmp_path / "store")
        last = part.found.st_ino
    assert right == last

"""A path that no other user can change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lukshook.system import safe_folders
from lukshook.system.safe_folders import IsLink, Unsafe

ROOT = os.geteuid() == 0


def place(path: Path) -> Path:
    """Where the kernel says that the opened folder lies."""
    with safe_folders.opened(path) as folder:
        assert os.path.samestat(os.stat(folder.inside), os.fstat(folder.descriptor))
        return folder.path


@pytest.mark.parametrize(
    ("mode", "safe"),
    [
        (0o755, True),
        (0o700, True),
        (0o1777, True),
        (0o1775, True),
        (0o777, False),
        (0o757, False),
        (0o2777, False),
        (0o775, not ROOT),
        (0o770, not ROOT),
    ],
)
@pytest.mark.parametrize("below", ["mnt", "more/mnt"])
def test_who_can_write_to_a_folder_above(tmp_path: Path, mode: int, safe: bool, below: str) -> None:
    """None but root and us, or in a sticky folder; an ordinary user's group is trusted."""
    shared = tmp_path / "shared"
    (shared / below).mkdir(parents=True)
    shared.chmod(mode)

    if safe:
        assert shared / below == place(shared / below)
    else:
        with pytest.raises(Unsafe, match=f"^{shared} can be written to by "):
            place(shared / below)


def test_the_mode_of_the_folder_itself_does_not_matter(tmp_path: Path) -> None:
    """Who can write into it cannot move it."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt").chmod(0o777)

    assert tmp_path / "mnt" == place(tmp_path / "mnt")


def test_links_above_are_followed_and_the_folder_itself_is_none(tmp_path: Path) -> None:
    """Absolute ones, relative ones, one after the other; not in a circle."""
    (tmp_path / "real/mnt").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("./real/../absolute")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "last").symlink_to("real/mnt")

    assert tmp_path / "real/mnt" == place(tmp_path / "absolute/mnt") == place(tmp_path / "relative/mnt")
    with pytest.raises(OSError, match="Too many levels"):
        place(tmp_path / "circle/mnt")
    with pytest.raises(IsLink):
        place(tmp_path / "last")


def test_a_link_into_a_folder_that_all_can_write_to_is_unsafe(tmp_path: Path) -> None:
    """It is the folders on the real way that count, too."""
    (tmp_path / "shared/mnt").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "link").symlink_to("shared")

    with pytest.raises(Unsafe, match=f"^{tmp_path}/shared can be written to by all"):
        place(tmp_path / "link/mnt")


def test_missing_folders_are_made_on_request(tmp_path: Path) -> None:
    """With the mode that is asked for, those above as well."""
    with pytest.raises(FileNotFoundError):
        place(tmp_path / "a/b")
    with safe_folders.opened(tmp_path / "a/b", make=0o750):
        pass

    assert [0o750, 0o750] == [(tmp_path / part).stat().st_mode & 0o777 for part in ("a", "a/b")]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Neither at the end nor on the way."""
    (tmp_path / "file").touch()

    for path in (tmp_path / "file", tmp_path / "file/mnt"):
        with pytest.raises(NotADirectoryError):
            place(path)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Whatever the end is."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    (tmp_path / "shared/mnt").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o777)
    before = os.listdir("/proc/self/fd")
    place(tmp_path / "mnt")
    for path, error in (("link", IsLink), ("gone/mnt", OSError), ("shared/mnt", Unsafe)):
        with pytest.raises(error):
            place(tmp_path / path)

    assert before == os.listdir("/proc/self/fd")

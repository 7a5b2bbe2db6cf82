"""What may lie where the image should, and does not count as one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lukshook.errors import BadConfiguration
from lukshook.image_file import open_image
from lukshook.layers.base import write_out


def lay(what: str, place: Path) -> Path:
    """Put something that is no image at *place*; where it lies."""
    if what == "link":
        place.with_suffix(".real").touch()
        place.symlink_to(place.with_suffix(".real"))
    elif what == "folder":
        place.mkdir()
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "device of characters":
        return Path("/dev/zero")
    return place


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("link", "is a symbolic link"),
        ("folder", "is a folder|neither a regular file"),
        ("pipe", "neither a regular file"),
        ("device of characters", "neither a regular file"),
    ],
)
def test_what_is_no_image_is_refused_at_once(tmp_path: Path, what: str, said: str, writable: bool) -> None:
    """Exit status 78, with no descriptor left open and nobody waited for at a pipe."""
    place = lay(what, tmp_path / "image")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BadConfiguration, match=said):
        open_image(place, writable=writable)
    assert before == os.listdir("/proc/self/fd")


def test_a_socket_is_refused(tmp_path: Path) -> None:
    """It is not a file either: exit status 78."""
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "image"))
        with pytest.raises(BadConfiguration, match="neither a regular file"):
            open_image(tmp_path / "image", writable=True)


def test_a_file_that_cannot_be_written_out() -> None:
    """As os.fsync would say it."""
    with Path("/dev/null").open() as file, pytest.raises(OSError, match="Invalid argument"):
        write_out(file.fileno(), "/dev/null")

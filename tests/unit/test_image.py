"""What may lie where the image should, and does not count as one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lukshook.errors import BadConfiguration, Refused, Unavailable
from lukshook.layers.base import write_out
from lukshook.store import image_file
from lukshook.store.image_file import open_image


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


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "device of characters"])
def test_what_is_no_image_is_never_opened(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a tape rewinds it, and opening a watchdog starts it: only O_PATH opens nothing."""
    place, modes, real = lay(what, tmp_path / "image"), [], os.open

    def noted(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if os.fspath(path) == place.name:
            modes.append(flags & os.O_PATH)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", noted)
    with pytest.raises(BadConfiguration):
        open_image(place, writable=True)

    assert [os.O_PATH] == modes


def test_the_image_stays_the_same_whatever_its_path_leads_to(tmp_path: Path) -> None:
    """Everything that is made of an open image is of that very file."""
    place = tmp_path / "image"
    place.write_bytes(b"ours")
    with open_image(place, writable=True) as image:
        place.rename(tmp_path / "aside")
        place.write_bytes(b"another")
        second = image.again(writable=True)

        assert b"ours" == os.pread(second, 10, 0)
        assert 4 == image.size
        assert not image.is_named("image")
        assert image.is_named("aside")
        image.remove("image")
        assert b"another" == place.read_bytes()
        os.close(second)


@pytest.mark.roots
@pytest.mark.parametrize("absolute", [True, False])
def test_links_of_others_above_the_image_are_refused(tmp_path: Path, absolute: bool) -> None:
    """Root follows its own links to the store. Another user could turn a link to any folder at any moment."""
    store, link = tmp_path / "store", tmp_path / "link"
    store.mkdir()
    (store / "image").touch()
    link.symlink_to(store if absolute else "store")

    with open_image(link / "image", writable=True) as image:
        assert image.is_named("image")

    os.chown(link, 65534, 65534, follow_symlinks=False)
    for opening in (lambda: open_image(link / "image", writable=True), lambda: image_file.look(link / "image")):
        with pytest.raises(Refused, match="another user owns"):
            opening()


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    """As the kernel does it."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Unavailable, match="symbolic links"):
        open_image(tmp_path / "one/image", writable=True)


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


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm")
def test_a_link_in_dev_leads_to_a_device_or_nowhere(tmp_path: Path) -> None:
    """Users can make links in /dev/shm: none of them leads to a file."""
    (tmp_path / "image").write_bytes(bytes(512))
    link = Path(f"/dev/shm/{tmp_path.name}-{os.getpid()}")
    link.symlink_to(tmp_path / "image")
    try:
        assert link == image_file.node_of(link)
        with pytest.raises(BadConfiguration, match="is a symbolic link"):
            open_image(link, writable=False)
    finally:
        link.unlink()

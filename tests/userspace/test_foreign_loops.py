"""The cases of foreign_loop_cases.py with the userspace engine, and what an ordinary user sees."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lukshook.system import loops
from support.foreign_loop_cases import (
    attached,
    test_another_name_of_the_image_does_not_hide_it,  # noqa: F401 - pytest finds them here
    test_the_image_is_not_opened_beside_it,  # noqa: F401
)

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("losetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4"),
]
NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """With the rights of an ordinary user."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_an_ordinary_user_sees_it_by_its_name() -> None:
    """The device does not answer him, so its name in sysfs has to do: that of this file, also by another path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # that of a test is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        image = folder / "image"
        image.write_bytes(bytes(4096))
        (folder / "other").hardlink_to(image)
        (folder / "unlike").write_bytes(bytes(4096))
        with image.open("rb") as opened, attached(folder / "other") as node, attached(folder / "unlike"):
            assert [node] == [loop.node for loop in loops.on_open(opened.fileno())]
            with as_nobody():
                found = loops.on_open(opened.fileno())

    assert [loops.Loop(node, str(folder / "other"))] == list(found)

"""A tree to back up, a volume for it, and the watch over what a host leaves behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.host_volume import HostVolume, build, kernel_state

FILES = 200 if "LUKSHOOK_GUEST" in os.environ else 2000


@pytest.fixture(name="tree", scope="session")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What there is to back up."""
    return plant(tmp_path_factory.mktemp("source") / "tree", FILES)


def plant(root: Path, files: int) -> Path:
    """Make *files* of many names and sizes, folders, symbolic and hard links, modes and times."""
    for number in range(files):
        file = root / f"folder {number % 40}" / f"{number:04}-ä \n.dat"[: 8 + number % 3]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(number % 1500))
        os.utime(file, (1_600_000_000, 1_600_000_000 + number))
    first = next((root / "folder 0").iterdir())
    (root / "link").symlink_to("folder 1")
    (root / "dangling").symlink_to("nowhere")
    (root / "hard").hardlink_to(first)
    (root / "secret").mkdir(mode=0o700)
    (root / "secret/script").write_text("#!/bin/sh\n")
    (root / "secret/script").chmod(0o4711)
    return root


@pytest.fixture(name="house")
def _house(tmp_path: Path, tree: Path) -> HostVolume:
    """A house whose volume has been created, and is closed."""
    return build(HostVolume(tmp_path, tree=tree))


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount, mapping or loop device is there after a test that was not there before it."""
    before = kernel_state(tmp_path)
    yield
    assert before == kernel_state(tmp_path)

"""A tree to back up, a volume for it, and the watch over what a host leaves behind."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts.house import House, kernel_state

FILES = 200 if "LUKSHOOK_GUEST" in os.environ else 2000


@pytest.fixture(name="tree", scope="session")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of many names and sizes, folders, symbolic and hard links, modes and times."""
    root = tmp_path_factory.mktemp("source") / "tree"
    for number in range(FILES):
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
def _house(tmp_path: Path, tree: Path) -> House:
    """A house whose volume has been created, and is closed."""
    house = House(tmp_path, tree)
    house.mountpoint.mkdir()
    house.key.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    house.key.chmod(0o600)
    house.config.write_text(
        "[volumes.offsite]\n"
        f'image = "{tmp_path}/backup.img"\n'
        f'mountpoint = "{house.mountpoint}"\n'
        'size = "1GiB"\n'
        'fill = "sparse"\n'
        f'key = "file:{house.key}"\n'
    )
    made = house.lukshook("create", "offsite")
    assert 0 == made.returncode, made.stderr
    assert house.closed_and_bare()
    return house


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount, mapping or loop device is there after a test that was not there before it."""
    before = kernel_state(tmp_path)
    yield
    assert before == kernel_state(tmp_path)

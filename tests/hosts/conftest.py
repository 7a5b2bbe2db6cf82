"""A tree to back up, a volume for it, and the watch over what a host leaves behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.host_volume import HostVolume, build, kernel_state

DEBIAN_BORGMATIC = "/usr/bin/borgmatic"
FILES = 200 if "LUKSHOOK_GUEST" in os.environ else 2000


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "borgmatic_1_7: about Debian 12's; no test where this Debian has a newer one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    old = [item for item in items if item.get_closest_marker("borgmatic_1_7")]
    if old and has_newer_borgmatic():
        config.hook.pytest_deselected(items=old)
        items[:] = [item for item in items if item not in old]


def has_newer_borgmatic() -> bool:
    """Whether this Debian's borgmatic is a newer one than Debian 12's, whose cases then have nothing to run."""
    if not Path(DEBIAN_BORGMATIC).exists():
        return False
    told = subprocess.run([DEBIAN_BORGMATIC, "--version"], capture_output=True, text=True, check=True).stdout
    return not told.startswith("1.7")


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

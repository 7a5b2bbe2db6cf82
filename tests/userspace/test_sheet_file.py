"""A volume whose recovery sheet goes into a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that nothing is there of; its store is a folder of its own."""
    (tmp_path / "store").mkdir(mode=0o700)
    volume = CliVolume(
        tmp_path / "store", "userspace", {"LUKSHOOK_RUN_DIR": str(tmp_path / "run")} if os.geteuid() else {}
    )
    volume.prepare()
    yield from closing(volume)


def test_a_new_volume_with_its_sheet_in_a_file(fresh: CliVolume, tmp_path: Path) -> None:
    """The key is there and nowhere else; the sheet that is printed again is the same."""
    file = tmp_path / "sheet.txt"
    out = fresh.do("create", NAME, "--sheet", str(file))

    key = fresh.key.read_text().strip()
    assert f"the recovery sheet, with the key, is in {file}: print it" in out
    assert key not in out
    assert f'    echo "{key}" | base64 --decode | cryptsetup luksOpen ' in file.read_text()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert fresh.do("sheet", NAME, "--show-key") == file.read_text() + "\n"


@pytest.mark.parametrize("options", [("--show-key",), ("--sheet", "sheet.txt")])
def test_a_key_that_is_read_once(fresh: CliVolume, options: tuple[str, ...]) -> None:
    """It would be missing on the sheet when the volume is made already: refused before anything is."""
    fresh.configure(key="stdin")

    assert "is read once" in fresh.refusal(64, "create", NAME, *options)

    assert not fresh.image.exists()

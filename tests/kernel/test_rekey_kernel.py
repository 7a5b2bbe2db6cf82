"""A new volume key, with the kernel engine; and where the host is lost in the middle."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import rekey_cases
from support.command_fault_cases import key_in
from support.key_volume import opens
from support.rekey_cases import (  # noqa: F401
    backed_up,
    check_whole,
    stopped,
    test_a_store_that_answers_otherwise,
    test_an_older_image_or_state_is_not_continued,
    test_interrupted_nothing_opens_it_and_the_same_command_goes_on,
    test_killed_anywhere,
    test_other_keys_go_only_if_that_is_said,
)
from support.volume import NAME, CliVolume, closing


def test_old_keys_open_nothing_with_dm_crypt(volume: CliVolume) -> None:
    """As with the userspace engine; by default too."""
    rekey_cases.test_old_keys_and_headers_open_nothing(volume)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[CliVolume]:
    """A new volume on a block device."""
    disk = tmp_path / "disk"
    with disk.open("xb") as file:
        file.truncate(64 << 20)
    attached = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True)
    node = attached.stdout.strip()
    volume = CliVolume(tmp_path / "house")
    volume.prepare()
    volume.configure(image=node, size=None)
    volume.do("create", NAME)
    yield from closing(volume)
    subprocess.run(["losetup", "--detach", node], check=True)


@pytest.mark.slow
def test_an_image_that_is_a_block_device(device: CliVolume) -> None:
    """Interrupted and continued as in a file; somebody who has the device mapped keeps it from beginning."""
    content, old = backed_up(device), key_in(device.key)
    node = tomllib.loads(device.config.read_text())["volumes"][NAME]["image"]
    with mapped(node):
        assert "is locked" in device.refusal(69, "key", "rekey", NAME, "--keep-key")
    stopped(device)
    device.do("key", "rekey", NAME)
    check_whole(device, content)
    assert not opens(Path(node), old)


@contextmanager
def mapped(node: str) -> Iterator[None]:
    """Another mapping lies on the device."""
    sectors = subprocess.run(["blockdev", "--getsz", node], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["dmsetup", "create", "other", "--table", f"0 {sectors} linear {node} 0"], check=True)
    try:
        yield
    finally:
        subprocess.run(["dmsetup", "remove", "other"], check=True)


@pytest.mark.slow
def test_the_image_alone_can_be_completed_elsewhere(volume: CliVolume) -> None:
    """This host is lost in the middle: cryptsetup continues with the header on the store, and all is there."""
    content = backed_up(volume)
    stopped(volume)
    other = volume.copy_to(volume.folder / "elsewhere")
    for file in other.state_folder.iterdir():
        file.unlink()
    key = subprocess.run(["base64", "--decode", other.key], check=True, capture_output=True).stdout
    for words in (["repair"], ["reencrypt", "--resume-only", "--force-offline-reencrypt"]):
        argv = ["cryptsetup", words[0], "--batch-mode", "--key-file=-", *words[1:], str(other.image)]
        subprocess.run(argv, input=key, check=True, capture_output=True)

    other.do("trust", NAME)
    other.do("before-backup", NAME)
    assert content == (other.data / "file").read_bytes()
    other.do("after-backup", NAME)
    other.remove()

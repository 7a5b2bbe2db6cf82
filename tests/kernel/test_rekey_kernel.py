"""A new volume key, with the kernel engine; and where the host is lost in the middle."""

from __future__ import annotations

import subprocess

import pytest

from support import rekey_cases
from support.rekey_cases import (  # noqa: F401
    backed_up,
    stopped,
    test_a_store_that_answers_otherwise,
    test_an_image_from_before_is_not_continued,
    test_interrupted_nothing_opens_it_and_the_same_command_goes_on,
    test_killed_anywhere,
    test_other_keys_go_only_if_that_is_said,
)
from support.volume import NAME, CliVolume


def test_old_keys_open_nothing_with_dm_crypt(volume: CliVolume) -> None:
    """As with the userspace engine; by default too."""
    rekey_cases.test_old_keys_and_headers_open_nothing(volume)


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

"""A new volume key, with the kernel engine; and where the host is lost in the middle, or its power."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import rekey_cases
from support.guest import Guest
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

JOB = Path(__file__).parents[1] / "support/power_cut_job.py"


@pytest.mark.slow
def test_old_keys_open_nothing_with_dm_crypt(volume: CliVolume) -> None:
    """As with the userspace engine, which does it by default."""
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


@pytest.mark.outside
@pytest.mark.needs("linux.uml")
def test_power_cuts_while_the_volume_key_is_replaced(
    tmp_path: Path, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """At random moments; a fresh kernel completes it and finds every file whole."""
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    (share / "notes").write_text("")
    words = [sys.executable, str(JOB)]
    with Guest(disk=disk, share=share) as guest:
        assert 0 == guest.run([*words, "prepare-rekey", "volume"], timeout=600).returncode
        guest.run(["sync"])
        for _ in range(rounds(1, 40)):
            told = (share / "notes").read_text().count("begun to rekey")
            job = guest.start([*words, "rekey", "volume"])
            end = time.monotonic() + 300
            while (share / "notes").read_text().count("begun to rekey") == told and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            assert job.returncode is None, job.stderr
            guest.power_cut()
            guest.boot()
            done = guest.run([*words, "complete-rekey", "volume"], timeout=600)
            assert 0 == done.returncode, f"{done.stdout}{done.stderr}"
    notes = (share / "notes").read_text()
    print(f"{notes.count('middle')} cuts while data was on its way, {notes.count('between')} at other moments")
    assert "middle" in notes or "between" in notes

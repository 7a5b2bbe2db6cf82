"""The cases of ledger_cases.py with the kernel engine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ledger_cases import (  # noqa: F401 - pytest finds them here
    test_a_close_that_could_not_be_noted_is_not_done,
    test_a_new_volume_is_known_from_the_beginning,
    test_a_read_only_opening_changes_nothing,
    test_a_read_only_opening_sees_that_the_image_is_newer,
    test_a_refused_trust_leaves_the_ledger_as_it_is,
    test_a_restore_gets_what_is_intact,
    test_a_state_that_is_older_than_the_image_knows_no_piece,
    test_an_open_volume_is_noted_as_being_written,
    test_an_opening_refuses_an_image_that_is_damaged_all_over,
    test_damage_is_found_while_the_volume_is_open,
    test_damage_outlives_the_next_backup,
    test_every_change_of_the_store_is_found,
    test_honest_life,
    test_no_ledger,
    test_noise_in_the_count_makes_no_piece_unknown,
    test_what_a_close_reads_back_is_in_the_ledger,
    test_without_the_option_nothing_counts_as_known,
    test_wrong_shares,
)
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume that was created with a ledger."""
    yield from created(tmp_path_factory.mktemp("template"), "kernel", ledger=True)


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A copy of it, closed."""
    yield from copied(template, tmp_path)


@pytest.fixture
def in_memory(volume: CliVolume) -> Iterator[CliVolume]:
    """The volume, with its state on a tmpfs, which has no direct I/O."""
    kept = volume.state_folder.with_name("kept")
    volume.state_folder.rename(kept)
    volume.state_folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "state", volume.state_folder], check=True)
    shutil.copytree(kept, volume.state_folder, dirs_exist_ok=True)
    try:
        yield volume
    finally:
        subprocess.run(["umount", volume.state_folder], check=True)


def test_a_state_folder_without_direct_io(in_memory: CliVolume) -> None:
    """What was written is recorded all the same: otherwise a warning says so."""
    for number in range(2):
        in_memory.do("before-backup", NAME)
        (in_memory.data / "file").write_bytes(b"%d" % number)
        assert "" == in_memory.lukshook("after-backup", NAME).stderr
        assert "all intact" in in_memory.do("verify", NAME)

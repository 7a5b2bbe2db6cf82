"""The cases of copy_cases.py with the kernel engine, and the kinds of file systems that dislike a twin."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.copy_cases import (  # noqa: F401 - pytest finds them here
    place,
    snapshot,
    test_a_copy_from_before_a_key_was_changed_opens,
    test_a_copy_is_open_beside_the_volume,
    test_a_copy_of_an_open_volume_warns,
    test_a_copy_that_was_left_by_a_kill_is_not_in_the_way,
    test_a_copy_that_was_removed_meanwhile_closes,
    test_a_copy_without_its_header_opens_with_the_backup,
    test_a_dry_run_opens_nothing,
    test_a_folder_with_files_is_refused,
    test_a_header_of_the_same_uuid_with_another_volume_key_is_refused,
    test_a_volume_whose_image_is_gone_closes_where_it_was_only_read,
    test_a_wrong_key_leaves_nothing_open,
    test_an_image_in_use_is_not_opened_twice,
    test_an_image_of_a_link_or_folder_is_refused,
    test_an_older_copy_is_shown_and_nothing_changes,
    test_another_volume_is_no_copy,
    test_closing_what_is_not_open_is_fine,
    test_options_of_a_copy_need_a_folder,
    test_two_copies_are_open_at_once,
)
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")


@pytest.mark.needs("mkfs.xfs")
def test_a_copy_of_an_xfs_is_open_beside_the_volume(tmp_path: Path) -> None:
    """The kernel mounts no second file system of the same UUID unless it is told to."""
    subprocess.run(["modprobe", "xfs"], check=False)
    volume = CliVolume(tmp_path)
    volume.prepare()
    volume.configure(filesystem="xfs", size="400MiB")
    for _ in closing(volume):
        volume.do("create", NAME)
        copy = snapshot(volume)
        volume.do("before-backup", NAME)
        volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)))
        shown = (place(volume) / "data").is_dir()
        volume.do("close", NAME, "--at", str(place(volume)))
        volume.do("after-backup", NAME)
        assert shown

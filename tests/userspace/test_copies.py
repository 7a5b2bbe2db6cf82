"""The cases of copy_cases.py with the userspace engine, as root and as an ordinary user."""

from __future__ import annotations

import pytest

from support.copy_cases import (  # noqa: F401 - pytest finds them here
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

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")

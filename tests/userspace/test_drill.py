"""The cases of drill_cases.py with the userspace engine, as root and as an ordinary user."""

from __future__ import annotations

import pytest

from support.drill_cases import (  # noqa: F401 - pytest finds them here
    test_a_backup_goes_before_a_drill,
    test_a_configured_source_that_is_gone_is_no_drill,
    test_a_copy_in_an_overlay_is_a_copy,
    test_a_drill_leaves_the_line_of_the_last_backup,
    test_a_drill_that_was_killed_is_in_nobodys_way,
    test_a_dry_run_of_a_drill_changes_nothing,
    test_a_header_backup_from_before_a_key_was_changed_is_found,
    test_a_healthy_image_passes_and_stays_as_it_is,
    test_a_missing_header_backup_is_found,
    test_a_missing_second_key_is_found,
    test_a_place_behind_a_link_is_not_compared,
    test_a_replica_that_stopped_is_found,
    test_a_rolled_back_image_is_found,
    test_a_volume_without_content_proves_nothing,
    test_a_wrong_second_key_is_found,
    test_an_image_by_another_name_is_still_the_image,
    test_an_image_that_a_person_looks_at_is_not_drilled,
    test_an_image_without_its_header_passes,
    test_an_open_volume_is_drilled_by_a_copy,
    test_files_are_read_where_nothing_else_is_asked_for,
    test_files_that_changed_since_are_no_fault,
    test_one_damaged_file_is_found,
    test_options_that_make_no_sense_are_refused,
    test_shares_of_a_key_are_tried_like_any_other_key,
    test_the_configured_check_decides,
)

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")

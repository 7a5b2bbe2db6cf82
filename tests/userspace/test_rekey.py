"""A new volume key, with the userspace engine."""

from __future__ import annotations

import pytest

from support.rekey_cases import (  # noqa: F401
    test_a_copy_that_was_interrupted_before_follows,
    test_a_signal_stops_it_in_time_and_it_goes_on,
    test_a_store_that_answers_otherwise,
    test_a_store_without_room_for_the_holes,
    test_a_volume_that_is_open_stays_as_it_is,
    test_an_older_image_or_state_is_not_continued,
    test_interrupted_nothing_opens_it_and_the_same_command_goes_on,
    test_killed_anywhere,
    test_ledger_and_copies_follow,
    test_old_keys_and_headers_open_nothing,
    test_other_keys_go_only_if_that_is_said,
)

pytestmark = pytest.mark.needs("qemu-storage-daemon", "fuse2fs", "mkfs.ext4", "cryptsetup")

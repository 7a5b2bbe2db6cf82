"""The cases of foreign_loop_cases.py with the kernel engine."""

from __future__ import annotations

import pytest

from support.foreign_loop_cases import (  # noqa: F401 - pytest finds them here
    test_another_name_of_the_image_does_not_hide_it,
    test_the_image_is_not_opened_beside_it,
)

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")

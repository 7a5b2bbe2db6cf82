"""The cases of resize_cases.py, with the userspace engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.resize_cases import (  # noqa: F401 - pytest finds them here
    pytest_generate_tests,
    test_nothing_is_cut_off_a_file_system_that_has_errors,
    test_what_is_refused_has_changed_nothing,
    test_whatever_is_put_in_the_place_of_the_image_stays_as_it_is,
    volume_of_80,
)
from support.volume import CliVolume

ENGINE = "userspace"
pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "resize2fs")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A closed volume of 80 MiB with a file in it; the tests leave it as it was."""
    yield from volume_of_80(tmp_path_factory.mktemp("resize"), ENGINE)

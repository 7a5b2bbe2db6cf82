"""The exchanges of image_exchange_cases.py, on real dm-crypt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.command_fault_cases import volume_with_a_file
from support.image_exchange_cases import pytest_generate_tests, test_whatever_lies_there_instead  # noqa: F401 - pytest finds them here
from support.volume import CliVolume

ENGINE = "kernel"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume with a file that was backed up; the tests leave it closed."""
    yield from volume_with_a_file(tmp_path_factory.mktemp("exchanges"), ENGINE)

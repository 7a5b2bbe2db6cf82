"""The faults of command_fault_cases.py, with dm-crypt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.command_fault_cases import (  # noqa: F401 - pytest finds them here
    pytest_generate_tests,
    seen,
    test_whatever_goes_wrong,
    volume_with_a_file,
)
from support.volume import CliVolume

ENGINE = "kernel"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume with a file that was backed up; the tests leave it closed."""
    yield from volume_with_a_file(tmp_path_factory.mktemp("faults"), ENGINE)

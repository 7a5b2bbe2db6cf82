"""The faults of fault_cases.py, with the userspace engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import Bench
from fault_cases import (  # noqa: F401 - pytest finds them here
    test_a_volume_is_made_whole_or_not_at_all,
    test_closing_goes_on_where_it_stopped,
    test_opening_leaves_nothing_when_it_goes_wrong,
    test_putting_right_can_go_wrong_too,
    volume_with_a_file,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume with a file that was backed up; the tests leave it closed."""
    yield from volume_with_a_file(tmp_path_factory.mktemp("faults"), "userspace")

"""The exchanges of exchange_cases.py, with the userspace engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import NAME, Bench
from exchange import exchange, undo
from exchange_cases import (  # noqa: F401 - pytest finds them here
    kinds,
    pytest_generate_tests,
    test_whatever_lies_there_instead,
)
from fault_cases import see_next_run, volume_with_a_file

ENGINE = "userspace"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume with a file that was backed up; the tests leave it closed."""
    yield from volume_with_a_file(tmp_path_factory.mktemp("exchanges"), ENGINE)


def test_closing_waits_for_nothing_that_lies_there_instead(bench: Bench) -> None:
    """The volume is closed, and the loss is reported: what was written is not where the next opening would look."""
    for what in kinds():
        if what.endswith("and back"):
            continue
        bench.do("before-backup", NAME)
        (bench.folder / "victim").write_bytes(bench.image.read_bytes())
        exchange(bench, what, bench.folder / "victim")

        bench.refusal(74, "after-backup", NAME)

        assert bench.is_bare()
        undo(bench)
        see_next_run(bench)

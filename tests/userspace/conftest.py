"""A volume of the userspace engine, of whoever runs the tests: root's stack, or an ordinary user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.volume import Bench, closing, created


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A volume that was created once; tests work on copies."""
    yield from created(tmp_path_factory.mktemp("template"), "userspace")


@pytest.fixture
def bench(template: Bench, tmp_path: Path) -> Iterator[Bench]:
    """A volume that was created, and is closed."""
    yield from closing(template.copy_to(tmp_path))

"""The role for Ansible can be copied alone, so it has its own copies of files of other examples."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {"lukshook-verify@.service": "systemd", "lukshook-verify@.timer": "systemd", "lukshook.rules.yml": "monitoring"}


@pytest.mark.parametrize(("name", "example"), FILES.items())
def test_a_copy_is_as_its_origin(name: str, example: str) -> None:
    copy = EXAMPLES / "ansible/roles/lukshook/files" / name
    assert (EXAMPLES / example / name).read_bytes() == copy.read_bytes()

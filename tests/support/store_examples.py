"""The examples of stores: their files, and the command that their unit runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def text(example: str, file: str) -> str:
    """A file of an example."""
    return (EXAMPLES / example / file).read_text()


def backup(example: str) -> list[str]:
    """What its service runs, as a user would type it."""
    found = re.search(r"^ExecStart=/usr/local/bin/(.*)$", text(example, "backup.service"), re.MULTILINE)
    assert found
    return shlex.split(found[1])


def replaced(content: str, *changes: tuple[str, str]) -> str:
    """*content* with every change made; each has to be there to be changed."""
    for old, new in changes:
        assert old in content, old
        content = content.replace(old, new)
    return content

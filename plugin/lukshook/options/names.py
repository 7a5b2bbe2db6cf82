"""How volumes and their copies can be called."""

from __future__ import annotations

import re

from lukshook.layers import dmcrypt

LONGEST_NAME = dmcrypt.longest_volume()
PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(PATTERN)


def is_name(text: str) -> bool:
    """Whether a volume can be called *text*: a mapping, files and metrics have that in their names."""
    return len(text) <= LONGEST_NAME and bool(_NAME.fullmatch(text))

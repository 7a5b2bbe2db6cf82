"""What `key rekey` refuses before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from lukshook.errors import Usage
from lukshook.system.secret import Secret
from lukshook.volume import rekey
from support.library_volume import parsed, site_in


@pytest.mark.parametrize("source", ["stdin", "fd:3"])
def test_a_key_that_can_be_read_only_once_is_refused(source: str, tmp_path: Path) -> None:
    """The second reading found nothing, and said that this is no key."""
    site = site_in(tmp_path, lambda volume: Secret(b""), print)
    asked = rekey.Asked(keep_key=True, drop_other_keys=False, verify=print, progress=lambda done, total: None)

    with pytest.raises(Usage, match="is read once, and key rekey reads it twice"):
        rekey.rekey(parsed(tmp_path, key=source), site, asked)

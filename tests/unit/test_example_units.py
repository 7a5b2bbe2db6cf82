"""The units that verify a volume, and tell of late ones: systemd understands every line.

What verifies sees an open volume as it is.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/systemd"
UNITS = tuple(f"lukshook-{name}.{kind}" for name in ("verify@", "late", "overdue") for kind in ("service", "timer"))
#: Options that give a service mounts of its own (systemd.exec(5)): a volume would seem to be mounted read-only in it.
OF_MOUNTS = re.compile(r"^(Private(Tmp|Devices|Mounts|Users)|Protect\w+|Read\w+|Inaccessible\w+|Temporary\w+)=", re.M)


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("spoilt", [False, True])
def test_systemd_takes_the_units(tmp_path: Path, spoilt: bool) -> None:
    """It says nothing, and something where a line is not right."""
    for unit in UNITS:
        text = (EXAMPLE / unit).read_text().replace("/usr/local/bin/lukshook", "/bin/true")
        (tmp_path / unit).write_text(text.replace("Nice=19", "Nice=190") if spoilt else text)

    units = [str(tmp_path / unit.replace("@", "@offsite")) for unit in UNITS]
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert spoilt == bool(done.stderr), done.stderr


def test_a_verification_sees_an_open_volume() -> None:
    assert OF_MOUNTS.search("PrivateTmp=yes")
    assert not OF_MOUNTS.search((EXAMPLE / UNITS[0]).read_text())


def test_the_instructions_name_the_units() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    assert [] == [unit for unit in UNITS if unit not in readme]

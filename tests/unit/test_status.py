"""What `status` says without a key."""

from __future__ import annotations

from pathlib import Path

from fakes import FakeRunner
from lukshook import config
from lukshook.report import status
from lukshook.system.secret import Secret
from lukshook.volume.context import Site


def test_a_damaged_state_file_is_one_volumes_problem(tmp_path: Path) -> None:
    """The others are shown all the same."""
    table = {"image": str(tmp_path / "b.img"), "mountpoint": str(tmp_path / "mnt"), "key": "prompt"}
    volume = config.parse({"volumes": {"offsite": table}}, tmp_path / "c.toml").volumes["offsite"]
    (tmp_path / "offsite.json").write_text("{")

    site = Site(tmp_path, tmp_path, FakeRunner(), lambda volume: Secret(b""), print)

    fact = status.of(volume, site)

    assert fact["problem"].startswith(f"{tmp_path}/offsite.json is damaged")
    assert "closed" == fact["state"]
    assert fact["size"] is None

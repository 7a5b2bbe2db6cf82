"""What was read of a large configuration is kept: it means the same as the text, or it is not taken."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lukshook.options import kept

#: One of each kind that JSON has, and what is near to another kind.
EVERY_KIND = """
text = "a\\u00e9\\"\\\\\\n\\u0000 \U0001f511"
numbers = [0, 1, -1, 1.0, -0.0, 1e300, 5e-324, 123456789012345678901234567890, 0x1f]
"odd name.\\"" = [true, false, [], [[1, 1.0, "1"], {}], { a.b = "c" }]
[[tables]]
[[tables]]
a = ""
"""
LARGE = "# " + "x" * (1 << 16) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run folder, which is not there yet."""
    return tmp_path / "run"


def never(text: str) -> dict[str, Any]:
    raise AssertionError("it was read again")


def shown(table: dict[str, Any]) -> str:
    """With the kind of each value: 1, 1.0 and true are equal, and 0.0 is -0.0."""
    return repr(table)


def test_what_is_kept_is_what_was_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LARGE + EVERY_KIND
    read = kept.table_of(text, run)
    monkeypatch.setattr(tomllib, "loads", never)

    assert shown(read) == shown(kept.table_of(text, run))
    assert 0o600 == next(run.iterdir()).stat().st_mode & 0o777


def test_another_text_is_read(run: Path) -> None:
    """Of the same length, or one that goes on where the other ends."""
    for text in ("a = 1", "a = 2", "a = 2\nb = 3", "a = 2"):
        assert tomllib.loads(text) == kept.table_of(LARGE + text, run)


@pytest.mark.parametrize("value", ["1979-05-27T07:32:00Z", "1979-05-27", "07:32:00", "nan", "-inf"])
def test_a_text_with_what_json_lacks_is_read_each_time(run: Path, value: str) -> None:
    for _ in range(2):
        assert shown(tomllib.loads(f"a = {value}")) == shown(kept.table_of(f"{LARGE}a = {value}", run))
    assert not run.exists()


def test_of_a_small_one_nothing_is_kept(run: Path) -> None:
    assert {"a": 1} == kept.table_of("a = 1", run)
    assert not run.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"a": 2', b'{"a": 2}'])
def test_what_is_damaged_or_not_ours_is_not_taken(run: Path, content: bytes) -> None:
    """Whatever is in it: the last one is what a user wrote who may write to it."""
    text = f"{LARGE}a = 1"
    kept.table_of(text, run)
    file = next(run.iterdir())
    if content == b'{"a": 2}':
        file.write_bytes(text.encode() + b"\0" + content)
        assert {"a": 2} == kept.table_of(text, run)  # else this would show nothing
        file.chmod(0o666)
    else:
        file.write_bytes(content if content.startswith(b"{}") else text.encode() + b"\0" + content)

    assert {"a": 1} == kept.table_of(text, run)
    assert 0o600 == next(run.iterdir()).stat().st_mode & 0o777


def test_a_folder_that_is_not_ours_is_not_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    assert {"a": 1} == kept.table_of(f"{LARGE}a = 1", tmp_path)
    assert [] == list(tmp_path.iterdir())

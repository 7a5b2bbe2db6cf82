"""Whatever a configuration says, volumes that nobody can change come out, or one line that says where it is wrong."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lukshook import config
from lukshook.config import Configuration, Volume
from lukshook.errors import BadConfiguration
from lukshook.keys import key_sources
from lukshook.options.table import OPTIONS

GOOD = """
metrics = "/var/lib/metrics/lukshook.prom"

[volumes.offsite]
image = "/srv/backup.img"
mountpoint = "/mnt/backup"
key = ["file:/root/key", "prompt"]
size = "500GiB"
stale_after = "2w"
grow = {when_free_below = "10%", by = "1GiB", up_to = "1TiB"}
soft = true
"""
FITTING: dict[str, list[Any]] = {
    "image": ["/srv/a.img", "/srv/b.img", "//srv//b.img", "/mnt/a/in.img"],
    "mountpoint": ["/mnt/a", "/mnt/b", "/mnt/a/b", "/", "//mnt/a"],
    "key": ["prompt", ["fd:3", "stdin"], "file:/k", "command:pass show x"],
    "size": ["1MiB", "1.5TiB"],
    "stale_after": ["1m", "2w"],
    "max_open": ["1m", "12h"],
    "grow": [{"when_free_below": "10%", "by": "1GiB", "up_to": "1TiB"}],
}
WORDS: list[Any] = [
    "ext4",
    "xfs",
    "sparse",
    "kernel",
    "warn",
    "500G",
    "file:",
    "fd:99999999999",
    "command:'",
    "7d",
    "\x1b[31m",
]
LEAVES = st.one_of(
    *(st.booleans(), st.integers(), st.floats(), st.datetimes(), st.dates(), st.times()),
    *(st.text(max_size=200), st.sampled_from(WORDS), st.sampled_from([2**70, "/" + "a" * 500, "٣:"])),
)
NAMES = st.one_of(st.sampled_from([*OPTIONS, "mountpont", "volumes"]), st.text(max_size=120))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
NEEDED = ("image", "mountpoint", "key")
OPTION_TABLES = st.fixed_dictionaries(
    {name: st.sampled_from(FITTING[name]) for name in NEEDED},
    optional={
        name: st.one_of(st.sampled_from(FITTING.get(name, WORDS)), VALUES) for name in OPTIONS if name not in NEEDED
    },
)
VOLUMES = st.one_of(OPTION_TABLES, st.dictionaries(NAMES, VALUES, max_size=4), VALUES)
TABLES = st.dictionaries(
    st.one_of(st.sampled_from(["volumes", "metrics"]), NAMES),
    st.one_of(st.dictionaries(st.one_of(st.sampled_from(["a", "b", "offsite"]), NAMES), VOLUMES, max_size=3), VALUES),
    max_size=3,
)
ADDRESS = re.compile(r"has \d+ problems?: (volumes|metrics|[A-Za-z0-9_-]+|'.*?'|\".*?\")(\.|: )")
relaxed = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check_sound(found: Configuration) -> None:
    """Volumes are values: of the right types, usable as they are, and not to be changed."""
    for name, volume in found.volumes.items():
        assert isinstance(volume, Volume)
        assert (name, True, True) == (volume.name, volume.mountpoint.is_absolute(), volume.image.image.is_absolute())
        assert not str(volume.image.image).startswith("//")
        assert all(key_sources.parse(source) for source in volume.key)
        with pytest.raises(FrozenInstanceError):
            volume.engine = "other"  # type: ignore[misc]


def check_told(error: BadConfiguration) -> None:
    """On one line, in bounds, which names file and problem."""
    assert 78 == error.exit_code
    assert error.message.startswith("/c.toml ") or ".toml is not TOML" in error.message
    assert error.message.isprintable(), error.message
    assert len(error.message) < 20_000


@relaxed
@given(TABLES)
@example({"volumes": {"a\nb": {"key": "x"}}})
@example({"volumes": {"a": {"filesystem": [], "fill": {}}}})
def test_any_table_gives_volumes_or_says_where_it_is_wrong(table: dict[str, Any]) -> None:
    """The values TOML has, in any place."""
    try:
        found = config.parse(table, Path("/c.toml"))
    except BadConfiguration as error:
        check_told(error)
        assert ADDRESS.search(error.message), error.message
    else:
        check_sound(found)


def read(folder: Path, content: bytes) -> None:
    """Read *content* as a configuration file."""
    file = folder / "c.toml"
    file.write_bytes(content)
    try:
        found = config.load(file)
        assert set(found.tables) == set(found.volumes)
    except BadConfiguration as error:
        check_told(BadConfiguration(error.message.replace(str(file), "/c.toml")))
    else:
        check_sound(found)


@relaxed
@given(content=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
@example(content=b"a=" + b"[" * 100_000)
@example(content=b"a=" + b"9" * 5000)
@example(content=b"[volumes.a]\nsize=0x" + b"f" * 5000)
@example(content=b"\xff")
@example(content=b"a.b" + b".c" * 2000 + b"=1")
def test_any_file_gives_volumes_or_is_told(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """What is no TOML as well, and what Python's reader of it stumbles over."""
    read(tmp_path_factory.getbasetemp(), content)


@relaxed
@given(
    at=st.integers(0, len(GOOD)), gone=st.integers(0, 30), new=st.one_of(st.text(max_size=30), st.sampled_from(WORDS))
)
def test_a_good_file_with_a_piece_exchanged(
    tmp_path_factory: pytest.TempPathFactory, at: int, gone: int, new: str
) -> None:
    """The slips of a hand."""
    read(tmp_path_factory.getbasetemp(), (GOOD[:at] + new + GOOD[at + gone :]).encode())


@relaxed
@given(
    key=st.binary(min_size=32, max_size=32), source=st.sampled_from(["", "x:", *(f"{s}:" for s in key_sources.SOURCES)])
)
def test_a_key_written_in_place_of_its_source_is_not_repeated(key: bytes, source: str) -> None:
    """Messages go to journals and mails; this is the slip that would cost most."""
    text = base64.b64encode(key).decode()
    assume(source not in ("command:", "keyring:"))  # any word is a command's name, two with a slash a keyring's
    assume(source not in ("file:", "age:", "shares:") or not text.startswith("/"))
    volume = {"image": "/srv/a.img", "mountpoint": "/mnt/a"}
    for value in (source + text, [source + text, 5], [source + text, ""], {source + text: 5}):
        with pytest.raises(BadConfiguration) as caught:
            config.parse({"volumes": {"a": {**volume, "key": value}}}, Path("/c.toml"))
        said = caught.value.message + caught.value.hint
        assert "volumes.a.key: " in said
        assert not any(text[at : at + 8] in said for at in range(0, 36, 4))


@relaxed
@given(
    st.one_of(
        st.text(max_size=60), st.tuples(st.sampled_from([*key_sources.SOURCES]), st.text(max_size=40)).map(":".join)
    )
)
def test_any_text_is_a_source_or_told(text: str) -> None:
    """A source that was taken can be shown; one that was not is not repeated but for its name."""
    try:
        key_sources.parse(text)
    except BadConfiguration as error:
        assert (error.message + error.hint).isprintable()
    else:
        assert key_sources.shown([text]).endswith("| base64 -d")
        assert not re.search(r"[\x00-\x1f]", key_sources.name_of(text))

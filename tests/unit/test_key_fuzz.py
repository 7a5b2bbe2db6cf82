"""Whatever a key source gives, a key of 32 bytes comes out of it, or a line that has nothing of what was given."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lukshook.errors import Denied, LukshookError
from lukshook.keys import key_sources
from lukshook.system.secret import KEY_BYTES, Secret, decode_key

relaxed = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
#: Half of all inputs are nearly keys: a text of some bytes, changed in a place, with something before and behind it.
PARTS = st.sampled_from([b"", b"\n", b"\r\n", b" ", b"\0", b"=", b"\xef\xbb\xbf", b"-", "ü".encode()])
NEARLY = st.tuples(PARTS, st.binary(min_size=30, max_size=34).map(base64.b64encode), PARTS).map(b"".join)
INPUTS = st.one_of(
    st.binary(max_size=6000),
    NEARLY,
    st.tuples(NEARLY, st.integers(0, 45), st.binary(max_size=2)).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]),
    st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(base64.b64encode),
)
#: Words of our own messages; a text that is made of them says nothing about a key.
OURS = "a key is 32 random bytes in base64, 44 characters on one line: lukshook key new"


def check_hidden(error: LukshookError, given: bytes) -> None:
    """The error has no 8 characters in a row of what was given, and is one line."""
    said = error.message + "\n" + error.hint
    assert said.replace("\n", "").isprintable()
    text = given.decode(errors="replace").strip()
    pieces = {text[at : at + 8] for at in range(max(1, len(text) - 7))} if len(text) >= 8 else set()
    assert not [piece for piece in pieces if piece in said and piece not in OURS and piece.strip("\0 ")]


@relaxed
@given(INPUTS)
@example(b"=" * 44)
@example(bytes(32))
@example(base64.b64encode(bytes(32)) + b"\n")
def test_any_bytes_are_a_key_or_told(given: bytes) -> None:
    """A key has 32 bytes, and its text is what was given but for the end of the line."""
    try:
        key = decode_key(given, "test")
    except Denied as error:
        assert "the key from test " in error.message
        check_hidden(error, given)
    else:
        assert KEY_BYTES == len(key)
        assert bytes(key.text().reveal()) in (given, given.removesuffix(b"\n"), given.removesuffix(b"\r\n"))


@relaxed
@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.sampled_from([b"", b"\n", b"\r\n"]))
@example(b"\n" * 32, b"")
@example(b"\xff" * 32, b"\r\n")
def test_a_key_makes_the_round_trip(raw: bytes, end: bytes) -> None:
    """Through its text and back, whatever bytes it has: line feeds and zeroes as well."""
    assert raw == bytes(decode_key(bytes(Secret(raw).text().reveal()) + end, "test").reveal())


def through(source: str, environment: dict[str, str], given: bytes) -> None:
    """Take a key from a source that gives *given*."""
    try:
        key = key_sources.obtain([source], key_sources.Asking(environment, "offsite", lambda message: None))
    except LukshookError as error:
        check_hidden(error, given)
    else:
        assert KEY_BYTES == len(key)
        assert base64.b64encode(key.reveal()) == given.rstrip(b"\r\n")


@relaxed
@given(given=INPUTS)
@pytest.mark.parametrize("source", ["file", "credential"])
def test_any_file_is_a_key_or_told(tmp_path_factory: pytest.TempPathFactory, source: str, given: bytes) -> None:
    """A key file, and a unit's credential."""
    file = tmp_path_factory.getbasetemp() / "own.key"
    file.write_bytes(given)
    file.chmod(0o600)
    argument = file if source == "file" else Path(file.name)
    through(f"{source}:{argument}", {"CREDENTIALS_DIRECTORY": str(file.parent)}, given)


@relaxed
@given(INPUTS)
def test_any_descriptor_is_a_key_or_told(given: bytes) -> None:
    """What comes through a pipe."""
    ours, theirs = os.pipe()
    os.write(theirs, given)
    os.close(theirs)
    through(f"fd:{ours}", {}, given)
    os.close(ours)


@relaxed
@given(INPUTS)
def test_any_variable_is_a_key_or_told(given: bytes) -> None:
    """A variable may hold any bytes but zeroes."""
    assume(b"\0" not in given)
    through("env:KEY", {"KEY": os.fsdecode(given)}, given)


@settings(relaxed, max_examples=20)
@given(given=INPUTS, status=st.integers(0, 2))
def test_any_output_is_a_key_or_told(tmp_path_factory: pytest.TempPathFactory, given: bytes, status: int) -> None:
    """What a command prints, on the right stream or on the wrong one, whether it fails or not."""
    file = tmp_path_factory.getbasetemp() / "printed"
    file.write_bytes(given)
    through(f"command:sh -c 'cat {file}; exit {status}'", dict(os.environ), given)

"""Keys: strict, and never shown."""

from __future__ import annotations

import base64
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshook.errors import Denied
from lukshook.system.secret import Secret, decode_key

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_key_may_end_its_line(end: bytes) -> None:
    """One line end of any kind is what files and password managers add."""
    assert bytes(decode_key(TEXT + end, "file:/k").reveal()) == KEY


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b" " + TEXT, "not base64"),
        (TEXT + b" ", "not base64"),
        (TEXT + b"\n\n", "more than one line"),
        (TEXT + b"\n" + TEXT, "more than one line"),
        (TEXT + TEXT, "not base64"),
        (b"\xef\xbb\xbf" + TEXT, "not base64"),
        (TEXT[:-1], "not base64"),
        (base64.urlsafe_b64encode(b"\xff" * 32), "URL-safe"),
        (base64.b64encode(b"x" * 31), "31 bytes"),
        (base64.b64encode(b"x" * 33), "33 bytes"),
        (TEXT[:-2] + b"9=", "canonical"),
        (KEY, "raw bytes"),
    ],
)
def test_everything_else_is_refused(raw: bytes, fault: str) -> None:
    """Python's decoder takes most of these; a key that is only nearly right must not make or open a volume."""
    with pytest.raises(Denied) as caught:
        decode_key(raw, "file:/k")

    assert fault in caught.value.message
    assert "file:/k" in caught.value.message


@given(st.binary(max_size=80))
def test_what_is_accepted_is_the_canonical_text_of_32_bytes(raw: bytes) -> None:
    """There is exactly one text for a key, but for its line end."""
    try:
        key = decode_key(raw, "test")
    except Denied:
        return

    assert raw.rstrip(b"\r\n") == base64.b64encode(key.reveal())


def test_a_secret_is_shown_nowhere() -> None:
    """Neither repr, str, format, a traceback nor pickle has it."""
    secret = Secret(KEY)
    try:
        raise ValueError(secret)
    except ValueError as error:
        shown = "".join(traceback.format_exception(error))

    assert {"Secret()"} == {repr(secret), str(secret), f"{secret}"}
    assert "Secret()" in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_wiping_overwrites_in_place() -> None:
    """Whoever still holds the buffer holds zeroes."""
    secret = Secret(KEY)
    buffer = secret.reveal()

    secret.wipe()

    assert bytes(32) == bytes(buffer)

"""Whatever the store writes, only a judged header or a refusal comes out."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_header import Bytes, judged

from lukshook.errors import Refused
from lukshook.luks.header import Header
from support import header_forgery

LUKS1, LUKS2 = bytes(header_forgery.luks1()), bytes(header_forgery.luks2())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["0", "dynamic", "aes-xts-plain64", "cipher_null-ecb", "4096", "18446744073709551616"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome(image: Bytes) -> Header | Refused:
    """The header found in *image*, or why there is none."""
    try:
        return judged(image)
    except Refused as refusal:
        return refusal


def paths(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The way to every member of *value*."""
    if not isinstance(value, dict):
        return [path]
    below = [way for name, member in value.items() for way in paths(member, (*path, name))]
    return [path, *below] if path else below


def is_sound(found: Header | Refused) -> bool:
    """Nothing that would write in the clear, read out of bounds or run for hours is ever in a header."""
    if isinstance(found, Refused):
        return found.message.isprintable()
    return (
        found.cipher == "aes-xts-plain64"
        and found.key_bytes in (32, 64)
        and found.offset <= len(LUKS1)
        and all(1 <= slot.time <= 5 * 10**7 and slot.memory <= 2**20 for slot in found.slots)
        and all(slot.area_offset + slot.material_bytes <= found.offset for slot in found.slots)
    )


@relaxed
@given(st.binary(max_size=20000))
@example(b"LUKS\xba\xbe\0\1")
@example(b"LUKS\xba\xbe\0\2" + bytes(40000))
def test_random_bytes(data: bytes) -> None:
    """Random bytes are refused."""
    assert isinstance(outcome(data), Refused)


@relaxed
@given(st.integers(0, 591), st.binary(min_size=1, max_size=40))
def test_luks1_overwritten(at: int, data: bytes) -> None:
    """A LUKS1 header overwritten anywhere gives a sound header or a refusal."""
    image = bytearray(LUKS1)
    header_forgery.raw(at, data)(image)
    assert is_sound(outcome(image))


@relaxed
@given(st.integers(0, 4095), st.binary(min_size=1, max_size=40), st.sampled_from([(0,), (1,), (0, 1)]))
def test_luks2_binary_overwritten(at: int, data: bytes, copies: tuple[int, ...]) -> None:
    """A binary header overwritten anywhere, checksums mended, gives a sound header or a refusal."""
    image = bytearray(LUKS2)
    header_forgery.binary(at, data, copies)(image)
    assert is_sound(outcome(image))


@relaxed
@given(st.sampled_from(paths(header_forgery.metadata())), VALUES, st.sampled_from([(0,), (1,), (0, 1)]))
def test_json_member_replaced(path: tuple[str, ...], value: object, copies: tuple[int, ...]) -> None:
    """Any value in any place of the JSON gives a sound header or a refusal."""
    image = bytearray(LUKS2)
    header_forgery.put(".".join(path), value, copies)(image)
    assert is_sound(outcome(image))


@relaxed
@given(st.sampled_from([(), *paths(header_forgery.metadata())]), st.text(max_size=8), VALUES)
def test_json_member_added(path: tuple[str, ...], name: str, value: object) -> None:
    """A member more in any object of the JSON gives a sound header or a refusal."""

    def change(top: dict[str, Any]) -> None:
        place: Any = top
        for step in path:
            place = place[step]
        if isinstance(place, dict):
            place[name] = value

    image = bytearray(LUKS2)
    header_forgery.edit(change)(image)
    assert is_sound(outcome(image))


@relaxed
@given(st.integers(0, 1500), st.integers(0, 20), st.binary(max_size=20))
def test_json_text_spliced(at: int, gone: int, new: bytes) -> None:
    """The JSON's text with a piece exchanged gives a sound header or a refusal."""
    image = bytearray(LUKS2)
    text = json.dumps(header_forgery.metadata(), separators=(",", ":")).encode()
    header_forgery.write_text(image, text[:at] + new + text[at + gone :])
    assert is_sound(outcome(image))

"""Sizes: "10GiB" to bytes and back, strictly."""

from __future__ import annotations

import re

from lukshook.errors import Usage

#: Images, growth steps and limits are multiples of this many bytes, so that every sector and block size fits.
ALIGNMENT = 1024 * 1024

_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("kB", "MB", "GB", "TB", "PB")
_UNITS = (
    {"B": 1}
    | {unit: 1024 ** (power + 1) for power, unit in enumerate(_BINARY)}
    | {unit: 1000 ** (power + 1) for power, unit in enumerate(_DECIMAL)}
)
#: The largest size of an ext4 file system of 4 KiB blocks is 1 EiB; the loop device ends at 8 EiB.
_LIMIT = 1024**6
_PATTERN = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,3}))? ?([A-Za-z]{0,20})")


def pattern() -> str:
    """A regular expression for all that `parse` takes; not all that it matches is a size."""
    return rf"[0-9]{{1,19}}(?:\.[0-9]{{1,3}})? ?(?:{'|'.join(_UNITS)})"


def parse(text: str) -> int:
    """Bytes of a size such as "500GiB", "1.5TiB" or "20GB".

    A bare number and the letters "500G" are refused, because tools disagree on whether they mean 1000 or 1024.
    Raises `Usage`.
    """
    text = text.strip()
    match = _PATTERN.fullmatch(text)
    if not match:
        what = f'"{text}"' if text.isprintable() and len(text) < 40 else "what is given"
        raise Usage(f"{what} is not a size", hint='write it like "500GiB" or "1.5TiB"')
    whole, fraction, unit = match.groups()
    if unit not in _UNITS:
        raise Usage(f'"{text}" has no unit lukshook knows', hint=_unit_hint(whole, unit))
    scaled = _UNITS[unit] * int(whole + (fraction or ""))
    size, rest = divmod(scaled, 10 ** len(fraction or ""))
    if rest:
        raise Usage(f'"{text}" is not a whole number of bytes', hint="use a smaller unit")
    if size > _LIMIT:
        raise Usage(f'"{text}" is more than 1 EiB', hint="ext4 ends there")
    return int(size)


def _unit_hint(number: str, unit: str) -> str:
    letter = unit[:1].upper()
    binary = next((u for u in _BINARY if u[0] == letter), "GiB")
    decimal = next((u for u in _DECIMAL if u[0].upper() == letter), "GB")
    return f"write {number}{binary} (powers of 1024) or {number}{decimal} (powers of 1000)"


def parse_aligned(text: str) -> int:
    """Like `parse`, for sizes of images: above zero and a multiple of 1 MiB. Raises `Usage`."""
    size = parse(text)
    if size <= 0 or size % ALIGNMENT:
        down = size - size % ALIGNMENT
        raise Usage(
            f'"{text}" is {size} bytes, not a multiple of 1 MiB',
            hint=f"use {show(down)} or {show(down + ALIGNMENT)}" if down else "use at least 1MiB",
        )
    return size


def show(size: int) -> str:
    """A size in bytes as people read it, exact where it can be short: "500GiB", "1.5TiB", "~437.2MiB"."""
    if abs(size) < 1024:
        return f"{size}B"
    power = min(len(_BINARY), (abs(size).bit_length() - 1) // 10)
    unit = _BINARY[power - 1]
    text = f"{size / _UNITS[unit]:.1f}".removesuffix(".0")
    exact = round(float(text) * _UNITS[unit]) == size
    return f"{'' if exact else '~'}{text}{unit}"


def show_instead(found: int, wanted: int) -> str:
    """Two sizes in bytes that differ, so that the difference is seen: "46MiB instead of 64MiB", or both in bytes."""
    one, other = show(found), show(wanted)
    if one.lstrip("~") == other.lstrip("~"):
        return f"{found} instead of {wanted} bytes"
    return f"{one} instead of {other}"

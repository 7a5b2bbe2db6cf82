"""Files that come with lukshook beside its Python modules."""

from __future__ import annotations

from pathlib import Path

#: The folder of the package, and those above it.
_ABOVE = Path(__file__).resolve().parents[1:]


def find(in_checkout: str, in_wheel: str) -> Path | None:
    """What is at *in_checkout* in a checkout or an editable install, and below the prefix of a wheel at *in_wheel*."""
    places = (_ABOVE[2] / in_checkout, *(prefix / in_wheel for prefix in _ABOVE))
    return next((place for place in places if place.exists()), None)

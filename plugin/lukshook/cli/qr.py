"""A key as a picture of squares in the terminal, to be photographed or printed onto the recovery sheet."""

from __future__ import annotations

import io

from lukshook.errors import Unavailable


def picture(text: str) -> str:
    """A QR code of *text* for a terminal. Raises `Unavailable` without the segno library."""
    try:
        import segno  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(
            "a QR picture needs the segno library", hint="install the extra qr: docs/install.md, Extras"
        ) from error
    out = io.StringIO()
    segno.make(text, error="m", micro=False).terminal(out=out, compact=True)
    return out.getvalue()

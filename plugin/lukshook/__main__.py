"""The commands `lukshook` and `lukshook-resize`."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run `lukshook`. Asking for the version starts as little as can be."""
    if sys.argv[1:] == ["--version"]:
        from lukshook.version import VERSION  # noqa: PLC0415

        with suppress(OSError):
            os.write(1, f"lukshook, version {VERSION}\n".encode())
            return
    _fill_up()
    from lukshook.cli.main import lukshook  # noqa: PLC0415

    # What was imported stays until the end: no collection has to look at it again, not even the last one.
    gc.freeze()
    lukshook()


def resize_main() -> None:
    """Run `lukshook-resize`."""
    _fill_up()
    from lukshook.cli.resize import main as run  # noqa: PLC0415

    run()


def _fill_up() -> None:
    """Before anything else is imported that could open a file and keep it."""
    from lukshook.system import streams  # noqa: PLC0415

    streams.fill_up()


if __name__ == "__main__":
    main()

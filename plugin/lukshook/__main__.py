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
    from lukshook.cli.main import lukshook  # noqa: PLC0415

    # What was imported stays until the end: no collection has to look at it again, not even the last one.
    gc.freeze()
    lukshook()


def resize_main() -> None:
    """Run `lukshook-resize`."""
    from lukshook.cli.resize import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()

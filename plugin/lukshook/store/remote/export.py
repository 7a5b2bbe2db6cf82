"""What an NBD server says of its export: its length, and whether it can flush.

The process that watches a connection notes it before the daemon hears it, so nobody has to connect only to ask.
Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md (`NBD_INFO_EXPORT`, transmission flags).
"""

from __future__ import annotations

import json
from pathlib import Path

from attrs import asdict, frozen

from lukshook.store.remote.connection import Broken
from lukshook.system import files, json_files

#: The file with it in the private folder of an image.
_NAME = "export"
_HAS_FLAGS, _READ_ONLY, _FLUSH, _SYNC, _ZEROES = 1, 2, 4, 8, 1 << 6


@frozen
class Export:
    """*length* in bytes; *flushes*: it can write out on request; *syncs*: that of a single write; *read_only*.

    *zeroes*: it writes zeros by itself.
    """

    length: int
    flushes: bool = False
    syncs: bool = False
    read_only: bool = False
    zeroes: bool = False

    @staticmethod
    def of(length: int, flags: int) -> Export:
        """By the transmission flags of the protocol."""
        flags = flags if flags & _HAS_FLAGS else 0
        return Export(length, *(bool(flags & one) for one in (_FLUSH, _SYNC, _READ_ONLY, _ZEROES)))


def note(folder: Path, export: Export) -> None:
    """Note that of the first connection in the private *folder* of the image.

    A later one that offers less is none that the image can go on with. Raises `Broken`, OSError.
    """
    first = noted(folder)
    if first.length:
        check(first, export)
        return
    files.write_whole(folder / _NAME, json.dumps(asdict(export)).encode(), durable=False)


def check(first: Export, now: Export) -> None:
    """Check that a connection offers what the *first* one of the image has. Raises `Broken`."""
    if now.length != first.length:
        raise Broken(f"the server has another image now: {now.length} bytes long, in place of {first.length}")
    had = {
        "cannot flush any more": (first.flushes, now.flushes),
        "cannot sync single writes any more": (first.syncs, now.syncs),
        "takes no writes any more": (not first.read_only, not now.read_only),
    }
    for what, (could, can) in had.items():
        if could and not can:
            raise Broken(f"the server {what}")


def noted(folder: Path) -> Export:
    """What `note` has left; one of no length where no server has given any yet."""
    try:
        return json_files.build(Export, json_files.load(folder / _NAME))
    except (OSError, json_files.Damaged):
        return Export(0)

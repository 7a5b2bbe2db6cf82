"""The recorder of the userspace engine: where qemu has written to the image, by one of its dirty bitmaps.

A bitmap is in the daemon's memory and ends with it. It is read through NBD, and qemu does not export the image's node
while the volume stands on it ("Permission conflict on node", 7.2). So its bits are copied to an empty node of the same
size for as long as they are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.layers.base import Extent
from lukshook.system import qmp
from lukshook.system.command import Runner, find_tool, read
from lukshook.system.tool_output import MOST_KEPT

READER = "qemu-img"
_BITMAP = "written"
#: Bytes that an entry in a list of `qemu-img map` has at most.
_ENTRY = 150
_COPY = "copy"
_EXPORT = "copy"
_HINT = "close the volume and open it again"


@frozen
class _Bitmap:
    """*size*: bytes of its node. *granularity*: bytes that one bit stands for. *dirty*: bytes whose bit is set."""

    size: int
    granularity: int
    dirty: int
    recording: bool


@frozen
class Recorder:
    """The dirty bitmap of one daemon: its *monitor*; where it may make a socket, *server*; the name of the image's
    *node*."""

    monitor: Path
    server: Path
    node: str

    def begin(self, piece: int) -> None:
        """Record from now on where the image is written, one bit for *piece* bytes. Raises `Unavailable`."""
        find_tool(READER)
        with qmp.connect(self.monitor) as daemon:
            bitmap = {"node": self.node, "name": _BITMAP, "granularity": piece}
            daemon.ask("block-dirty-bitmap-add", bitmap)

    def extents(self, runner: Runner) -> tuple[Extent, ...]:
        """Where the image was written since `begin`, begun writes included. Raises `LukshookError`."""
        with qmp.connect(self.monitor) as daemon, self._copied(daemon) as bitmap:
            found = tuple(_all_dirty(_source(self.server), bitmap, runner))
        if sum(_rounded_up(length, bitmap.granularity) for _, length in found) != bitmap.dirty:
            raise Unavailable(f"{READER} and qemu do not agree on where the image was written", hint=_HINT)
        return found

    @contextmanager
    def _copied(self, daemon: qmp.Monitor) -> Iterator[_Bitmap]:
        """A copy of the bitmap, on a node and a server of its own."""
        recorder = _bitmap_of(daemon, self.node)
        if not recorder.recording:
            raise Unavailable("qemu has stopped recording where it writes", hint=_HINT)
        _drop_copy(daemon)  # of a reader that was killed
        try:
            self._copy(daemon, recorder)
            yield _bitmap_of(daemon, _COPY)
        finally:
            with suppress(Unavailable):  # what it did not answer is raised already
                _drop_copy(daemon)

    def _copy(self, daemon: qmp.Monitor, recorder: _Bitmap) -> None:
        node = {"driver": "null-co", "node-name": _COPY, "size": recorder.size, "read-zeroes": True}
        daemon.ask("blockdev-add", node)
        bitmap = {"node": _COPY, "name": _BITMAP, "granularity": recorder.granularity, "disabled": True}
        daemon.ask("block-dirty-bitmap-add", bitmap)
        merge = {"node": _COPY, "target": _BITMAP, "bitmaps": [{"node": self.node, "name": _BITMAP}]}
        # A transaction first waits for what is being written, whose bits are set at its end (qmp_transaction).
        daemon.ask("transaction", {"actions": [{"type": "block-dirty-bitmap-merge", "data": merge}]})
        daemon.ask("nbd-server-start", {"addr": {"type": "unix", "data": {"path": os.fspath(self.server)}}})
        export = {"type": "nbd", "id": _EXPORT, "node-name": _COPY, "name": _EXPORT, "bitmaps": [_BITMAP]}
        daemon.ask("block-export-add", {**export, "writable": False})


def _drop_copy(daemon: qmp.Monitor) -> None:
    """End the server, its exports with it, and the node. What is not there is fine."""
    with suppress(qmp.Rejected):
        daemon.ask("nbd-server-stop")
    with suppress(qmp.Rejected):
        daemon.ask("blockdev-del", {"node-name": _COPY})


def _bitmap_of(daemon: qmp.Monitor, node: str) -> _Bitmap:
    nodes = daemon.ask("query-named-block-nodes", {"flat": True})
    for each in nodes if isinstance(nodes, list) else ():
        match each:
            case {
                "node-name": str(name),
                "image": {"virtual-size": int(size)},
                "dirty-bitmaps": [{"granularity": int(bytes_a_bit), "count": int(dirty), "recording": bool(recording)}],
            } if name == node:
                return _Bitmap(size, bytes_a_bit, dirty, recording)
    raise Unavailable("qemu has no record of where it has written", hint=_HINT)


def _source(server: Path) -> str:
    """What `qemu-img` is to read. It takes the bits of this bitmap for holes ("data": false) if they are set."""
    place = os.fspath(server).replace(",", ",,")
    address = f"driver=nbd,server.type=unix,server.path={place},export={_EXPORT}"
    return f"{address},x-dirty-bitmap=qemu:dirty-bitmap:{_BITMAP}"


def _all_dirty(source: str, bitmap: _Bitmap, runner: Runner) -> Iterator[Extent]:
    """The set bits, in parts whose lists should be short: `qemu-img` asks for each entry, so asking twice is dear."""
    entries = 2 * (bitmap.dirty // bitmap.granularity) + 1
    parts = entries * _ENTRY // MOST_KEPT + 1
    step = _rounded_up(-(-bitmap.size // parts), bitmap.granularity)
    for start in range(0, bitmap.size, step):
        yield from _dirty(source, start, min(step, bitmap.size - start), bitmap.granularity, runner)


def _dirty(source: str, start: int, length: int, granularity: int, runner: Runner) -> Iterator[Extent]:
    """The set bits of *length* bytes from *start*: in halves where the list is too long to be kept."""
    window = (f"--start-offset={start}", f"--max-length={length}")
    out = runner.run(read(READER, "map", "--output=json", *window, "--image-opts", source)).out
    half = _rounded_up(length // 2, granularity)
    if len(out) < MOST_KEPT or half >= length:
        yield from _listed(out, start, length)
        return
    yield from _dirty(source, start, half, granularity, runner)
    yield from _dirty(source, start + half, length - half, granularity, runner)


def _listed(out: str, start: int, length: int) -> Iterator[Extent]:
    """The set bits in a list of `qemu-img map`, which has to name each byte once. Raises `Unavailable`."""
    expected = start
    for entry in _entries(out):
        match entry:
            case {"start": int(first), "length": int(size), "data": bool(clean)} if first == expected and size > 0:
                expected += size
                if not clean:
                    yield first, size
            case _:
                break
    if expected != start + length:
        raise Unavailable(f"{READER} does not tell where the image was written", hint=_HINT)


def _entries(out: str) -> list[object]:
    try:
        found = json.loads(out)
    except ValueError:
        found = None
    return found if isinstance(found, list) else []


def _rounded_up(length: int, unit: int) -> int:
    return length + -length % unit

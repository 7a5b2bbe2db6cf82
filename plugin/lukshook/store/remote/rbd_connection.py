"""One connection to a server of ours on this machine, which listens at a socket: it is watched as any other (`watch`).

qemu-storage-daemon  ->  socat  ->  this process  ->  qemu-nbd  ->  the cluster
"""

from __future__ import annotations

import select
import socket
import sys
import time
from pathlib import Path

from lukshook.errors import LukshookError
from lukshook.store.remote import connection, relay
from lukshook.store.remote.connection import Broken
from lukshook.store.remote.relay import Refusal
from lukshook.store.remote.watch import Watch
from lukshook.system import kernel
from lukshook.system.command import SystemRunner, read

#: Seconds between two looks whether the server listens.
_AGAIN = 0.05


def main() -> None:
    """The words are: our private folder; the silence in seconds; where the server listens, and its pid; a command.

    The command says by its exit status whether we go on; there may be none.
    """
    folder, silence, place, pid, *check = sys.argv[1:]
    relay.run(lambda: _serve(Path(folder), float(silence), place, int(pid), check))


def _serve(folder: Path, silence: float, place: str, pid: int, check: list[str]) -> None:
    """Raises `Broken`, `Refusal`, OSError. Whatever an earlier connection still carries, the store takes none of it."""
    with socket.socket(socket.AF_UNIX) as server:
        _connect(server, place, pid)
        if check:
            _check(check)
        watch = Watch((server.fileno(), server.fileno()), folder, silence, None, lambda: False)
        try:
            watch.serve()
        except Broken as broken:
            if not watch.has_begun:
                raise Refusal(str(broken)) from broken
            if silence and not watch.leaving:  # else the client says so itself
                connection.tell_lost(folder, str(broken))
            raise


def _connect(server: socket.socket, place: str, pid: int) -> None:
    """It may have its socket before it has the image: its greeting says that it has. Raises `Refusal`."""
    while not _is_connected(server, place):
        if kernel.started(pid) is None:
            raise Refusal("the server has ended")
        time.sleep(_AGAIN)
    select.select([server], [], [])


def _is_connected(server: socket.socket, place: str) -> bool:
    try:
        server.connect(place)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


def _check(command: list[str]) -> None:
    try:
        SystemRunner().run(read(*command))
    except LukshookError as error:
        raise Refusal(error.message) from error

"""Cases of a remote server that answers each read of the header differently, for both engines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from support.far_volume import back_up, in_it, nothing_stands
from support.lying_server import lying_server
from support.volume import NAME, CliVolume, closing

#: Where a LUKS1 header has its UUID (its specification, 2.3.1).
_UUID = 168


def null_cipher(data: bytes, number: int) -> bytes:
    """From the second read on: the header says that nothing is encrypted."""
    if number == 1 or len(data) < _UUID:
        return data
    return data[:8] + b"cipher_null".ljust(32, b"\0") + b"ecb".ljust(32, b"\0") + data[72:]


def another_uuid(data: bytes, number: int) -> bytes:
    """From the second read on: another one each time."""
    if number == 1 or len(data) < _UUID + 40:
        return data
    return data[:_UUID] + f"{number:08x}".encode() + data[_UUID + 8 :]


LIES = (null_cipher, another_uuid)


def check_only_the_judged_header_is_opened(folder: Path, engine: str, lie: Callable[[bytes, int], bytes]) -> None:
    """The volume opens with the header that was judged, or not at all; then nothing is left, and nothing lost.

    65: lukshook found another one. 69: qemu did, which has no null cipher.
    """
    image = folder / "export"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    with lying_server(image, lie) as server:
        volume = CliVolume(folder / "house", engine)
        volume.prepare()
        volume.configure(image=f"nbd://127.0.0.1:{server.port}/")
        for _ in closing(volume):
            volume.do("create", NAME)
            content = back_up(volume, "file")
            server.reads = 0
            done = volume.lukshook("before-backup", NAME)
            told = server.reads
            server.reads = -1
            assert done.returncode in (0, 65, 69), done.stderr
            assert told
            if done.returncode:
                assert nothing_stands(volume), (volume.standing(), os.listdir(volume.run_folder), done)
            else:
                volume.do("after-backup", NAME)
            print(f"{engine}, {lie.__name__}: {told} reads, {done.returncode} {done.stderr.strip()}")
            assert [content, back_up(volume, "more")] == in_it(volume, "file", "more")

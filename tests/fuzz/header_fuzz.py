"""Search for a header that comes out as anything but judged or refused, guided by coverage.

    pip install atheris
    python tests/fuzz/header_fuzz.py -max_total_time=60 -len_control=0 FOLDER

Each input is a recipe: the first byte says where the rest goes (the whole image, a LUKS1 header, the binary header or
the JSON text of LUKS2, with checksums mended), so that the search is not stopped by the checksum. The folder keeps what
it found between runs; everything after the script's name goes to libFuzzer. It stops at the first other exception.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "plugin")]

with atheris.instrument_imports(include=["lukshook.luks", "json"]):
    from lukshook.luks import header

from lukshook.errors import Refused  # noqa: E402
from support import header_forgery  # noqa: E402

LUKS1, LUKS2 = bytes(header_forgery.luks1()), bytes(header_forgery.luks2())
IMAGE = os.memfd_create("image")


def recipe(data: bytes) -> bytearray:
    """The image that *data* describes."""
    kind, rest = data[0] % 4, data[1:]
    if kind == 0:
        return bytearray(rest)
    image = bytearray(LUKS1 if kind == 1 else LUKS2)
    if kind == 1:
        image[: len(rest[:592])] = rest[:592]
    elif kind == 2:
        header_forgery.binary(int.from_bytes(rest[:2]) % 4096, rest[2:100], ((0,), (1,), (0, 1))[data[0] // 4 % 3])(
            image
        )
    else:
        header_forgery.write_text(image, rest, ((0,), (1,), (0, 1))[data[0] // 4 % 3])
    return image


def one(data: bytes) -> None:
    """Judge one image."""
    if not data:
        return
    image = recipe(data)
    os.truncate(IMAGE, 0)
    os.pwrite(IMAGE, image, 0)
    try:
        found = header.judge(header.copy(IMAGE), len(image))
    except Refused:
        return
    if found.cipher != "aes-xts-plain64":
        raise AssertionError(found)


def seed(folder: Path) -> None:
    """Put genuine headers where the search begins."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header_forgery.metadata(), separators=(",", ":")).encode()
    argon2 = header_forgery.metadata()
    argon2["keyslots"]["1"]["kdf"] = header_forgery.argon2()
    for name, data in {
        "luks1": b"\1" + LUKS1[:592],
        "binary": b"\2\0\0" + LUKS2[:96],
        "json": b"\x0b" + text,
        "argon2": b"\x0b" + json.dumps(argon2, separators=(",", ":")).encode(),
    }.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for given in folders[:1]:
        seed(Path(given))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

"""Search for a configuration or a key that comes out as anything but what it is or a known error, guided by coverage.

    pip install atheris
    python tests/fuzz/config_fuzz.py -max_total_time=60 FOLDER

The first byte of an input says whether the rest is a configuration file, a key source, or what a key source gave. The
folder keeps what it found between runs; everything after the script's name goes to libFuzzer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2] / "plugin")]

with atheris.instrument_imports(include=["lukshook", "tomllib", "shlex", "base64"]):
    from lukshook import config
    from lukshook.keys import key_sources
    from lukshook.system import secret

from lukshook.errors import BadConfiguration, Denied  # noqa: E402

FILE = os.memfd_create("config.toml")
EXAMPLE = b"""metrics = "/var/lib/x.prom"
[volumes.a]
image = "/srv/a.img"
mountpoint = "/mnt/a"
key = ["file:/k", "command:pass show x"]
size = "1.5TiB"
stale_after = "2w"
grow = {when_free_below = "10%", by = "1GiB", up_to = "1TiB"}
"""


def read(text: bytes) -> None:
    """Read a configuration file."""
    os.truncate(FILE, 0)
    os.pwrite(FILE, text, 0)
    _ = config.load(Path(f"/proc/self/fd/{FILE}")).volumes


def one(data: bytes) -> None:
    """Try one input."""
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"k":
            assert secret.KEY_BYTES == len(secret.decode_key(rest, "test"))
        elif kind == b"s":
            key_sources.parse(rest.decode(errors="replace"))
        else:
            read(rest)
    except (BadConfiguration, Denied) as error:
        assert (error.message + error.hint).isprintable(), error


def seed(folder: Path) -> None:
    """Put right inputs where the search begins."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration").write_bytes(b"c" + EXAMPLE)
    (folder / "key").write_bytes(b"kAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
    for form in key_sources.forms():
        (folder / form.partition(":")[0]).write_bytes(b"s" + form.encode())


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for given in folders[:1]:
        seed(Path(given))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

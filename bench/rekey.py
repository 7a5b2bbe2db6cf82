"""How fast cryptsetup replaces a volume key: kinds of resilience and sizes of the hot zone, side by side.

    .venv/bin/python bench/rekey.py [--folder FOLDER] [--size MIB] [--rounds N]

Each round encrypts the same data again with every setting, in a random order. The table has medians, and how each
compares with what lukshook uses, in the same round. Needs cryptsetup alone, and about as much room as SIZE.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

LIGHT = ("--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000")
JOURNAL, CHECKSUM = "--resilience=journal", "--resilience=checksum --resilience-hash=sha256"
OURS = (JOURNAL, "16M", "4096")
SETTINGS = (
    OURS,
    (JOURNAL, "4M", "4096"),
    (JOURNAL, "1M", "4096"),
    (CHECKSUM, "16M", "4096"),
    (CHECKSUM, "64M", "4096"),
    ("--resilience=none", "16M", "4096"),
    (JOURNAL, "16M", "512"),
)


def cryptsetup(*words: str) -> None:
    subprocess.run(["cryptsetup", "--batch-mode", *words], check=True, capture_output=True)


def seconds(folder: Path, data: Path, setting: tuple[str, str, str]) -> float:
    """How long it takes for a new header and *data*, with that setting."""
    resilience, zone, sector = setting
    header, key = folder / "header", folder / "key"
    header.unlink(missing_ok=True)
    key.write_bytes(os.urandom(32))
    with header.open("xb") as file:
        file.truncate(16 << 20)
    detached = (f"--key-file={key}", "--disable-locks")
    cryptsetup(
        *("luksFormat", "--type=luks2", "--key-size=512", f"--sector-size={sector}", "--offset=32768"),
        *LIGHT,
        *detached,
        str(header),
    )
    how = (*resilience.split(), f"--hotzone-size={zone}", f"--header={header}", *detached)
    cryptsetup("reencrypt", "--init-only", "--key-slot=0", *LIGHT, *how, str(data))
    os.sync()
    begin = time.monotonic()
    cryptsetup("reencrypt", "--resume-only", "--force-offline-reencrypt", *how, str(data))
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lukshook-bench-rekey-", dir=asked.folder))
    try:
        data = folder / "data"
        with data.open("wb") as file:
            file.seek(16 << 20)
            for _ in range(asked.size):
                file.write(os.urandom(1 << 20))
        taken: dict[tuple[str, str, str], list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(asked.rounds):
            for setting in random.sample(SETTINGS, len(SETTINGS)):
                taken[setting].append(seconds(folder, data, setting))
    finally:
        shutil.rmtree(folder)
    print(f"{asked.size} MiB, {asked.rounds} rounds, {asked.folder}\n| resilience | hot zone | sector | MiB/s | time |")
    for setting, found in taken.items():
        ratio = statistics.median(one / ours for one, ours in zip(found, taken[OURS], strict=True))
        resilience = setting[0].partition("=")[2].partition(" ")[0]
        speed = asked.size / statistics.median(found)
        print(f"| {resilience} | {setting[1]} | {setting[2]} | {speed:.0f} | x {ratio:.2f} |")


if __name__ == "__main__":
    main()

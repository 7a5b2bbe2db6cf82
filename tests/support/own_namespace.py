"""Run as root, in a mount namespace of its own, before tests that go on beside others.

    unshare --mount --propagation=private python3 tests/support/own_namespace.py OTHERS COMMAND...
    unshare --mount --propagation=private python3 tests/support/own_namespace.py OTHERS --home HOME COMMAND...

What other runs have mounted at paths that begin with OTHERS, and in lukshook's run folder, goes from the namespace: it
would stay there for as long as the namespace does, so that those runs could not close their volumes. The same goes for
the namespaces that a test makes for a moment: they are copies of this. What others mount later does not come in, where
a leak counter would see it (mount_namespaces(7): private). The run folder is an empty one of its own, so that nobody
takes what others leave there for a moment for a leak.

An ordinary user, whose home is HOME, also gets a store of 64 MiB that a test can fill, at HOME/small, and a /dev/fuse
that everybody may open, as udev makes it, where this machine's is root's alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FUSE = "/dev/fuse"
RUN_FOLDER = "/run/lukshook"


def mounts_below(start: str) -> list[str]:
    """The mount points whose path begins with *start*, the innermost first; in proc(5) a blank is ``\\040``."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
    places = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines if line]
    return [place for place in reversed(places) if place.startswith(start)]


def run(*argv: str, check: bool = True) -> None:
    subprocess.run(argv, check=check, stdin=subprocess.DEVNULL)


def for_a_user(home: str) -> None:
    """A store that can be filled, and /dev/fuse."""
    run("mount", "-t", "tmpfs", "-o", "size=64M,mode=777", "small", f"{home}/small")
    if os.stat(FUSE).st_mode & 0o777 != 0o666:
        run("cp", "-a", FUSE, f"{home}/fuse")
        run("chmod", "666", f"{home}/fuse")
        run("mount", "--bind", f"{home}/fuse", FUSE)


def main(others: str, *command: str) -> None:
    for place in [*mounts_below(others), *mounts_below(f"{RUN_FOLDER}/")]:
        run("umount", "--lazy", "--", place, check=False)  # its own run may have unmounted it by now
    os.makedirs(RUN_FOLDER, mode=0o700, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "mode=700", "run", RUN_FOLDER)
    if command[0] == "--home":
        for_a_user(command[1])
        command = command[2:]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])

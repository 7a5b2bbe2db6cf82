"""FUSE connections: between the kernel and a daemon that serves a file system (fuse.rst of the kernel)."""

from __future__ import annotations

import os

from lukshook.system import libc


def abort(number: str) -> None:
    """Let all that waits for the daemon fail, whose file system has that *number* ("0:minor"). Raises OSError.

    The minor number is that of the connection, too. What the daemon has not written by then is lost.
    """
    connections = libc.mounted_nowhere("fusectl")
    try:
        switch = os.open(f"{number.removeprefix('0:')}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=connections)
        try:
            os.write(switch, b"1")
        finally:
            os.close(switch)
    finally:
        os.close(connections)

"""The mark that a host leaves at an image when it opens it for writing: the last one to open it has its own there.

Each connection looks for the mark of its own host. So a host that was away, while another one had the image, does not
come back with what it still had to write. A host keeps its own mark in a file until it lets the image go.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lukshook.errors import Unavailable
from lukshook.system import files, ownership
from lukshook.system.text import clipped, one_line

#: Bytes of a mark; characters of a host's name in it.
MOST = 300
_MOST_OF_NAME = 100


def fresh() -> str:
    """A mark that nobody has had: one line, which names this host."""
    return f"{clipped(one_line(socket.gethostname()), _MOST_OF_NAME)} {os.urandom(8).hex()}"


def keep(token: Path, mark: str) -> None:
    """Keep *mark*, "" for an image that has none, in the file *token*. Raises `Unavailable`, OSError."""
    ownership.private_folder(token.parent)
    files.write_whole(token, mark.encode(), durable=True)


def kept(token: Path | None, url: str) -> str:
    """Our mark at the image *url*: what *token* has; "" for an image without one, and where there is no token.

    A file that is not there says nothing of the image. Raises `Unavailable`: else nobody would look at the mark.
    """
    if token is None:
        return ""
    try:
        return files.read(token, MOST).decode(errors="replace")
    except OSError as error:
        raise Unavailable(
            f"it is not known whether another host has opened {url} since: {token}: {error.strerror}",
            hint="is the state folder there? Then close the volume, and open it again",
        ) from error


def drop(token: Path | None) -> None:
    """Forget our mark: the image is let go."""
    if token is not None:
        token.unlink(missing_ok=True)

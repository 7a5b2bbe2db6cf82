"""What the URL of a remote image consists of."""

from __future__ import annotations

from attrs import frozen


@frozen
class Parts:
    """*user* "" and *port* 0: not given. *path* is decoded, and begins with a slash or is empty."""

    url: str
    user: str
    host: str
    port: int
    path: str

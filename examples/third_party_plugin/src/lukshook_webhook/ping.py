"""One HTTP request, bounded in time, whose address stays out of every message: its path is a secret."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit


class PingError(Exception):
    """The service was not reached or did not accept the ping. Names the service's host only."""


def send(address: str, *, timeout: float) -> None:
    """GET *address*; every network step may take *timeout* seconds. Raises `PingError`."""
    host = urlsplit(address).hostname
    try:
        with urllib.request.urlopen(address, timeout=timeout):  # noqa: S310 (settings allow http and https only)
            pass
    except urllib.error.HTTPError as answer:
        answer.close()
        raise PingError(f"{host} answered {answer.code}") from None
    except (OSError, HTTPException, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        raise PingError(f"{host}: {type(reason).__name__}") from None

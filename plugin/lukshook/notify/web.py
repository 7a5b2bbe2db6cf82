"""One HTTP request: bounded, its certificate verified, never led elsewhere; its URL stays out of every message."""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from attrs import field, frozen

from lukshook.errors import Unavailable
from lukshook.notify.url import is_good

_TRIES = 3
#: Seconds before the second try; twice as long before the next.
_PAUSE = 1.0
#: Seconds of one step of one try.
_STEP = 5.0
#: Bytes of an answer that are read, so that the service sees its request through.
_ANSWER = 16384
#: What may be better soon: too many requests, and what is wrong on the server (RFC 9110, RFC 6585).
_LATER = range(500, 600)
_TOO_MANY = 429
_NOBODY = 65534


@frozen
class Request:
    """What is asked of a service."""

    url: str = field(repr=False)
    body: bytes | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    @property
    def method(self) -> str:
        """POST where something is sent."""
        return "GET" if self.body is None else "POST"


class _Refused(Exception):
    """The service has answered, and asking again is of no use."""


def check(url: str) -> str:
    """*url*, as it can be asked. Raises `Unavailable`, which does not show it."""
    if not is_good(url):
        raise Unavailable(
            "its URL is none that can be asked: https://HOST/..., without a password or #",
            hint="a password goes into the option token",
        )
    return url


def send(request: Request, seconds: float) -> None:
    """Ask, again where it may help; all of it takes *seconds* at most if names are found at once. Raises `Unavailable`.

    No redirect is followed, no proxy used. Root's rights are given up before the first byte: this never comes back
    from that, so it is for a process of its own.
    """
    parts = urlsplit(check(request.url))
    context = ssl.create_default_context() if parts.scheme == "https" else None
    "host".encode("idna")  # loads what a name is looked up with while we may still read it
    _give_up_root()
    ends, fault = time.monotonic() + seconds, ""
    for number in range(_TRIES):
        left = ends - time.monotonic()
        if left <= 0:
            break
        try:
            fault = _ask(request, context, min(_STEP, left))
        except _Refused as error:
            fault = str(error)
            break
        if not fault:
            return
        time.sleep(min(_PAUSE * 2**number, max(ends - time.monotonic(), 0)))
    raise Unavailable(f"{parts.hostname}: {fault}", hint="is the service there, and its URL right?")


def _give_up_root() -> None:
    """Go on as a user who owns nothing; not where there is none, as in some containers."""
    if os.geteuid() == 0:
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _ask(request: Request, context: ssl.SSLContext | None, seconds: float) -> str:
    """Ask once: what went wrong, or "". Raises `_Refused`."""
    parts = urlsplit(request.url)
    place = parts._replace(scheme="", netloc="", path=parts.path or "/").geturl()
    try:
        connection = _connection(parts.hostname or "", parts.port, context, seconds)
        try:
            headers = {"User-Agent": "lukshook", **request.headers}
            connection.request(request.method, place, request.body, headers)
            answer = connection.getresponse()
            answer.read(_ANSWER)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    return _judged(answer.status)


def _connection(
    host: str, port: int | None, context: ssl.SSLContext | None, seconds: float
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(host, port, timeout=seconds)
    return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)


def _reason(error: Exception) -> str:
    """What the system says; other texts may have the URL in them."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _judged(status: int) -> str:
    if 200 <= status < 300:
        return ""
    fault = f"answered {status}"
    if status in _LATER or status == _TOO_MANY:
        return fault
    raise _Refused(fault)

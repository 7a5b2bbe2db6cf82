"""Which URLs can be asked: the same where the configuration is read and where a secret turns out to be one."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

#: RFC 3986 without the characters that http.client or a log could misread.
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-\"$-~]*|\?[!-\"$-~]*)?")


def is_good(url: str) -> bool:
    """Whether *url* is one for http or https, with a host, and without a password or a fragment."""
    try:
        parts = urlsplit(url)
        return bool(_URL.fullmatch(url) and parts.hostname and parts.port != 0)
    except ValueError:
        return False

"""Where the pages of the documentation are: messages call them docs/NAME.md, wherever lukshook is installed."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = re.compile(r"(?<![\w/.-])docs/([a-z-]+\.md)\b")


def located(text: str) -> str:
    """*text*, a message of ours, with the whole path of each page that it names."""
    return _PAGE.sub(lambda match: _place(match[1]), text)


def _place(page: str) -> str:
    """Where *page* can be read; in words, where it is not installed, as in small containers (dpkg's path-exclude)."""
    folder = _folder()
    if folder is not None and (folder / page).is_file():
        return str(folder / page)
    return f'the page "{page.removesuffix(".md")}" of the documentation, which is not installed here,'


def _folder() -> Path | None:
    """`docs/` of a checkout or an editable install, else where a wheel or a package puts it: below the prefix."""
    above = Path(__file__).resolve().parents
    places = (above[3] / "docs", *(prefix / "share/doc/lukshook/docs" for prefix in above))
    return next((place for place in places if place.is_dir()), None)

"""The recovery sheet as one page in black and white: the key as a QR code and in letters, and every line to type.

One fixed-width font has no surprises: what fits is known before a viewer or a printer has seen it, and it is one of the
14 fonts that each PDF viewer has (ISO 32000-1, 9.6.2.2).
"""

from __future__ import annotations

import html
import io
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from lukshook.errors import Unavailable, Usage
from lukshook.report import sheet
from lukshook.report.sheet import Code, Paper

#: A4 in points. What is printed is short enough for a page of US Letter too.
_WIDTH, _HEIGHT = 595, 842
_MARGIN, _LOWEST = 40, 750
#: Width of a letter of Courier, for a size of 1.
_ADVANCE = 0.6
_SMALL, _LARGE = 9.0, 12.0
_INDENT = 16
#: The empty edge around a QR code, in squares (ISO/IEC 18004).
_QUIET = 4
#: A word of a shell's line: quoted parts stay whole.
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+""")


@frozen
class Text:
    """A line of letters; *x* and *y* are points from the upper left corner to the base line."""

    x: float
    y: float
    text: str
    size: float = _SMALL
    bold: bool = False


@define
class Drawing:
    """What is on the page. *runs*: black squares side by side, with place, length and height in points."""

    texts: list[Text] = field(factory=list)
    runs: list[tuple[float, float, float, float]] = field(factory=list)
    y: float = _MARGIN

    def write(self, lines: Iterable[str], *, x: float = _MARGIN, size: float = _SMALL, bold: bool = False) -> None:
        """*lines* below what is there."""
        for line in lines:
            self.y += size * 1.35
            self.texts.append(Text(x, self.y, line, size, bold))


def drawn(shown: Paper) -> Drawing:
    """The page of *shown*, which has its secret. Raises `Usage` where it does not fit, `Unavailable` without segno."""
    page = Drawing()
    page.write(_wrapped(shown.title, _LARGE), size=_LARGE, bold=True)
    page.y += _SMALL
    for name, value in shown.facts():
        page.write(_wrapped(f"{name + ':':<15}{value}", _SMALL, indent=15))
    _draw_code(page, shown.code())
    for words, lines in shown.parts():
        page.y += _SMALL
        page.write(_wrapped(words, _SMALL), bold=True)
        for line in lines:
            page.write(_broken(line), x=_MARGIN + _INDENT)
    if page.y > _LOWEST:
        raise Usage("the recovery sheet does not fit on one page", hint="write FILE.txt instead")
    return page


def _letters(size: float, x: float = _MARGIN) -> int:
    """How many fit on a line that begins at *x*."""
    return int((_WIDTH - _MARGIN - x) / (size * _ADVANCE))


def _wrapped(text: str, size: float, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, _letters(size), subsequent_indent=" " * indent, break_on_hyphens=False)


def _broken(command: str) -> Iterator[str]:
    """*command* in lines that a shell takes as one."""
    most = _letters(_SMALL, _MARGIN + _INDENT) - 2
    line = ""
    for word in _WORD.findall(command):
        if line and len(line) + 1 + len(word) > most:
            yield f"{line} \\"
            line = ""
            word = f"    {word}"  # noqa: PLW2901
        *whole, rest = _pieces(word, most)
        yield from (f"{piece}\\" for piece in whole)
        line = f"{line} {rest}" if line else rest
    yield line


def _pieces(word: str, most: int) -> list[str]:
    """*word*, or what a shell makes the same word of when each piece but the last ends with a backslash."""
    if len(word) <= most:
        return [word]
    (meant,) = shlex.split(word)
    pieces = []
    while meant:
        length = next(n for n in range(most, 0, -1) if len(shlex.quote(meant[:n])) <= most)
        pieces.append(shlex.quote(meant[:length]))
        meant = meant[length:]
    return pieces


def _draw_code(page: Drawing, code: Code) -> None:
    """The QR code, and beside it the same in letters."""
    side = code.square
    top = page.y + _QUIET * side
    rows = list(_matrix(code))
    for number, row in enumerate(rows):
        for black in re.finditer(b"\x01+", row):
            x, width = _MARGIN + black.start() * side, len(black[0]) * side
            page.runs.append((x, top + number * side, width, side))
    page.y, beside = top, _MARGIN + (len(rows) + _QUIET) * side
    page.write([code.heading], x=beside, bold=True)
    page.write(code.lines, x=beside, size=_LARGE if code.large else _SMALL, bold=True)
    page.write([code.caption], x=beside)
    page.y = top + (len(rows) + _QUIET) * side


def _matrix(code: Code) -> Iterator[bytes]:
    """The QR code, a byte for each square: 1 is black."""
    made = _library("segno").make(code.text, error=code.fault_tolerance, micro=False, boost_error=False)
    return (bytes(row) for row in made.matrix)


def _library(name: str) -> Any:
    """One of the libraries of the extra `sheet`. Raises `Unavailable`."""
    import importlib  # noqa: PLC0415

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "install the extra sheet (docs/install.md, Extras); FILE.txt needs no library, and has no QR code"
        raise Unavailable(f"a recovery sheet of this kind needs the {name} library", hint=hint) from error


def _svg(shown: Paper) -> bytes:
    """The page as SVG 1.1."""
    page = drawn(shown)
    squares = "".join(f"M{x:g} {y:g}h{width:g}v{high:g}h{-width:g}z" for x, y, width, high in page.runs)
    texts = "\n".join(
        f'<text x="{text.x:g}" y="{text.y:g}" font-size="{text.size:g}" '
        f'font-weight="{"bold" if text.bold else "normal"}" xml:space="preserve">{html.escape(text.text)}</text>'
        for text in page.texts
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm" viewBox="0 0 {_WIDTH} {_HEIGHT}"
 font-family="Courier, 'Courier New', 'Liberation Mono', monospace">
<rect width="100%" height="100%" fill="white"/>
<path d="{squares}" shape-rendering="crispEdges"/>
{texts}
</svg>
""".encode()


def _pdf(shown: Paper) -> bytes:
    """The page as PDF 1.7."""
    library, page = _library("pydyf"), drawn(shown)
    pdf = library.PDF()
    content = library.Stream([*map(_operators, page.texts), *(_filled(*run) for run in page.runs)])
    pdf.add_object(content)
    fonts = {}
    for name, font in (("F1", "Courier"), ("F2", "Courier-Bold")):
        made = {"Type": "/Font", "Subtype": "/Type1", "BaseFont": f"/{font}", "Encoding": "/WinAnsiEncoding"}
        described = library.Dictionary(made)
        pdf.add_object(described)
        fonts[name] = described.reference
    pdf.add_page(
        library.Dictionary(
            {
                "Type": "/Page",
                "Parent": pdf.pages.reference,
                "MediaBox": library.Array([0, 0, _WIDTH, _HEIGHT]),
                "Contents": content.reference,
                "Resources": library.Dictionary({"Font": library.Dictionary(fonts)}),
            }
        )
    )
    out = io.BytesIO()
    pdf.write(out)
    return out.getvalue()


def _operators(text: Text) -> bytes:
    """How PDF shows a line (ISO 32000-1, 9.4). Its origin is the lower left corner."""
    try:
        letters = text.text.encode("cp1252").hex()
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        raise Usage(f'a PDF has no "{letter}" in its own fonts', hint="write FILE.svg or FILE.txt instead") from error
    font = "F2" if text.bold else "F1"
    return f"BT /{font} {text.size:g} Tf {text.x:g} {_HEIGHT - text.y:g} Td <{letters}> Tj ET".encode()


def _filled(x: float, y: float, width: float, height: float) -> bytes:
    return f"{x:g} {_HEIGHT - y - height:g} {width:g} {height:g} re f".encode()


#: What the name of a file may end in.
_KINDS: dict[str, Callable[[Paper], bytes]] = {
    ".pdf": _pdf,
    ".svg": _svg,
    ".txt": lambda shown: sheet.text(shown).encode(),
}


def made(shown: Paper, file: Path) -> bytes:
    """What *file* gets, by the end of its name. Raises `Usage`, `Unavailable`."""
    kind = file.suffix.lower()
    if kind not in _KINDS:
        raise Usage(f"{file} ends in none of {', '.join(_KINDS)}", hint="name it offsite.pdf, for example")
    return _KINDS[kind](shown)

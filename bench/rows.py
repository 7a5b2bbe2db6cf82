"""What comes out: a row with figure, bound and verdict; tables, JSON and a chart of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from measure import Sample


@dataclass(frozen=True)
class Row:
    """One comparison. *bound*: what *figure* may be at most, or has to be at least where *least* is set.

    *bound* None: there is none, the figure is for orientation. *where*: guest or native. *detail*: what it was
    taken from.
    """

    what: str
    against: str
    figure: Sample
    bound: float | None
    where: str
    detail: str
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound; None where there is none."""
        if self.bound is None:
            return None
        return self.figure.median >= self.bound if self.least else self.figure.median <= self.bound

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"median": self.figure.median, "met": self.met}


@dataclass(frozen=True)
class Curve:
    """Cost against size: *points* are pairs of a label and a sample in *unit*."""

    what: str
    unit: str
    where: str
    points: tuple[tuple[str, Sample], ...]

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "where": self.where,
            "points": [{"at": at} | sample.facts() for at, sample in self.points],
        }


def row_from(facts: Mapping[str, Any]) -> Row:
    """A row that was written as JSON by another process."""
    chosen = {name: facts[name] for name in Row.__dataclass_fields__}
    return Row(**chosen | {"figure": Sample(tuple(facts["figure"]["values"]))})


def curve_from(facts: Mapping[str, Any]) -> Curve:
    """A curve that was written as JSON by another process."""
    points = tuple((point["at"], Sample(tuple(point["values"]))) for point in facts["points"])
    return Curve(facts["what"], facts["unit"], facts["where"], points)


def table(rows: Sequence[Row], *, judged: bool = True) -> str:
    """Markdown, one line per row; without verdicts where nothing can be *judged*."""
    lines = ["| what | against | ratio (lowest to highest) | bound | verdict | where | from |", "|" + " --- |" * 7]
    lines += [_line(row, judged=judged) for row in rows]
    return "\n".join(lines)


def _line(row: Row, *, judged: bool) -> str:
    bound = "" if row.bound is None else f"{'>=' if row.least else '<='} {row.bound:g}"
    verdict = {True: "met", False: "**not met**", None: ""}[row.met]
    if verdict and not judged:
        verdict = "not judged"
    cells = (row.what, row.against, row.figure.show("", 2).replace(" (", "(", 1), bound, verdict, row.where, row.detail)
    return "| " + " | ".join(cells) + " |"


def curve_table(curve: Curve) -> str:
    """Markdown, one line per point."""
    lines = [f"| {curve.what} ({curve.where}) | {curve.unit}, median (lowest to highest) |", "| --- | --- |"]
    lines += [f"| {at} | {sample.show('', 2).replace(' (', '(', 1)} |" for at, sample in curve.points]
    return "\n".join(lines)


def chart(title: str, unit: str, bars: Sequence[tuple[str, float]]) -> str:
    """An SVG with a bar for each value, on its own scale from zero."""
    most = max(value for _, value in bars)
    height = 34 * len(bars) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" font-size="14">',
        f'<rect width="720" height="{height}" fill="#fff"/>',
        f'<text x="10" y="24" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(bars):
        y, width = 40 + 34 * number, 440 * value / most
        colour = "#2a6f97" if name.startswith("lukshook") else "#a9b4bc"
        parts.append(f'<text x="150" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="160" y="{y}" width="{width:.1f}" height="24" fill="{colour}"/>')
        parts.append(f'<text x="{166 + width:.1f}" y="{y + 17}">{value:.2f} {escape(unit)}</text>')
    return "\n".join([*parts, "</svg>", ""])

"""Give the project a new version: the steps of RELEASING.md that can be left to a program.

    .venv/bin/python packaging/name_version.py 0.2.0

It changes files and commits nothing. Today, in UTC, is the day of the release.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def edits(version: str, now: datetime) -> list[tuple[str, str, str]]:
    """Files, what is replaced in each, once, as a regular expression, and by what."""
    day, series = now.date().isoformat(), ".".join(version.split(".")[:2])
    entry = rf"lukshook ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md lists what is new.\n\n -- \1  "
    return [
        ("plugin/lukshook/version.py", r'(?<=^VERSION = ").*(?=")', version),
        ("docs/man/lukshook.1", r'(?<=^\.TH LUKSHOOK 1 ).*?"lukshook .*?"', f'{day} "lukshook {version}"'),
        ("debian/changelog", r"\A(?=(?s:.*?)^ -- (.*?)  )", f"{entry}{format_datetime(now)}\n\n"),
        ("CHANGELOG.md", r"^## Unreleased$", f"## {version} - {day}"),
        ("SECURITY.md", r"^\| .* \| yes \|$", f"| {series} | yes |"),
        ("examples/ansible/hosts.yml", r"(?<=/lukshook-)[\d.]+(?=-py3)", version),
    ]


def name_version(top: Path, version: str, now: datetime) -> None:
    """Edit all files below *top*, or none. Raises `ValueError` where one has not what is to be replaced."""
    changed = {}
    for name, old, new in edits(version, now):
        text, count = re.subn(old, new, (top / name).read_text(), count=1, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"{name} has nothing that matches {old}")
        changed[top / name] = text
    for file, text in changed.items():
        file.write_text(text)


def unfinished(top: Path) -> list[str]:
    """What only a person who knows the project's address can fill in, one line each."""
    lines = []
    for name in ("debian/control", "debian/changelog"):
        if ".invalid>" in (top / name).read_text():
            lines.append(f"{name}: the maintainer's address is a placeholder (.invalid)")
    if "urls" not in tomllib.loads((top / "pyproject.toml").read_text())["project"]:
        lines.append("pyproject.toml: no [project.urls]")
    return lines


def main(arguments: list[str]) -> int:
    """Exit status 64: no version; 65: nothing to release. The man pages of the commands take theirs from lukshook.1."""
    if len(arguments) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+", arguments[0]):
        sys.stderr.write(f"{__doc__}")
        return 64
    try:
        name_version(TOP, arguments[0], datetime.now(UTC).replace(microsecond=0))
    except ValueError as error:
        sys.stderr.write(f"name_version.py: {error}\n")
        return 65
    for line in unfinished(TOP):
        sys.stderr.write(f"to fill in before it is published (RELEASING.md): {line}\n")
    return subprocess.run([sys.executable, TOP / "docs/man/build.py"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

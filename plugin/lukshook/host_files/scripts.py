"""Scripts, lines of cron and units of systemd that call a backup tool."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lukshook.host_files.job import File, Job, lines_of, local

_TOOLS = r"restic|borg|rsync|rclone|duplicity|rdiff-backup|kopia|rustic|tar"
#: A line that works on a repository or a folder, or says where that is.
_LINE = re.compile(rf"(?<![\w-])({_TOOLS})(?![\w-])|(RESTIC|BORG|RUSTIC)_REPO")
_PATH = re.compile(r"(?<![\w.$}/-])(?:local:|file://)?/[\w./+,-]+")
_BACKGROUND = re.compile(r"(?<!&)&[ \t]*(#.*)?$", re.MULTILINE)


def jobs(file: File) -> Iterator[Job]:
    """One for each file that is a text and has such a line."""
    if "\0" in file.text:
        return
    text = re.sub(r"\\\n", " ", file.text) + _drop_ins(file)
    lines = lines_of(text, "#;")
    used = [line for line in lines if _LINE.search(line)]
    paths = [path for line in used for found in _PATH.findall(line) for path in local(found)]
    if used:
        yield Job(
            targets=tuple(dict.fromkeys(paths)),
            before="\n".join(lines),
            after="\n".join(lines),
            root=True,  # sources and targets look alike
            faults=_parallel("\n".join(lines)),
        )


def _drop_ins(file: File) -> str:
    """What is added to a unit."""
    if file.path.suffix != ".service":
        return ""
    folder = Path(f"{file.path}.d")
    return "".join(f"\n{file.read(each)}" for each in sorted(folder.glob("*.conf")))


def _parallel(text: str) -> tuple[str, ...]:
    """Whether jobs in the background count as one user, because they have no names."""
    calls = len(re.findall(r"(?<![\w-])before-backup(?![\w-])", text))
    if calls > 1 and _BACKGROUND.search(text) and not re.search("LUKSHOOK_JOB|--user-pid", text):
        return (
            f"{calls} jobs in one script count as one user, some in the background: the first to end closes the volume",
        )
    return ()

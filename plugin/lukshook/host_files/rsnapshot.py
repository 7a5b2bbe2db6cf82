"""rsnapshot.conf: words that are separated by TABs."""

from __future__ import annotations

from collections.abc import Iterator

from lukshook.host_files.job import File, Job, local

_DEEPEST = 5


def jobs(file: File) -> Iterator[Job]:
    """The one job that the file describes."""
    words = list(_words(file, 0))
    settings = {line[0]: line[1] for line in words if len(line) > 1}
    intervals = [line[1] for line in words if line[0] in ("retain", "interval") and len(line) > 1]
    before = settings.get("cmd_preexec", "")
    yield Job(
        targets=local(settings.get("snapshot_root")),
        before=before,
        after=settings.get("cmd_postexec", ""),
        skips=tuple(intervals[1:]),
        root=bool(before),
    )


def _words(file: File, depth: int) -> Iterator[list[str]]:
    for line in file.text.split("\n"):
        words = [word for word in line.strip("\t\r ").split("\t") if word]
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "include_conf" and len(words) > 1 and depth < _DEEPEST:
            path = file.path.parent / words[1]
            yield from _words(File(path, file.read(path), file.read), depth + 1)
        yield words

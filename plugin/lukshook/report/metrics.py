"""A text file for a monitoring system: what became of each volume's last backup, in Prometheus' format.

The format is that of node_exporter's textfile collector, which takes whole files of the name *.prom.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict

from lukshook.config import Volume
from lukshook.errors import LukshookError, Unavailable
from lukshook.report import status
from lukshook.system import files, ownership
from lukshook.system.ownership import Reached
from lukshook.volume.context import Site
from lukshook.volume.records import locked

_LAST_FAILED = "last_failed"
#: The metrics in their order: name, the fact of `status` it shows, kind, and what it says.
METRICS = (
    ("last_success_timestamp_seconds", "last_success", "gauge", "When the last good backup ended, closing included."),
    ("last_close_timestamp_seconds", "last_close", "gauge", "When the volume was closed last."),
    ("last_duration_seconds", "duration", "gauge", "How long the last backup took."),
    (
        "last_written_bytes",
        "last_written",
        "gauge",
        "Bytes written for the last backup, the file system's own included.",
    ),
    (_LAST_FAILED, "failed", "gauge", "1 when the last backup failed or could not start, else 0."),
    ("last_snapshot_timestamp_seconds", "last_snapshot", "gauge", "When the last snapshot of the store was taken."),
    ("last_drill_timestamp_seconds", "last_drill", "gauge", "When the last drill ended that found nothing wrong."),
    ("last_drill_failed", "drill_failed", "gauge", "1 when the last drill found that a restore would fail, else 0."),
    ("last_drill_files", "drill_files", "gauge", "Files that the last drill read."),
    ("last_drill_bytes", "drill_bytes", "gauge", "Bytes of files that the last drill read."),
    ("open", "open", "gauge", "1 while the volume is open, else 0."),
    ("problem", "trouble", "gauge", "1 when `lukshook status` shows a problem, else 0."),
    (
        "unclean_total",
        "unclean",
        "counter",
        "How often lukshook had to recover after an interrupted run, or data was not safely stored.",
    ),
    ("used_bytes", "used", "gauge", "Bytes used in the volume at the last check."),
    ("capacity_bytes", "capacity", "gauge", "Size of the volume's file system in bytes."),
    ("image_bytes", "size", "gauge", "Size of the image in bytes."),
    ("image_allocated_bytes", "allocated", "gauge", "Bytes that the store has allocated to the image."),
    ("store_free_bytes", "store_free", "gauge", "Bytes that are free on the store."),
    (
        "oldest_copy_timestamp_seconds",
        "oldest_copy",
        "gauge",
        "When the copy that is furthest behind was last brought up to date.",
    ),
    ("copies_behind", "copies_behind", "gauge", "How many copies lack what a backup has stored."),
    ("store_answers", "store_answers", "gauge", "1 when the store answered in time, else 0."),
    ("ledger_up_to_date", "up_to_date", "gauge", "1 when the ledger has all that was written, 0 while it is written."),
    (
        "last_full_verify_timestamp_seconds",
        "last_full_verify",
        "gauge",
        "When the last complete verification of the image began.",
    ),
    ("last_verify_failed", "verify_failed", "gauge", "1 when the last verification found damage, else 0."),
    ("verified_ratio", "verified_share", "gauge", "Share of the image that was found right within 30 days, 0 to 1."),
    ("bad_pieces", "bad_pieces", "gauge", "Pieces of the image that are damaged."),
    (
        "unknown_pieces",
        "unknown_pieces",
        "gauge",
        "Pieces of the image that may have been written while nothing recorded it.",
    ),
)

#: More than the lines of 10,000 volumes have.
_MOST_BYTES = 16 * 1024 * 1024


def bring_up_to_date(volume: Volume, site: Site, *, failed: bool | None = None) -> None:
    """Write the lines of *volume* into the file of *site*, if it has one. What hinders that is a warning.

    *failed*: whether a backup failed that has just ended; None where there was none.
    """
    if site.metrics is None or site.runner.dry:
        return
    try:
        write(site.metrics, volume, site, failed=failed)
    except LukshookError as error:
        site.warn(error.message)
    except OSError as error:
        site.warn(f"the metrics file {site.metrics} is not written: {error.strerror}")


def write(file: Path, volume: Volume, site: Site, *, failed: bool | None) -> None:
    """Replace the lines of *volume* in *file* at once; those of other volumes stay. Raises `Unavailable`.

    *failed*: whether the last backup failed; None: the line about that stays.

    The folder is opened once and has to be ours or root's: then no other user can redirect the writing. Another
    user may own a folder above it, as Debian's prometheus owns /var/lib/prometheus; no link is followed there.
    """
    found = status.of(volume, site)
    facts = asdict(found) | {
        "failed": failed,
        "drill_failed": None if found.drill_result is None else int(found.drill_result != "passed"),
        "open": int(found.state != "closed"),
        "trouble": int(bool(found.problem)),
        "up_to_date": None if found.ledger is None else int(found.ledger == status.UP_TO_DATE),
        "verify_failed": None if found.last_verify is None else int(found.last_verify != "intact"),
        "oldest_copy": found.oldest_copy,
        "copies_behind": found.copies_behind,
    }
    fresh = {(name, volume.name): float(facts[fact]) for name, fact, _, _ in METRICS if facts[fact] is not None}
    kept = {_LAST_FAILED} if failed is None else set()
    try:
        with (
            locked(site.run_folder, "@metrics"),  # no volume can have that name
            ownership.reached(file.parent, os.geteuid()) as folder,
        ):
            _check_ours(file, folder)
            others = {
                (name, whose): value
                for (name, whose), value in _read(folder.descriptor, file.name).items()
                if whose != volume.name or name in kept
            }
            content = "".join(_lines(others | fresh)).encode()
            # node_exporter is another user, and reads at any time
            files.write_within(folder.descriptor, file.name, content, durable=False, mode=0o644)
    except OSError as error:
        raise Unavailable(
            f"the metrics file {file} cannot be written: {error.strerror}", hint="does its folder exist?"
        ) from error


def _lines(values: dict[tuple[str, str], float]) -> Iterator[str]:
    for name, _, kind, text in METRICS:
        found = sorted((volume, value) for (metric, volume), value in values.items() if metric == name)
        if found:
            yield f"# HELP lukshook_{name} {text}\n# TYPE lukshook_{name} {kind}\n"
        for volume, value in found:
            yield f'lukshook_{name}{{volume="{volume}"}} {value:.16g}\n'


def _check_ours(file: Path, folder: Reached) -> None:
    is_link = stat.S_ISLNK(os.fstat(folder.descriptor).st_mode)
    faults = folder.faults if is_link else folder.own
    if faults:
        raise Unavailable(
            f"the metrics file {file} is not written: {ownership.in_words(faults)}",
            hint=f"name a folder of root's, or: {ownership.remedies(faults)}",
        )


def _read(folder: int, name: str) -> dict[tuple[str, str], Any]:
    """What is in the file now; nothing if it does not exist or is not a file of ours."""
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if os.fstat(descriptor).st_uid not in (0, os.geteuid()):
                return {}
            lines = files.read_found(descriptor, _MOST_BYTES).decode().splitlines()
        finally:
            os.close(descriptor)
    except (OSError, UnicodeDecodeError):
        return {}
    values = {}
    for line in lines:
        match = re.fullmatch(r'lukshook_([a-z_]+)\{volume="([A-Za-z0-9_.-]+)"\} ([-+0-9.e]+)', line)
        with suppress(ValueError):  # damaged: the next backup of that volume writes it again
            if match:
                values[match[1], match[2]] = float(match[3])
    return values

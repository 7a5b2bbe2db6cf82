"""Replacing the volume key with cryptsetup-reencrypt(8): its commands, and how far a header of ours says that it is.

cryptsetup works with a header in a file of ours and never reads the one on the store: the store could replace that by
one whose new volume key it knows. So only `header.judge` ever looks at a header from the store, and it refuses every
header of an unfinished reencryption. What is read here is what cryptsetup has written into our own file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from lukshook.errors import Refused
from lukshook.luks import header_file, luks2
from lukshook.luks.allowlist import Read
from lukshook.luks.cryptsetup import LIGHT_PBKDF
from lukshook.luks.model import UNLOCK_SECONDS
from lukshook.system.command import Command, change
from lukshook.system.secret import KEY_BYTES

#: What marks a header of an unfinished reencryption whose state is bound to both volume keys (CVE-2021-4122); older
#: versions of cryptsetup write another one.
_REQUIREMENT = "online-reencrypt-v2"
#: Seconds that one call of cryptsetup works on the data; then lukshook looks for signals and notes the progress.
SLICE_SECONDS = 10.0
#: Bytes that are on their way at a time, or as many as the header has room for.
_HOT_ZONE = "16M"
#: A store that does not take a hot zone in this time is taken for dead. In seconds.
_STORE_SECONDS = 1800.0
#: How timeout(1) exits when the time is over.
_TIME_IS_OVER = 124


@frozen
class Progress:
    """How far a header says that a reencryption is.

    *running*: it has begun, and some data has the old volume key. *torn*: it was killed in the middle of a hot zone,
    which `repair_command` completes. *done*: bytes of data that have the new volume key.
    """

    uuid: str
    running: bool
    torn: bool
    done: int


#: Before the first look.
NOTHING = Progress("", running=False, torn=False, done=0)


def progress(file: Path) -> Progress:
    """What the header in *file*, which is ours, says. Raises `Refused` where it is damaged; OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        copies = luks2.find(_reading(descriptor))
    finally:
        os.close(descriptor)
    found = max(copies, key=lambda copy: copy.sequence)
    try:
        return _read(found.uuid, json.loads(found.json))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{file} cannot be read: it has no header of a reencryption", hint="docs/keys.md") from error


def _read(uuid: str, value: dict[str, dict[str, Any]]) -> Progress:
    wanted = value["config"].get("requirements", {}).get("mandatory", [])
    running = _REQUIREMENT in wanted and not _all_is_new(value)
    if wanted and wanted != [_REQUIREMENT]:
        raise Refused(
            f"this version of cryptsetup marks a reencryption as {wanted!r}, not {_REQUIREMENT}",
            hint="use cryptsetup 2.4.3 or newer",
        )
    segments = [value["segments"][number] for number in sorted(value["segments"], key=int)]
    flags = [segment.get("flags", []) for segment in segments]
    torn = _is_torn(value)
    first = segments[0]
    done = int(str(first["size"])) if running and not flags[0] and first["size"] != "dynamic" else 0
    return Progress(uuid, running, torn, done)


def repair_copies(file: Path) -> None:
    """Make both metadata copies in *file* the same, if a kill or power cut has left one of them older or damaged.

    cryptsetup does that only with its own locks. It writes the first copy first: killed in the next write of that, it
    would find the older one, and take the journal for that of an earlier hot zone.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        copies = luks2.find(_reading(descriptor))
        kept = _kept(copies)
        if len(copies) < 2 or any(copy.sequence != kept.sequence for copy in copies):
            other = 0 if kept.offset else kept.size
            os.pwrite(descriptor, header_file.moved(kept.data, other), other)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept(copies: Sequence[luks2.Metadata]) -> luks2.Metadata:
    """The newest, but not if it alone says that a hot zone has begun.

    Before that, cryptsetup writes the journal, and syncs it with the first copy: after a power cut, the journal may not
    be there. It changes data only when the second copy is synced too (reencrypt_step in lib/luks2/luks2_reencrypt.c).
    """
    older, *newer = sorted(copies, key=lambda copy: copy.sequence)
    has_begun = any(_is_torn(json.loads(copy.json)) for copy in newer) and not _is_torn(json.loads(older.json))
    return older if has_begun else (newer or [older])[-1]


def _is_torn(value: dict[str, dict[str, Any]]) -> bool:
    """Whether a hot zone has begun, and is not complete."""
    return any("in-reencryption" in segment.get("flags", []) for segment in value["segments"].values())


def _all_is_new(value: dict[str, dict[str, Any]]) -> bool:
    """Whether all data has the new volume key, and no more is missing than to remove what was needed for that."""
    data = [number for number, segment in value["segments"].items() if not _is_backup(segment)]
    final = [n for n, segment in value["segments"].items() if "backup-final" in segment.get("flags", [])]
    if len(data) != 1 or "in-reencryption" in value["segments"][data[0]].get("flags", []):
        return False
    return any({data[0], *final} <= set(digest["segments"]) for digest in value["digests"].values())


def _is_backup(segment: dict[str, Any]) -> bool:
    return any(flag.startswith("backup-") for flag in segment.get("flags", []))


def remove_old(file: Path) -> None:
    """Remove the old volume key and all of the reencryption from the header in *file*, whose data has the new key.

    cryptsetup does that in several steps (reencrypt_teardown_ok in lib/luks2/luks2_reencrypt.c). Killed between two of
    them, it cannot continue: the first destroys the key slots of the old volume key, which it wants to open then.
    """
    _change_each(file, _without_old)


def _without_old(value: dict[str, Any]) -> None:
    segments = {number: segment for number, segment in value["segments"].items() if not _is_backup(segment)}
    digests = {n: digest for n, digest in value["digests"].items() if set(digest["segments"]) & set(segments)}
    slots = {number for digest in digests.values() for number in digest["keyslots"]}
    for digest in digests.values():
        digest["segments"] = list(segments)
    value["segments"], value["digests"] = segments, digests
    value["keyslots"] = {number: slot for number, slot in value["keyslots"].items() if number in slots}
    value["config"].pop("requirements", None)


def _reading(descriptor: int) -> Read:
    return lambda at, length: os.pread(descriptor, length, at)


def _change_each(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON of both metadata copies in *file*."""
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for copy in luks2.find(_reading(descriptor)):
            _change(descriptor, copy, change)
    finally:
        os.close(descriptor)


def _change(descriptor: int, copy: luks2.Metadata, change: Callable[[dict[str, Any]], None]) -> None:
    """Write that metadata copy again, with changed JSON."""
    value = json.loads(copy.json)
    change(value)
    text = json.dumps(value, separators=(",", ":")).encode()
    whole = copy.data[: luks2.BINARY_LENGTH] + text.ljust(copy.size - luks2.BINARY_LENGTH, b"\0")
    os.pwrite(descriptor, header_file.renumbered(whole, copy.sequence), copy.offset)


def to_luks2_command(file: Path) -> Command:
    """Turn the LUKS1 header in *file* into LUKS2, which alone can be reencrypted safely; the data stay as they are."""
    return _convert(file, "luks2")


def to_luks1_command(file: Path) -> Command:
    """Turn it back, after `number_digest`."""
    return _convert(file, "luks1")


def _convert(file: Path, kind: str) -> Command:
    return change("cryptsetup", "convert", "--batch-mode", "--disable-locks", f"--type={kind}", "--", os.fspath(file))


def number_digest(file: Path) -> None:
    """Give the one digest in the LUKS2 header in *file* the number 0, without which cryptsetup makes no LUKS1 of it.

    A reencryption leaves it with another number (LUKS2_luks2_to_luks1 in lib/luks2/luks2_luks1_convert.c).
    """
    _change_each(file, _with_numbered_digest)


def _with_numbered_digest(value: dict[str, Any]) -> None:
    value["digests"] = dict(enumerate(value["digests"].values()))


def begin_command(file: Path, image: Path, slot: int, key_from: str = "") -> Command:
    """Prepare the header in *file* for a new volume key, which the key of *slot* will open. No data changes yet."""
    return _command(
        file,
        image,
        ("reencrypt", "--init-only", *LIGHT_PBKDF, "--hotzone-size", _HOT_ZONE, *_RESILIENCE, f"--key-slot={slot}"),
        key_from,
    )


def continue_command(file: Path, image: Path, seconds: float, key_from: str = "") -> Command:
    """Reencrypt for *seconds* and stop where it can be continued. Exits with 0 or 124 when all went well."""
    whole = _command(
        file,
        image,
        ("reencrypt", "--resume-only", "--force-offline-reencrypt", "--hotzone-size", _HOT_ZONE, *_RESILIENCE),
        key_from,
    )
    return Command(
        ("timeout", "--signal=TERM", f"{seconds:g}", *whole.argv),
        stdin_from=key_from,
        timeout=_STORE_SECONDS,
        ok=frozenset({0, _TIME_IS_OVER}),
    )


def whole_command(file: Path, image: Path, key_from: str) -> Command:
    """Reencrypt all at once; for dry runs."""
    words = ("reencrypt", "--resume-only", "--force-offline-reencrypt", *_RESILIENCE)
    return _command(file, image, words, key_from)


def repair_command(file: Path, image: Path) -> Command:
    """Complete the hot zone that a kill or a power cut has left half done. *file* is to be a copy.

    If that was the last hot zone, cryptsetup destroys the key slots of the old volume key before it writes down that
    the zone is complete. Killed in between, it can use that header no more.
    """
    return _command(file, image, ("repair",), "", timeout=_STORE_SECONDS)


#: A hot zone is written into the header's file first, so that a power cut in the middle of any write loses nothing.
#: Checksums would do that only on a store that writes each sector whole or not at all (cryptsetup-reencrypt(8)).
_RESILIENCE = ("--resilience=journal",)


def _command(
    file: Path, image: Path, words: tuple[str, ...], key_from: str, timeout: float = UNLOCK_SECONDS
) -> Command:
    """cryptsetup's own locks lie where only root can write; ours on the volume does for both."""
    key = ("--key-file=-", f"--keyfile-size={KEY_BYTES}")
    place = ("--header", os.fspath(file), "--", os.fspath(image))
    argv = ("cryptsetup", words[0], "--batch-mode", "--disable-locks", *words[1:], *key, *place)
    return Command(argv, stdin_from=key_from, timeout=timeout)

"""Giving an image its blocks: reserved, sparse, or written as zeroes like the tutorial's dd."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from lukshook import size
from lukshook.errors import NotSafe, Unavailable
from lukshook.store import liveness, room
from lukshook.store.image_file import ImageFile
from lukshook.system import signals
from lukshook.system.command import Command, CommandFailed, Result, Runner, TimedOut, change

#: Called with the bytes done and all bytes.
Progress = Callable[[int, int], None]
_BLOCK = 4 * 1024 * 1024
_ALLOCATE_SECONDS = 3600.0


def command(path: Path, start: int, end: int, how: str) -> Command:
    """The command that makes *path* end at *end* bytes, where it ends at *start* now."""
    if how == "sparse":
        return change("truncate", f"--size={end}", "--", os.fspath(path))
    if how == "fallocate":
        return change(
            "fallocate",
            f"--offset={start}",
            f"--length={end - start}",
            "--",
            os.fspath(path),
            timeout=_ALLOCATE_SECONDS,
        )
    block = size.ALIGNMENT
    return change(
        "dd",
        "if=/dev/zero",
        f"of={path}",
        f"bs={block}",
        f"seek={start // block}",
        f"count={(end - start) // block}",
        "conv=notrunc,fsync",
        timeout=None,
    )


def extend(image: ImageFile, end: int, how: str, runner: Runner, progress: Progress) -> None:
    """Make *image*, which is open for writing, end at *end* bytes; when that fails it has its old length again.

    Raises `Unavailable` (no space, a file of this size is too large for the store, or the store cannot reserve),
    `NotSafe` (the store fails while writing).
    """
    start = image.size
    try:
        if how == "zero":
            _write_zeroes(image, start, end, progress)
        else:
            image.run(lambda place: command(place, start, end, how), runner)
    except CommandFailed as error:
        _restore_length(image, start)
        if _is_too_large(error.result):
            raise room.too_large(image.path, end) from error
        raise Unavailable(
            f"the store cannot reserve {size.show(end - start)} for {image.path}: {error.result.reason}",
            hint='free space there, or use fill = "sparse" or "zero" where it cannot reserve',
        ) from error
    except BaseException:
        _restore_length(image, start)
        raise


def _is_too_large(result: Result) -> bool:
    """Whether a tool ended by EFBIG, or by the signal that comes with a limit of the process (setrlimit(2))."""
    return result.code == -signal.SIGXFSZ or os.strerror(errno.EFBIG) in result.err


def _restore_length(image: ImageFile, start: int) -> None:
    """Remove what was added. A store that does not let us has failed already, and what is raised says so."""
    typed = change("truncate", f"--size={start}", "--", os.fspath(image.path))
    with contextlib.suppress(OSError, TimedOut):
        liveness.call(lambda descriptor: os.ftruncate(descriptor, start), image.descriptor, typed)


def _write_zeroes(image: ImageFile, start: int, end: int, progress: Progress) -> None:
    """What `dd if=/dev/zero` does, but it reports how far it is, and can be stopped between two blocks."""
    block = bytes(_BLOCK)
    try:
        done = start
        while done < end:
            signals.check()
            done += os.pwrite(image.descriptor, block[: end - done], done)
            progress(done - start, end - start)
        os.fsync(image.descriptor)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise room.too_large(image.path, end) from error
        raise NotSafe(f"writing {image.path} failed: {error.strerror}", hint="is the store full?") from error


def name(place: Path, image: Path) -> Command:
    """Give a whole image its name, by one rename that never replaces: mv(1) uses renameat2(2) with RENAME_NOREPLACE."""
    return change("mv", "--no-clobber", "--no-target-directory", "--", os.fspath(place), os.fspath(image))

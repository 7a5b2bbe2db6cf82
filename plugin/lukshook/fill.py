"""Giving an image its blocks: reserved, sparse, or written as zeroes like the tutorial's dd."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from lukshook import interrupt, size
from lukshook.command import Command, CommandFailed, Runner, change
from lukshook.errors import NotSafe, Unavailable

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


def extend(path: Path, start: int, end: int, how: str, runner: Runner, progress: Progress) -> None:
    """Make *path* longer; when that fails it has its old length again.

    Raises `Unavailable` (no space, or the store cannot reserve), `NotSafe` (the store fails while writing).
    """
    try:
        if how == "zero" and not runner.dry:
            _write_zeroes(path, start, end, progress)
        else:
            runner.run(command(path, start, end, how))
    except CommandFailed as error:
        os.truncate(path, start)
        raise Unavailable(
            f"the store cannot reserve {size.show(end - start)} for {path}: {error.result.reason}",
            hint='free space there, or use fill = "sparse" or "zero" where it cannot reserve',
        ) from error
    except BaseException:
        os.truncate(path, start)
        raise


def _write_zeroes(path: Path, start: int, end: int, progress: Progress) -> None:
    """What `dd if=/dev/zero` does, with somebody told how far it is, and stoppable between two blocks."""
    block = bytes(_BLOCK)
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        done = start
        while done < end:
            interrupt.check()
            done += os.pwrite(descriptor, block[: end - done], done)
            progress(done - start, end - start)
        os.fsync(descriptor)
    except OSError as error:
        raise NotSafe(f"writing {path} failed: {error.strerror}", hint="is the store full?") from error
    finally:
        os.close(descriptor)


def name(place: Path, image: Path) -> Command:
    """Give a whole image its name, by one rename that never replaces: mv(1) uses renameat2(2) with RENAME_NOREPLACE."""
    return change("mv", "--no-clobber", "--no-target-directory", "--", os.fspath(place), os.fspath(image))


def holes(path: Path) -> int:
    """Bytes that the image *path* may still take from its store; 0 for a block device."""
    found = os.stat(path, follow_symlinks=False)
    return max(found.st_size - found.st_blocks * 512, 0) if stat.S_ISREG(found.st_mode) else 0


def free_space(path: Path) -> int:
    """Bytes that a user like us can still put into the file system of *path*."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize

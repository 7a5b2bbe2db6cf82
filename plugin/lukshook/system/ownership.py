"""Who else can write or replace what a path leads to. What root reads, runs or writes must not be another user's.

The rule is that of sudo(8) and of StrictModes in sshd_config(5): a file, the folders above it and the links on the way
belong to root or to the user that runs lukshook, and no other user can write to them. In a sticky folder such as /tmp
only the owner of an entry can rename or remove it, so the folder is fine and the entry is judged. An access control
list that lets another user write shows in the mode of the group (acl(5)).
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from lukshook.errors import Denied, Unavailable
from lukshook.system.path_walk import walk

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@frozen(repr=False)
class Fault:
    """One part of a path that another user controls: *text* says how, *remedy* is the command that ends it.

    "" where no command should: a home folder stays its owner's.
    """

    text: str
    remedy: str


@frozen(eq=False, repr=False)
class Reached:
    """Where a path leads: *descriptor*, opened with O_PATH (open(2)), and the *faults* on the way, from the top.

    *own*: those of the last part itself.
    """

    descriptor: int
    faults: tuple[Fault, ...]
    own: tuple[Fault, ...]


def unsafe_part(path: Path, uid: int) -> str:
    """What lets a user other than root and *uid* write or replace *path*, in words; "" where nothing does.

    Raises OSError, for example where there is no such path.
    """
    return in_words(faults_of(path, uid))


def faults_of(path: Path, uid: int) -> tuple[Fault, ...]:
    """What `unsafe_part` says, with the remedies. Raises OSError."""
    with reached(path, uid) as found:
        return found.faults


def in_words(faults: tuple[Fault, ...]) -> str:
    """All *faults*, "" for none."""
    return ", and ".join(fault.text for fault in faults)


def remedies(faults: tuple[Fault, ...]) -> str:
    """What ends all *faults*: a command line, or a move."""
    if not all(fault.remedy for fault in faults):
        return "move it out of that user's home folder, or run lukshook as that user"
    return " && ".join(fault.remedy for fault in faults)


def private_folder(folder: Path) -> None:
    """Make *folder* ours alone. Raises `Unavailable` where another user can write to or replace it."""
    try:
        _make(folder)
        check_safe(folder)
        found = folder.lstat()
    except OSError as error:
        raise Unavailable(
            f"the folder {folder} cannot be created: {error.strerror}",
            hint="is its file system mounted and writable?",
        ) from error
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise Unavailable(
            f"the folder {folder} must be owned by you and not writable by anyone else",
            hint="remove it, or correct its owner and mode",
        )


def _make(folder: Path) -> None:
    """Make *folder* for us alone; the missing folders above it, whatever the umask, without write access for others."""
    missing = [above for above in folder.parents if not os.path.lexists(above)]
    check_safe(folder.parents[len(missing)])
    for above in reversed(missing):
        above.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def check_private(what: str, path: str, found: os.stat_result) -> None:
    """Check that a file with a secret in it is its owner's alone. *what*: it, in words. Raises `Denied`."""
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise Denied(f"{what} is not a regular file", hint="name the file that contains the key")
    if mode & 0o077:
        raise Denied(f"others may read {what} (mode {mode:04o})", hint=f"chmod 600 {shlex.quote(path)}")
    if found.st_uid not in (0, os.geteuid()):
        raise Denied(f"{what} belongs to another user", hint="root or you have to own it")


def check_safe(folder: Path) -> None:
    """Check that no other user can replace *folder*, if it exists. Raises `Unavailable`, or OSError."""
    try:
        faults = faults_of(folder, os.geteuid())
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise Denied(
            f"the folder {folder} cannot be reached: permission denied",
            hint="does HOME, or LUKSHOOK_STATE_DIR, belong to another user?",
        ) from error
    if faults:
        raise Unavailable(
            f"the folder {folder} is not safe from other users: {in_words(faults)}",
            hint=f"check what is in it, then: {remedies(faults)}",
        )


@contextmanager
def reached(path: Path, uid: int) -> Iterator[Reached]:
    """Follow *path* from the top, look up each part once, and judge it for root and *uid*.

    Another user may have made a link that lies below a fault, so it is not followed: the descriptor is the link's then.
    Raises OSError.
    """
    faults, own, kept = dict[Fault, None](), tuple[Fault, ...](), -1
    for part in walk(path.absolute()):
        own = tuple(_faults(part.place, part.found, uid))
        faults |= dict.fromkeys(own)
        if (part.is_link and faults) or (part.last and not part.is_link):
            kept = part.keep()
            break
    try:
        yield Reached(kept, tuple(faults), own)
    finally:
        os.close(kept)


def _faults(place: str, found: os.stat_result, uid: int) -> Iterator[Fault]:
    quoted = shlex.quote(place)
    if found.st_uid not in (0, uid):
        chown = "" if place == _home(found.st_uid) else f"chown --no-dereference {name_of(uid)} {quoted}"
        yield Fault(f"{place} belongs to {name_of(found.st_uid)}", chown)
    kind, mode = stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)
    sticky = kind == stat.S_IFDIR and mode & stat.S_ISVTX
    if kind != stat.S_IFLNK and mode & _OTHERS_WRITE and not sticky:
        yield Fault(f"others can write to {place} (mode {mode:04o})", f"chmod go-w {quoted}")


def _home(uid: int) -> str:
    """The home folder of the user *uid*, "" where the system knows none."""
    import pwd  # noqa: PLC0415 - only where there is a fault

    try:
        return pwd.getpwuid(uid).pw_dir.rstrip("/")
    except KeyError:
        return ""


def name_of(uid: int) -> str:
    """The name of the user *uid*, or that number where the system knows no name."""
    import pwd  # noqa: PLC0415 - only where there is a fault

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""`file:PATH`: a file that only its owner can read."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from lukshook.errors import Denied, Unavailable
from lukshook.keys.key_sources import Asking, put_in_place, read_private, write_new
from lukshook.system import ownership
from lukshook.system.text import fault_of_path


def check(argument: str) -> str:
    """The path has to be absolute: hooks start in any folder."""
    fault = fault_of_path(argument)
    if fault:
        return f"it has to be {fault}"
    return "" if argument.startswith("/") else "the path has to be absolute"


def obtain(argument: str, asking: Asking) -> bytes:
    """Read the file after looking at owner and mode of what was opened."""
    return read_private(
        "the key file", argument, "is its file system mounted? create a key with: lukshook create or lukshook key new"
    )


def shown(argument: str) -> str:
    """cat."""
    return f"cat {shlex.quote(argument)}"


def store(argument: str, text: str) -> None:
    """Write a new file, mode 0600, whole or not at all, and never over an old one.

    Raises `Exists`, `Unavailable`, and `Denied` where another user could have it written elsewhere, such as to the
    store. Reading does not look at the folders: a user who replaces a key file only keeps the volume from opening.
    """
    try:
        faults = ownership.faults_of(Path(argument).parent, os.geteuid())
        if faults:
            raise Denied(
                f"the new key file {argument} is not safe from other users there: {ownership.in_words(faults)}",
                hint=f"name another folder, or: {ownership.remedies(faults)}",
            )
    except OSError as error:
        raise Unavailable(
            f"the key file {argument} cannot be written: {error.strerror}",
            hint="does its folder exist, and is it writable?",
        ) from error
    write_new(argument, f"{text}\n".encode())


def staged(argument: str) -> str:
    """In the same folder, so that it can be renamed."""
    return argument + ".new"


def replace(argument: str) -> None:
    """Rename the new file over the old one, so that it outlives a power cut. Raises `Unavailable`."""
    put_in_place(staged(argument), argument)


class _Shell:
    """The same by hand, with the tools of coreutils."""

    def is_missing(self, argument: str) -> bool:
        """Whether there is no such file."""
        return not Path(argument).exists()

    def making(self, line: str, argument: str) -> str:
        """Into a new file that is its owner's alone."""
        return f"(umask 077; {line} > {shlex.quote(argument)})"

    def kept(self, argument: str) -> str:
        """Beside it."""
        return f"{argument}.old"

    def replacing(self, argument: str, fresh: str) -> list[str]:
        """A second name for the old file, then the new one over the first."""
        place, kept = shlex.quote(argument), shlex.quote(self.kept(argument))
        return [f"ln -- {place} {kept}", f"mv -- {shlex.quote(fresh)} {place}"]


by_hand = _Shell()

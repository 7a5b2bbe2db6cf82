"""What can go wrong, one class per reaction a caller can have.

Every class carries the exit status that `docs/exit-codes.md` promises; the numbers follow sysexits.h where it has
one. A known error is shown as one line and a hint, never as a traceback.
"""

from __future__ import annotations


class LukshookError(Exception):
    """A known failure: *message* says what was attempted on what and why it failed, *hint* what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Usage(LukshookError):
    """The command line does not make sense."""

    exit_code = 64


class Refused(LukshookError):
    """Header, file system or history is not what we know: tampered with, rolled back or corrupt."""

    exit_code = 65


class UnknownVolume(LukshookError):
    """No volume of that name is configured."""

    exit_code = 66


class Unavailable(LukshookError):
    """Not available now: store, image, tool or kernel feature is absent, or another job or host holds the volume."""

    exit_code = 69


class NoImage(Unavailable):
    """There is no image where one should be."""


class NotInstalled(Unavailable):
    """A program is missing on this machine."""


class Busy(LukshookError):
    """Could not close: still in use. *lost* says what is known not to have reached the store, "" for nothing."""

    exit_code = 71

    def __init__(self, message: str, *, hint: str = "", lost: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lost = lost


class NoRoom(LukshookError):
    """The store has not the room the image may come to need. Never a quiet skip: it does not get better by itself."""

    exit_code = 69


class Exists(LukshookError):
    """What was to be made is there already."""

    exit_code = 73


class NotSafe(LukshookError):
    """I/O error: what was written is not safely stored."""

    exit_code = 74


class Denied(LukshookError):
    """Wrong key, or no permission."""

    exit_code = 77


class BadConfiguration(LukshookError):
    """The configuration, or something it names on this machine, is wrong."""

    exit_code = 78


#: Exit status for "not available now" on request (`--soft`): borgmatic and rsbackup take it as a quiet skip.
SOFT_EXIT_CODE = 75

"""A conversation with an SFTP server through ssh(1), and what it means where that does not begin."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from attrs import evolve

from lukshook.errors import LukshookError
from lukshook.store.remote.login import Login, own_words
from lukshook.store.sftp_client import Sftp
from lukshook.system.command import Command, Result, Runner, conversation, read

#: Seconds until ssh has ended that has closed its output.
_LAST_WORDS_SECONDS = 5.0
#: Bytes of what the far side says.
_MOST_SAID = 1 << 16


@contextmanager
def session(
    login: Login, runner: Runner, *, said: IO[bytes] | None = None, within: float | None = None
) -> Iterator[Sftp]:
    """The server there. *said*: gets what the far side says for people, which can be any amount; None: nothing does.

    *within*: seconds after which it is ended, None for never. Raises `Unavailable`, `Denied`, `Refused`.
    """
    with own_words() as (own, own_text), ExitStack() as beginning:
        errors = {} if said is None else {"errors": said.fileno()}
        talk = conversation(_starts(login, own, runner), within=within, **errors)
        requests, answers, ended = beginning.enter_context(talk)
        try:
            sftp = Sftp(requests, answers)
        except (OSError, struct.error) as error:
            ended(_LAST_WORDS_SECONDS)
            raise _unreached(login, own_text(), said, error) from error
        begun = beginning.pop_all()
    with begun:  # the file with ssh's words is gone by now, so that a kill leaves none
        yield sftp


def _starts(login: Login, own: str, runner: Runner) -> Command:
    command = evolve(read(*login.sftp(own)), environment=login.environment)
    runner.note(str(command))
    return command


def _unreached(login: Login, own: str, said: IO[bytes] | None, error: Exception) -> LukshookError:
    """*own*: the words of ssh; *said*: those of the far side, which decide nothing."""
    text = ""
    if said is not None:
        said.seek(0)
        text = said.read(_MOST_SAID).decode(errors="replace")
    reason = Result(0, getattr(error, "strerror", None) or str(error), text).reason
    return login.unreached(own, reason, login.sftp_by_hand())

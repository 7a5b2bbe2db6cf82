"""A conversation with an SFTP server through ssh(1), and what it means where that does not begin."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from attrs import evolve, frozen

from lukshook.errors import LukshookError
from lukshook.store.pipes import Pipes
from lukshook.store.remote.login import OF_SSH, Login, own_words
from lukshook.store.sftp_client import Sftp
from lukshook.system.command import Command, Result, Runner, conversation, read

#: Seconds until ssh has ended that has closed its output.
_LAST_WORDS_SECONDS = 5.0
#: Bytes that are kept of what the far side says.
_MOST_SAID = 1 << 16


@frozen
class ByShell:
    """A server that the shell there starts, in place of the one of sshd: by *script*, which says *greeting* first.

    *refusal*: what it means that it did not; of its exit status, None where it has not ended, and of its words.
    """

    script: str
    greeting: bytes
    refusal: Callable[[int | None, str], LukshookError]


@contextmanager
def session(
    login: Login,
    runner: Runner,
    *,
    by_shell: ByShell | None = None,
    within: float | None = None,
) -> Iterator[Sftp]:
    """The server there. *within*: seconds after which it is ended, None for never; then a signal is raised in waits.

    Raises `Unavailable`, `Denied`, `Refused`, and what *by_shell* says.
    """
    with own_words() as (own, own_text), ExitStack() as beginning:
        with _far_words() as (errors, said):
            talk = conversation(_starts(login, own, by_shell, runner), within=within, errors=errors)
            requests, answers, ended = beginning.enter_context(talk)
        try:
            pipes = Pipes(requests, answers, stops=within is None)
            sftp = Sftp(pipes, by_shell.greeting if by_shell else b"")
        except (OSError, struct.error) as error:
            status, words = ended(_LAST_WORDS_SECONDS), own_text()
            if by_shell is not None and status != OF_SSH and not isinstance(error, TimeoutError):
                raise by_shell.refusal(status, said()) from error
            raise _unreached(login, words, said(), error) from error
        begun = beginning.pop_all()
    with begun:  # the file with ssh's words is gone by now, so that a kill leaves none
        yield sftp


def _starts(login: Login, own: str, by_shell: ByShell | None, runner: Runner) -> Command:
    words = login.shell(by_shell.script, own) if by_shell else login.sftp(own)
    command = evolve(read(*words), environment=login.environment)
    runner.note(str(command))
    return command


@contextmanager
def _far_words() -> Iterator[tuple[int, Callable[[], str]]]:
    """A descriptor for what the far side says for people, open until the end of the block; and what gives the begin.

    The far side can say any amount: it fills no disk, and never waits until somebody has heard it.
    """
    from threading import Thread  # noqa: PLC0415 - only to connect

    reader, writer = os.pipe()
    kept = bytearray()

    def hear() -> None:
        while more := os.read(reader, _MOST_SAID):
            kept.extend(more[: _MOST_SAID - len(kept)])
        os.close(reader)

    def text() -> str:
        thread.join(_LAST_WORDS_SECONDS)
        return kept.decode(errors="replace")

    thread = Thread(target=hear, daemon=True)
    thread.start()
    try:
        yield writer, text
    finally:
        os.close(writer)


def _unreached(login: Login, own: str, said: str, error: Exception) -> LukshookError:
    """*own*: the words of ssh; *said*: those of the far side, which decide nothing."""
    reason = Result(0, getattr(error, "strerror", None) or str(error), said).reason
    return login.unreached(own, reason, login.sftp_by_hand())

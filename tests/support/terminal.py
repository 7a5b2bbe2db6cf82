"""A terminal on which a person answers what lukshook asks."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from attrs import frozen

from support.lukshook_process import PATIENCE


@frozen
class Session:
    """How it ended, and all that was to be seen on the terminal."""

    returncode: int
    seen: str


class AtATerminal(Protocol):
    """What is needed of a volume."""

    @property
    def config(self) -> Path:
        """Its configuration."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Where lukshook's folders are."""
        ...


def answered(volume: AtATerminal, words: Sequence[str], answers: Sequence[str], **more: str) -> Session:
    """Run lukshook on a terminal; each question, a line that is not ended, gets the next of *answers*.

    A person who has none left interrupts it.
    """
    ours, theirs = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "LUKSHOOK_CONFIG": str(volume.config),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **volume.environment,
        **more,
    }
    argv = ["setsid", "--ctty", sys.executable, "-m", "lukshook", *words]  # keys are typed on /dev/tty
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd="/")
    os.close(theirs)
    try:
        seen = _converse(ours, child, [f"{answer}\n".encode() for answer in answers])
        return Session(child.wait(PATIENCE), seen.decode().replace("\r\n", "\n"))
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _converse(ours: int, child: subprocess.Popen[bytes], answers: list[bytes]) -> bytes:
    """All that is written until the last process leaves the terminal."""
    seen, waiting, ends = b"", list(answers), time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        asked = seen.endswith(b"]: ")
        if asked and waiting:
            os.write(ours, waiting.pop(0))
            seen += b"\0"  # taken out below: this question has its answer
        if not select.select([ours], [], [], 0.2)[0]:
            if asked and not waiting:  # again, if it came before lukshook began to wait
                child.send_signal(signal.SIGINT)
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: nobody has it open any more
            return seen.replace(b"\0", b"")
        seen += part
    raise AssertionError(f"lukshook did not end: {seen!r}")

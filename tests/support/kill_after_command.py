"""lukshook, killed with SIGKILL right after a command that changes something.

    kill_after_command.py WHICH PROGRAM ARGUMENT...

WHICH is a number (0 is before the first), or how the command's line begins. Commands run in sessions of their own and
are not killed with it.
"""

from __future__ import annotations

import os
import signal
import sys

from lukshook import __main__
from lukshook.system import command
from lukshook.system.command import Command, Effect, Result, SystemRunner


def arm(which: str) -> None:
    """From now on this process is killed after that command."""
    original, count = SystemRunner.run, [0]

    def run(self: SystemRunner, asked: Command) -> Result:
        if asked.effect is not Effect.CHANGE:
            return original(self, asked)
        if which == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, asked)
        count[0] += 1
        if which == str(count[0]) or " ".join(asked.argv).startswith(which):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    command.SystemRunner.run = run  # type: ignore[assignment,method-assign]


def main() -> None:
    which, program = sys.argv[1], sys.argv[2]
    sys.argv = [program, *sys.argv[3:]]
    arm(which)
    (__main__.resize_main if program == "lukshook-resize" else __main__.main)()


if __name__ == "__main__":
    main()

"""Stand-ins for what is below the code under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lukshook.system.command import Command, CommandFailed, Result

Answer = Result | Callable[[Command], Result]


class FakeRunner:
    """A runner that starts nothing: it notes every command, and answers by the first word of its line that fits."""

    def __init__(self, answers: dict[str, Answer] | None = None, *, dry: bool = False) -> None:
        self.dry = dry
        self.commands: list[Command] = []
        self.notes: list[str] = []
        self._answers = answers or {}

    def run(self, command: Command) -> Result:
        """Note *command* and give the answer for it; nothing and success where there is none."""
        self.commands.append(command)
        result = self._answer(command)
        if result.code not in command.ok:
            raise CommandFailed(command, result)
        return result

    def note(self, line: str) -> None:
        """Keep *line*."""
        self.notes.append(line)

    @property
    def lines(self) -> list[str]:
        """The commands as a dry run prints them."""
        return [str(command) for command in self.commands]

    def _answer(self, command: Command) -> Result:
        for start, answer in self._answers.items():
            if " ".join(command.argv).startswith(start):
                return answer(command) if callable(answer) else answer
        return Result(0)


def starts(lines: Iterable[str]) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in lines]

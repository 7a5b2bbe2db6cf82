"""Whatever the store's owner puts in the place of the image, and whenever: nothing outside of the store changes, no
success is reported that is none, and with the image back the next run works.

The rows are those of command_fault_cases.py: each command that changes anything, in the state that it starts from.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_fault_cases import ROWS, STATUSES, Row, Trial, check_next_run, close_the_copy, put_back
from support.image_exchange import KINDS, USERS_KINDS, Exchange, undo
from support.volume import NAME, CliVolume

#: Where these rows make something new, no image is there to be copied.
_MADE_NEW = "create"
_WAS_REPLACED = "was replaced while it was being created"
#: How many are tried by default; each command meets another kind at another step.
FEW = 1
#: It is closed by now.
_IN_USE = "resize: grow in use"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each row."""
    if "row" not in metafunc.fixturenames:
        return
    rows = [row for row in ROWS if metafunc.module.ENGINE in row.engines]
    metafunc.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


def kinds() -> tuple[str, ...]:
    """What this user can put in the place of an image."""
    return KINDS if os.geteuid() == 0 else USERS_KINDS


def digest(file: Path) -> tuple[str, int, int]:
    """Content, length and blocks of a file."""
    found = file.stat()
    return hashlib.sha256(file.read_bytes()).hexdigest(), found.st_size, found.st_blocks


def steps_of(volume: CliVolume, row: Row) -> int:
    """How many steps the command has when nobody disturbs it."""
    watched = Exchange(volume, volume.folder / "steps")
    arguments = row.arrange(volume)
    watched.log.write_text("")
    done = volume.start(*arguments, prepare=watched).wait()
    assert 0 == done.returncode, done.stderr
    put_back(volume)
    return len(watched.log.read_text().splitlines())


def exchanged(volume: CliVolume, row: Row, what: str, step: int) -> None:
    """The command with an exchange at *step*, and all that has to hold then."""
    arguments = row.arrange(volume)
    attack = Exchange(volume, volume.folder / "steps", what, step)
    source = volume.folder / "kept/store" / volume.image.name
    attack.victim.write_bytes(source.read_bytes())
    os.sync()  # else its blocks are counted before they are there
    before = digest(attack.victim)

    done = volume.start(*arguments, prepare=attack).wait()

    assert done.returncode in STATUSES, done
    assert before == digest(attack.victim), (done, "a file outside of the store has changed")
    undo(volume)
    _close(volume)
    if row.finish is not close_the_copy:  # which says so itself
        assert [] == volume.standing(), done
    assert before == digest(attack.victim), (done, "a file outside of the store has changed at closing")
    _check_usable(volume, row, Trial(volume, arguments, done, killed=False))


def _close(volume: CliVolume) -> None:
    """Close with the image back; a loss is reported once."""
    for command in (("after-backup", NAME), ("close", NAME)):
        done = volume.lukshook(*command)
        assert done.returncode in (0, 74), done


def _check_usable(volume: CliVolume, row: Row, trial: Trial) -> None:
    """The same command ends well now, and what was backed up is whole."""
    if row.name == _MADE_NEW:
        for left in volume.image.parent.iterdir():
            if left.name != volume.image.name:
                left.unlink()
        if _WAS_REPLACED in trial.done.stderr:  # the hint: remove it; what `undo` has put back had its name already
            volume.image.unlink(missing_ok=True)
        if trial.done.returncode:
            assert not volume.image.exists(), trial.done
    if row.name == _IN_USE:
        trial.again()
    else:
        row.finish(trial)
    check_next_run(volume)


def test_whatever_lies_there_instead(
    volume: CliVolume, row: Row, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """At a sample of the steps one kind each, and with --long at every step every kind."""
    count = steps_of(volume, row)
    every = [(what, step) for step in range(count) for what in kinds()]
    failures = []
    for what, step in chance.sample(every, min(len(every), rounds(FEW, len(every)))):
        try:
            exchanged(volume, row, what, step)
        except (AssertionError, TimeoutError) as error:
            failures.append(f"{what} at step {step} of {count}\n    {error}")
        undo(volume)
        put_back(volume)
    assert not failures, "\n".join(failures)

"""The fault matrix has every command in it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from lukshook.cli.main import group
from support.command_fault_cases import ROWS

#: They change nothing of a volume: `key new` makes a key before there is one. `verify` writes to its ledger
#: (test_verify.py).
ONLY_LOOK = {
    "status",
    "history",
    "verify",
    "versions",
    "check",
    "notify",
    "hooks",
    "sheet",
    "key new",
    "key test",
    "key combine",
    "header verify",
    "config schema",
    "config show",
}
#: It writes a configuration, and the rest is `create`'s (test_init.py).
ONLY_CREATES = {"init"}
#: They start no tools, whose steps could go wrong: test_replica.py and test_copy_kills.py stop them anywhere.
WITHOUT_TOOLS = {"copy", "heal"}
#: `key split` changes the header by the steps of `key add`, for a key that is in no source (test_shares.py).
AS_ANOTHER = {"key split"}


def commands_of(whole: click.Group, prefix: str = "") -> Iterator[str]:
    """The names of all commands, with those of their groups."""
    context = click.Context(whole)
    for name in whole.list_commands(context):
        command = whole.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_every_command_that_changes_anything_is_in_the_matrix() -> None:
    """One that somebody adds has a row, or is said to only look."""
    in_matrix = {row.name.partition(":")[0] for row in ROWS}

    assert {*commands_of(group), "lukshook-resize"} == in_matrix | ONLY_LOOK | WITHOUT_TOOLS | ONLY_CREATES | AS_ANOTHER
    assert not in_matrix & (ONLY_LOOK | WITHOUT_TOOLS)


def test_a_short_run_meets_every_fault() -> None:
    """The number of faults and a stride have no common divisor."""
    assert [] == [row.name for row in ROWS if row.stride % 3 == 0]

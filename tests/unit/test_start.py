"""What a hook does not import at its start."""

from __future__ import annotations

import subprocess
import sys


def test_a_command_that_exists_is_not_looked_for_among_those_alike() -> None:
    """Only who mistypes a command waits for difflib."""
    program = (
        "import click, sys; from lukshook.cli.main import group; "
        "group.resolve_command(click.Context(group), ['before-backup', 'offsite']); print('difflib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "False" == shown.stdout.strip()


#: Packages and modules of ours that no hook needs at its start.
RARE = (
    *("cli.status", "cli.volume", "hosts", "layers.dirty_bitmap", "ledger", "luks.cryptsetup", "proof", "replica"),
    *("report", "resize", "store.remote", "system.platforms", "system.qmp", "volume.copies", "volume.create"),
    *("volume.holders", "volume.key_slots", "volume.ledger_keeping", "volume.snapshotting", "volume.trust"),
)
#: What is slow to import, of the standard library.
SLOW = ("_hashlib", "asyncio", "dataclasses", "difflib", "email", "importlib.metadata", "logging", "socket", "tempfile")
#: Prints our classes of attrs, and then "with" and those that it has made a __repr__ for.
SHOWN = """
import sys, lukshook.cli.hooks
ours = [module for name, module in sys.modules.items() if name.startswith("lukshook")]
every = {kind for module in ours for kind in vars(module).values() if isinstance(kind, type)}
kinds = [kind for kind in every if hasattr(kind, "__attrs_attrs__")]
made = [kind for kind in kinds if getattr(kind.__repr__, "__code__", None)]
made = [kind for kind in made if kind.__repr__.__code__.co_filename.startswith("<attrs")]
print(*(kind.__qualname__ for kind in kinds), "with", *(kind.__qualname__ for kind in made))
"""


def printed(program: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_a_hook_imports_what_it_needs() -> None:
    """Importing is most of its time. Whoever needs one of these imports it where it is used."""
    libraries = printed("import sys, attrs, click, pluggy; print(*sys.modules)")
    imported = {*printed("import sys, lukshook.cli.hooks; print(*sys.modules)")} - {*libraries}
    rare = tuple(f"lukshook.{name}" for name in RARE)

    assert "lukshook.config" in imported
    assert [] == [name for name in imported if name.startswith(rare) or name in SLOW]


def test_a_hook_makes_few_methods_that_are_never_called() -> None:
    """attrs compiles those of each class at each start, and none of ours is ever shown, but for what plugins get."""
    shown = printed(SHOWN)
    all_kinds, made = shown[: shown.index("with")], shown[shown.index("with") + 1 :]

    assert "Outcome" in made
    assert len(made) * 10 < len(all_kinds), made

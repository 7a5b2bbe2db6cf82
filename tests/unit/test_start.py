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

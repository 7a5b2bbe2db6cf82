"""lukshook: encrypted backup images behind any backup tool.

For plugins: `hookimpl` marks an implementation of the hooks in `lukshook.hookspecs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lukshook.version import VERSION

if TYPE_CHECKING:
    import pluggy

    hookimpl: pluggy.HookimplMarker

__version__ = VERSION
__all__ = ["__version__", "hookimpl"]


def __getattr__(name: str) -> object:
    """Import pluggy only where a plugin is written: every start of the command comes through this file."""
    if name != "hookimpl":
        raise AttributeError(name)
    from lukshook import old_pluggy  # noqa: PLC0415

    return old_pluggy.marker("lukshook")

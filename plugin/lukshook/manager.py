"""The plugin manager: our specs, our own plugin, and those that are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pluggy

from lukshook.config import Volume
from lukshook.errors import BadConfiguration
from lukshook.hookspecs import Hooks, Outcome
from lukshook.plugin import OpenAndClose

GROUP = "lukshook"


def get_plugin_manager(ours: OpenAndClose) -> pluggy.PluginManager:
    """A manager with everything registered and checked. Raises `BadConfiguration` for a plugin that does not fit."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(ours, "lukshook")
    try:
        if any_installed():
            manager.load_setuptools_entrypoints(GROUP)
        manager.check_pending()
    except (pluggy.PluginValidationError, ImportError, AttributeError) as error:
        raise BadConfiguration(f"a plugin does not fit: {error}", hint="docs/hooks.md has the hooks") from error
    return manager


def before(ours: OpenAndClose, volume: Volume) -> None:
    """Call every `before_backup`; tell `report` when there will be no backup."""
    manager = get_plugin_manager(ours)
    try:
        manager.hook.before_backup(volume=volume)
    except BaseException as error:
        _report(manager, ours, volume, Outcome(failed=True, error=error))
        raise


def after(ours: OpenAndClose, volume: Volume, *, failed: bool) -> None:
    """Call every `after_backup`, then `report` with what came of it."""
    manager = get_plugin_manager(ours)
    outcome = Outcome(failed=failed)
    try:
        manager.hook.after_backup(volume=volume, outcome=outcome)
    except BaseException as error:
        outcome = Outcome(failed=True, error=error)
        raise
    finally:
        _report(manager, ours, volume, outcome)


def _report(manager: pluggy.PluginManager, ours: OpenAndClose, volume: Volume, outcome: Outcome) -> None:
    try:
        manager.hook.report(volume=volume, outcome=outcome)
    except Exception as error:
        ours.site.warn(f"a plugin could not report on volume {volume.name}: {error}")


def any_installed() -> bool:
    """Whether a distribution on `sys.path` has entry points in our group.

    Looks into their lists without importlib.metadata, whose import alone takes a third of a hook's time.
    """
    lists = (file for folder in sys.path for file in Path(folder).glob("*.*-info/entry_points.txt"))
    return any(f"[{GROUP}]" in file.read_text(encoding="utf-8", errors="replace") for file in lists)

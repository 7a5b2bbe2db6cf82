"""The plugin manager: our specs, our own plugin, and those that are installed."""

from __future__ import annotations

import pluggy

from lukshook.errors import BadConfiguration
from lukshook.hookspecs import Hooks
from lukshook.plugin import OpenAndClose

GROUP = "lukshook"


def get_plugin_manager(ours: OpenAndClose) -> pluggy.PluginManager:
    """A manager with everything registered and checked. Raises `BadConfiguration` for a plugin that does not fit."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(ours, "lukshook")
    try:
        manager.load_setuptools_entrypoints(GROUP)
        manager.check_pending()
    except (pluggy.PluginValidationError, ImportError, AttributeError) as error:
        raise BadConfiguration(f"a plugin does not fit: {error}", hint="docs/hooks.md has the two hooks") from error
    return manager

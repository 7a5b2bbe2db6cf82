"""lukshook: encrypted backup images behind any backup tool.

For plugins: `hookimpl` marks an implementation of the hooks in `lukshook.hookspecs`.
"""

import pluggy

#: Marks a function as an implementation of one of the hooks `before_backup` and `after_backup`.
hookimpl = pluggy.HookimplMarker("lukshook")

__all__ = ["__version__", "hookimpl"]
__version__ = "0.1.0"

"""The hooks: what a plugin can do when a volume is opened for a backup and closed after it.

A plugin is a distribution with an entry point in the group `lukshook`. It sees an open volume between our own opening
and closing, whatever order plugins are loaded in, and it never sees the key.
"""

from __future__ import annotations

import pluggy
from attrs import frozen

from lukshook.config import Volume

hookspec = pluggy.HookspecMarker("lukshook")


@frozen
class Outcome:
    """How a backup ended. *failed*: it did, by the host's word or ours; *error*: what went wrong here, if anything.

    *exit_status*: that of the command under `run`, None where the host does not say it. *skipped*: it failed because
    the volume is not available, and that is to be a quiet skip (`soft`).
    """

    failed: bool = False
    error: BaseException | None = None
    exit_status: int | None = None
    skipped: bool = False


class Hooks:
    """The hooks of the project `lukshook`."""

    @hookspec
    def before_backup(self, volume: Volume) -> None:
        """Called when *volume* is open and proven, before the host tool starts to write.

        Raising means that the host must not back up: the volume is closed again, and the message of a
        `LukshookError` is shown.

        :param volume: the configured volume; it is mounted at `volume.mountpoint`, backups go to `volume.data`.
        """

    @hookspec
    def after_backup(self, volume: Volume, outcome: Outcome) -> None:
        """Called before *volume* is closed. Comes any number of times, also after a failed or missing before.

        Raising does not keep the volume open: it is closed, then the error is shown.

        :param volume: the configured volume; it may be closed already.
        :param outcome: how the backup ended, as far as the host knows.
        """

    @hookspec
    def report(self, volume: Volume, outcome: Outcome) -> None:
        """Called last, after closing: what is reported now about the backup is final.

        Comes after every `after_backup`, and after a `before_backup` that failed. Raising changes nothing any more;
        it is shown as a warning.

        :param volume: the configured volume.
        :param outcome: failed when the host said so or anything went wrong since, closing included; `error` is that.
        """

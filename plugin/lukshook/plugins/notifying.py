"""Our own plugin that tells others how a backup went: the channels of `[notify]`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from attrs import asdict, define, field

from lukshook import hookimpl
from lukshook.config import Volume
from lukshook.errors import LukshookError
from lukshook.hookspecs import Outcome
from lukshook.notify.message import Message
from lukshook.notify.notices import AT_END, AT_START, Notices
from lukshook.system import files, json_files, kernel, ownership, signals
from lukshook.volume.context import Site
from lukshook.volume.records import User


@define
class Notifying:
    """Tells of the start when the volume is open, and of the end when it is closed. Never fails a backup.

    A success is what `status` counts as one: the time of the last good backup changes. A failure is reported once for
    each backup: many tools call "after" with --failed when "before" has failed, in another process. So the job of which
    a failure was reported is noted in the run folder, until that job opens the volume.
    """

    site: Site
    notices: Notices
    user: User
    _success_before: float | None = field(default=None, init=False)
    _is_after: bool = field(default=False, init=False)

    @hookimpl
    def before_backup(self, volume: Volume) -> None:
        """Tell of the start."""
        if not self.site.runner.dry:
            with suppress(OSError):
                self._note(volume).unlink()
        if not volume.read_only:
            self._tell(volume, "start", AT_START)

    @hookimpl
    def after_backup(self, volume: Volume, outcome: Outcome) -> None:
        """Note what the last good backup was until now."""
        self._is_after = True
        self._success_before = self._last_success(volume)

    @hookimpl
    def report(self, volume: Volume, outcome: Outcome) -> None:
        """Tell of a failure, and of a success where there was one; a quiet skip is neither."""
        if outcome.skipped:
            self._remember(volume)
        elif outcome.failed:
            if not self._is_known(volume, outcome):
                self._tell(volume, "failure", AT_END, _status(outcome), _reason(outcome))
                self._remember(volume)
        elif self._last_success(volume) != self._success_before:
            self._tell(volume, "success", AT_END)

    def _is_known(self, volume: Volume, outcome: Outcome) -> bool:
        """Whether the host alone says that it failed, and the failure of this job was reported already."""
        if not self._is_after or outcome.error is not None or outcome.exit_status is not None:
            return False
        try:
            data = json_files.load(self._note(volume))
            return data.get("boot") == kernel.boot_id() and self.user == json_files.build(User, data.get("user"))
        except (OSError, ValueError):  # there is none, or it is damaged: better reported twice than not at all
            return False

    def _remember(self, volume: Volume) -> None:
        """Note that the failure of this job was reported."""
        if self.site.runner.dry:
            return
        note = json.dumps({"boot": kernel.boot_id(), "user": asdict(self.user)}).encode()
        with suppress(LukshookError, OSError):
            ownership.private_folder(self.site.run_folder)
            files.write_whole(self._note(volume), note, durable=False)

    def _note(self, volume: Volume) -> Path:
        return self.site.run_folder / f"{volume.name}.reported"

    def _last_success(self, volume: Volume) -> float | None:
        try:
            return self.site.state(volume).known.last_success
        except LukshookError:  # closing says so
            return None

    def _tell(self, volume: Volume, event: str, seconds: float, status: int | None = None, reason: str = "") -> None:
        channels = self.notices.wanted(event, volume.name)
        if not channels or self.site.runner.dry:
            return
        message = Message(event, volume.name, os.uname().nodename, status, reason)
        try:
            faults = self.notices.send(channels, message, self.site.runner, seconds)
        except OSError as error:  # no process or memory for it
            faults = {channels[0].name: error.strerror or type(error).__name__}
        failed = "; ".join(f"{name}: {fault}" for name, fault in faults.items() if fault)
        if failed:
            self.site.warn(f"the {event} of the backup to volume {volume.name} was not reported everywhere: {failed}")


def _status(outcome: Outcome) -> int | None:
    """The exit status of ours, or that of the command under `run`; None where only the host knows."""
    if isinstance(outcome.error, LukshookError):
        return outcome.error.exit_code
    if isinstance(outcome.error, signals.Interrupted):
        return 128 + outcome.error.signum
    return outcome.exit_status


def _reason(outcome: Outcome) -> str:
    if outcome.error is None:
        return "the backup tool says so"
    return outcome.error.message if isinstance(outcome.error, LukshookError) else str(outcome.error)

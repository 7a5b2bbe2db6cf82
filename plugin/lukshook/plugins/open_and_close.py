"""Our own implementation of the hooks: two wrappers around every other plugin."""

from __future__ import annotations

from collections.abc import Generator

from attrs import frozen

from lukshook import hookimpl
from lukshook.config import Volume
from lukshook.errors import LukshookError
from lukshook.hookspecs import Outcome
from lukshook.system import signals
from lukshook.volume import closing, opening
from lukshook.volume.context import Site
from lukshook.volume.records import User


@frozen(eq=False, repr=False)
class OpenAndClose:
    """Opens before every other plugin and closes after them, whatever they raise.

    pluggy runs plain hooks last in, first out, for "after" as well, and stops at the first that raises; wrappers
    nest, and `tryfirst` makes this one the outermost, also of those that say the same, because it is registered last.
    """

    site: Site
    user: User

    @hookimpl(wrapper=True, tryfirst=True)
    def before_backup(self, volume: Volume) -> Generator[None, object, object]:
        """Open; close again when a plugin says that there must be no backup."""
        opening.open_volume(volume, self.user, self.site)
        try:
            self._grow(volume)
            with signals.allowed():
                return (yield)
        except BaseException as error:
            signals.ignore()
            self._close(volume, error, failed=True)
            raise

    def _close(self, volume: Volume, cause: BaseException | None, *, failed: bool) -> bool:
        """Close, and say so in the hint of *cause*; when closing fails, that is raised and *cause* is a warning.

        Returns whether it is closed now, for all users.
        """
        known = cause if isinstance(cause, LukshookError) else None
        try:
            left = closing.close_volume(volume, self.user, self.site, failed=failed)
        except BaseException:
            if known is not None:
                self.site.warn(known.message)
            raise
        if known is not None and not left:
            known.hint = "; ".join(filter(None, (f"volume {volume.name} is closed", known.hint)))
        return not left

    def _copied(self, volume: Volume, failure: BaseException | None) -> BaseException | None:
        """Copy after a close; *failure*, or what went wrong now where that is the first."""
        try:
            self._copy(volume)
        except LukshookError as error:
            if failure is None:
                return error
            self.site.warn(error.message)
        return failure

    def _copy(self, volume: Volume) -> None:
        """Bring the copies elsewhere up to date. Raises `NotSafe` for one that must not fail."""
        if volume.copies and not self.site.runner.dry:
            from lukshook.proof import copy  # noqa: PLC0415 - few volumes are copied

            copy.copy_after_close(volume, self.site)

    def _grow(self, volume: Volume) -> None:
        if volume.grow is not None and not self.site.runner.dry:
            from lukshook.resize import auto  # noqa: PLC0415 - few volumes grow by themselves

            auto.grow_if_due(volume, self.site)

    @hookimpl(wrapper=True, tryfirst=True)
    def after_backup(self, volume: Volume, outcome: Outcome) -> Generator[None, object, object]:
        """Close, whatever the other plugins raise; that is a warning where something else has gone wrong already."""
        result, failure = None, None
        try:
            result = yield
        except BaseException as error:  # raised again, or reported, after closing
            failure = error
        if self._close(volume, failure, failed=outcome.failed or failure is not None):
            failure = self._copied(volume, failure)
        if failure is not None and outcome.error is None:
            raise failure
        if isinstance(failure, LukshookError):
            self.site.warn(failure.message)
        return result

    @hookimpl(tryfirst=True)
    def report(self, volume: Volume, outcome: Outcome) -> None:
        """Bring the file for the monitoring system up to date."""
        if self.site.metrics is not None:
            from lukshook.report import metrics  # noqa: PLC0415 - only where it is asked for

            metrics.bring_up_to_date(volume, self.site, failed=outcome.failed)

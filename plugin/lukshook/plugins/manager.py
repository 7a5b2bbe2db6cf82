"""The plugin manager: our specs, our own plugin, and those that are installed.

Other plugins are code that may fail in any way (`foreign_code`): what they raise is an error that names them, and
closing does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pluggy
from attrs import frozen

from lukshook import old_pluggy
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, LukshookError
from lukshook.hookspecs import Hooks, Outcome
from lukshook.plugins import entry_points
from lukshook.plugins.entry_points import GROUP, Plugin
from lukshook.plugins.open_and_close import OpenAndClose
from lukshook.system import foreign_code, signals
from lukshook.volume import records

#: The hook whose failures are warnings.
_REPORT = "report"


def get_plugin_manager(ours: OpenAndClose) -> tuple[pluggy.PluginManager, LukshookError | None]:
    """A manager with everything that could be registered, and what is wrong with the plugins that could not be.

    Ours is registered last: so it encloses also those that want to be first.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    problems: list[LukshookError] = []
    with signals.allowed():
        for plugin in entry_points.plugins(ours.site.warn):
            ended = foreign_code.attempt(_whose(plugin.shown), _register, manager, plugin)
            if ended.error is not None:
                problems.append(foreign_code.failed(f"plugin {plugin.shown} cannot be loaded", ended.error))
    for caller in list(vars(manager.hook).values()):
        _watch(caller, ours.site.warn)
    _register_notifying(manager, ours)
    manager.register(ours)
    old_pluggy.adapt(manager)
    return manager, _together(problems)


def _register_notifying(manager: pluggy.PluginManager, ours: OpenAndClose) -> None:
    """Register what tells others, where the configuration names any. It fails no hook."""
    if ours.site.notices is not None:
        from lukshook.plugins.notifying import Notifying  # noqa: PLC0415 - only where it is asked for

        manager.register(Notifying(ours.site, ours.site.notices, ours.user))


def _register(manager: pluggy.PluginManager, plugin: Plugin) -> None:
    """Load and register *plugin*; nothing of it stays registered when that fails."""
    loaded = plugin.load()
    if manager.is_registered(loaded):  # by another name
        return
    name = plugin.name if manager.get_plugin(plugin.name) is None else f"{plugin.name} of {plugin.distribution}"
    try:
        manager.register(loaded, name)
        manager.check_pending()
    except BaseException:
        if manager.is_registered(loaded):
            manager.unregister(loaded)
        raise


def _together(problems: list[LukshookError]) -> LukshookError | None:
    if len(problems) < 2:
        return problems[0] if problems else None
    return BadConfiguration("; ".join(problem.message for problem in problems), hint=problems[0].hint)


@frozen(eq=False, repr=False)
class _Watched:
    """A plugin's implementation of a hook, called so that what it raises names it."""

    plugin: str
    hook: str
    function: Callable[..., Any]

    @property
    def failed(self) -> str:
        """What a message begins with."""
        return f"plugin {self.plugin} failed in {self.hook}"

    def attempt(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> foreign_code.Ended:
        """Call *function*, which is the plugin's. Raises `Interrupted`."""
        return foreign_code.attempt(_whose(self.plugin), function, *arguments, **named)

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Call it. Raises `LukshookError`, `Interrupted`."""
        ended = self.attempt(self.function, *arguments, **named)
        if ended.error is not None:
            raise foreign_code.failed(self.failed, ended.error)
        return ended.value

    def around(self, *arguments: Any, **named: Any) -> Generator[None, object, object]:
        """Step through a wrapper. What it passes on, another's failure or ours, stays as it is."""
        inner = self.call(*arguments, **named)
        given: BaseException | None = None
        if self._step(partial(inner.send, None), given)[0]:
            raise self._misshapen("it ended without a yield")
        try:
            step = partial(inner.send, (yield))
        except BaseException as error:  # handed to the wrapper
            given, step = error, partial(inner.throw, error)
        over, value = self._step(step, given)
        if not over:
            self.attempt(inner.close)
            raise self._misshapen("it has a second yield")
        return value

    def _step(self, step: Callable[[], Any], given: BaseException | None) -> tuple[bool, object]:
        """Take a step in the wrapper: whether that was its end, and what it returned there. Raises also *given*."""
        ended = self.attempt(_step, step)
        if ended.error is not None:
            raise ended.error if ended.error is given else foreign_code.failed(self.failed, ended.error)
        over, value = ended.value
        return over, value

    def _misshapen(self, fault: str) -> BadConfiguration:
        return BadConfiguration(f"{self.failed}: {fault}", hint="a wrapper yields once; see docs/plugins.md")


def _step(step: Callable[[], Any]) -> tuple[bool, object]:
    try:
        step()
    except StopIteration as end:
        return True, end.value
    return False, None


def _whose(plugin: str) -> str:
    return f"a plugin ({plugin})"


def _warned(warn: Callable[[str], None], watched: _Watched, *arguments: Any, **named: Any) -> None:
    """Call a plugin's `report`: what goes wrong there changes nothing, and the next one is called all the same."""
    try:
        watched.call(*arguments, **named)
    except LukshookError as error:
        warn(error.message)


def _watch(caller: Any, warn: Callable[[str], None]) -> None:
    """Have every implementation of a hook watched."""
    for one in caller.get_hookimpls():
        watched = _Watched(Plugin(one.plugin_name, "", "").shown, caller.name, one.function)
        called: Callable[..., Any] = watched.around if old_pluggy.is_new_style(one) or one.hookwrapper else watched.call
        if caller.name == _REPORT and called == watched.call:
            called = partial(_warned, warn, watched)
        # There is no other way to learn whose code has failed.
        one.function = called


def before(ours: OpenAndClose, volume: Volume, skips: Callable[[BaseException], bool] = lambda _: False) -> None:
    """Call every `before_backup`; tell `report` when there will be no backup. *skips*: whether that is a quiet skip.

    Raises `BadConfiguration` before anything is opened where a plugin cannot be loaded.
    """
    manager, problem = get_plugin_manager(ours)
    try:
        if problem is not None:
            raise problem
        manager.hook.before_backup(volume=volume)
    except BaseException as error:
        _report(manager, ours, volume, Outcome(failed=True, error=error, skipped=skips(error)))
        raise


def after(
    ours: OpenAndClose,
    volume: Volume,
    *,
    failed: bool,
    cause: BaseException | None = None,
    exit_status: int | None = None,
) -> None:
    """Call every `after_backup`, close, then call `report` with what came of it. *exit_status*: of the command `run`.

    A plugin that cannot be loaded is an error as well, raised when the volume is closed. *cause*: what went wrong
    already and will be raised by the caller; then a plugin's failure is a warning. Raises any `LukshookError`.
    """
    manager, problem = get_plugin_manager(ours)
    outcome = Outcome(failed=failed or bool(problem or cause), error=cause or problem, exit_status=exit_status)
    try:
        manager.hook.after_backup(volume=volume, outcome=outcome)
    except BaseException as error:
        outcome = Outcome(failed=True, error=error, exit_status=exit_status)
        if problem is not None:
            ours.site.warn(problem.message)
        raise
    finally:
        _report(manager, ours, volume, outcome)
    if problem is None:
        return
    if cause is not None:
        ours.site.warn(problem.message)
        return
    if records.peek(ours.site.run_folder, volume.name) is None:
        problem.hint = f"volume {volume.name} is closed; {problem.hint}"
    raise problem


def _report(manager: pluggy.PluginManager, ours: OpenAndClose, volume: Volume, outcome: Outcome) -> None:
    try:
        manager.hook.report(volume=volume, outcome=outcome)
    except Exception as error:
        ours.site.warn(f"a plugin could not report on volume {volume.name}: {foreign_code.reason(error)}")

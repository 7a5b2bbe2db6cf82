"""All channels at once: each in a process of its own, all of them together within a time that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from attrs import frozen

from lukshook.errors import LukshookError
from lukshook.notify.channel import Channel
from lukshook.notify.message import TEST, Message
from lukshook.system import forked_call
from lukshook.system.command import Runner

#: Seconds that a backup waits at most for its start to be reported, and at its end.
AT_START, AT_END = 10.0, 30.0
#: Seconds before that when a channel gives up by itself, and says why.
_EARLIER = 2.0


@frozen
class Notices:
    """The channels that are configured; *environment*: the caller's, for the commands of key sources."""

    channels: tuple[Channel, ...]
    environment: Mapping[str, str]

    def wanted(self, event: str, volume: str) -> tuple[Channel, ...]:
        """The channels that get *event* of *volume*."""
        return tuple(channel for channel in self.channels if channel.is_for(event, volume))

    def send(self, channels: tuple[Channel, ...], message: Message, runner: Runner, seconds: float) -> dict[str, str]:
        """Tell *channels*, and wait *seconds* at most: what went wrong by the channel's name, "" for nothing."""
        works = [partial(self._deliver, channel, message, runner, seconds - _EARLIER) for channel in channels]
        return _at_once(channels, works, seconds)

    def rehearse(self, channels: tuple[Channel, ...], runner: Runner, seconds: float) -> dict[str, str]:
        """Look for what *channels* need on this machine, as `send` does, and send nothing: the faults as there."""
        message = Message(TEST, "", "")
        works = [
            partial(_fault, partial(_rehearse, channel, message, runner, self.environment)) for channel in channels
        ]
        return _at_once(channels, works, seconds)

    def _deliver(self, channel: Channel, message: Message, runner: Runner, seconds: float) -> str:
        """In the child: what went wrong, or ""."""
        return _fault(partial(_deliver, channel, message, seconds, runner, self.environment))


def _at_once(channels: tuple[Channel, ...], works: Sequence[Callable[[], str]], seconds: float) -> dict[str, str]:
    """Do *works* at the same time: what went wrong by the channel's name, "" for nothing."""
    faults = forked_call.in_children(works, seconds)
    late = f"not done within {seconds:.0f} s"
    return {channel.name: late if fault is None else fault for channel, fault in zip(channels, faults, strict=True)}


def _rehearse(channel: Channel, message: Message, runner: Runner, environment: Mapping[str, str]) -> None:
    from lukshook.notify import kinds  # noqa: PLC0415 - the child alone reads what it takes

    kinds.rehearse(kinds.Delivery(channel, message, 0.0, runner, environment))


def _deliver(
    channel: Channel, message: Message, seconds: float, runner: Runner, environment: Mapping[str, str]
) -> None:
    from lukshook.notify import kinds  # noqa: PLC0415 - the child alone reads what it takes

    kinds.deliver(kinds.Delivery(channel, message, seconds, runner, environment))


def _fault(work: Callable[[], None]) -> str:
    """What *work* raises, in words; of a library only what kind of error it is, for its text may have a secret."""
    try:
        work()
    except LukshookError as error:
        return error.message or type(error).__name__
    except Exception as error:
        return type(error).__name__
    return ""

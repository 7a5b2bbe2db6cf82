"""How each kind of channel is reached: one function for each, in a process of its own that may be ended at any time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from attrs import evolve, frozen

from lukshook.errors import BadConfiguration, Unavailable
from lukshook.keys import key_sources
from lukshook.notify import web
from lukshook.notify.channel import Channel, is_from_source
from lukshook.notify.message import BAD, TEST, Message
from lukshook.system.command import Command, Runner, find_tool
from lukshook.system.secret import Secret
from lukshook.system.text import is_one_line

#: Exit statuses that Healthchecks takes for a failure (its manual, "Pinging API").
_HIGHEST_STATUS = 255


@frozen
class Delivery:
    """A message that goes through *channel*, whose secrets are read; it may take *seconds*."""

    channel: Channel
    message: Message
    seconds: float
    runner: Runner
    environment: Mapping[str, str]

    @property
    def text(self) -> str:
        """What is said."""
        return self.message.text(details=self.channel.details)


def deliver(delivery: Delivery) -> None:
    """Read the secrets of the channel and tell it. Raises `LukshookError`, and what a library raises."""
    channel = delivery.channel
    url, token = (_revealed(text, delivery) for text in (channel.url, channel.token))
    _KINDS[channel.kind](evolve(delivery, channel=evolve(channel, url=url, token=token)))


def rehearse(delivery: Delivery) -> None:
    """Read the secrets of the channel, and look for what it needs here; nothing is sent. Raises `LukshookError`."""
    channel = delivery.channel
    url, _ = (_revealed(text, delivery) for text in (channel.url, channel.token))
    _NEEDS.get(channel.kind, web.check)(url)


def _revealed(text: str, delivery: Delivery) -> str:
    """The URL or token itself. Raises `LukshookError`, which does not show it."""
    if not is_from_source(text):
        return text
    source, argument = key_sources.parse(text)
    asking = key_sources.Asking(delivery.environment, delivery.channel.name, lambda _: None)
    value = bytes(source.obtain(argument, asking)).decode(errors="replace").removesuffix("\n").removesuffix("\r")
    if not value or not is_one_line(value) or not value.isascii():
        raise BadConfiguration(
            f"what {key_sources.name_of(text)} has is no URL or token", hint="it has to be on one line"
        )
    return value


def _healthchecks(delivery: Delivery) -> None:
    """healthchecks.io and its like: /start, nothing, /STATUS or /fail; /log for a test."""
    message = delivery.message
    status = message.exit_status or 0
    suffix = {"start": "/start", "success": "", TEST: "/log"}.get(
        message.event, f"/{status}" if 0 < status <= _HIGHEST_STATUS else "/fail"
    )
    parts = urlsplit(web.check(delivery.channel.url))
    url = parts._replace(path=parts.path.removesuffix("/") + suffix).geturl()
    web.send(web.Request(url, delivery.text.encode()), delivery.seconds)


def _uptime_kuma(delivery: Delivery) -> None:
    """A push monitor: its URL with our status and text. A test counts as a good backup, there is nothing else."""
    status = "down" if delivery.message.event in BAD else "up"
    parts = urlsplit(web.check(delivery.channel.url))
    query = urlencode({"status": status, "msg": delivery.text})
    web.send(web.Request(parts._replace(query=query).geturl()), delivery.seconds)


def _ntfy(delivery: Delivery) -> None:
    """A topic of ntfy: the text is the body."""
    failed = delivery.message.event in BAD
    headers = {
        "Title": "lukshook",
        "Priority": "high" if failed else "default",
        "Tags": "warning" if failed else "white_check_mark",
        **_authorized(delivery.channel),
    }
    web.send(web.Request(delivery.channel.url, delivery.text.encode(), headers), delivery.seconds)


def _webhook(delivery: Delivery) -> None:
    """Any service that takes a POST: the template, filled in."""
    channel = delivery.channel
    body = delivery.message.filled(
        channel.template, details=channel.details, escaped=channel.content_type.startswith("application/json")
    )
    headers = {"Content-Type": channel.content_type, **_authorized(channel)}
    web.send(web.Request(channel.url, body.encode(), headers), delivery.seconds)


def _authorized(channel: Channel) -> dict[str, str]:
    return {"Authorization": f"Bearer {channel.token}"} if channel.token else {}


def _mail(delivery: Delivery) -> None:
    """A mail through sendmail(8), which every mail system has."""
    from email.message import EmailMessage  # noqa: PLC0415 - for mails alone
    from email.policy import SMTP  # noqa: PLC0415

    letter = EmailMessage(policy=SMTP.clone(linesep="\n"))
    letter["To"] = delivery.channel.to
    if delivery.channel.sender:
        letter["From"] = delivery.channel.sender
    letter["Subject"] = delivery.message.text(details=False)
    letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody is to answer
    letter.set_content(delivery.text + "\n")
    home = {name: value for name, value in delivery.environment.items() if name == "HOME"}
    # -i: a line with a dot alone does not end it; -t: to whom the letter says
    delivery.runner.run(
        Command(("sendmail", "-i", "-t"), stdin=Secret(letter.as_bytes()), timeout=delivery.seconds, environment=home)
    )


def _apprise(delivery: Delivery) -> None:
    """Whatever the library Apprise knows."""
    found = _known_to_apprise(delivery.channel.url)
    kind = "failure" if delivery.message.event in BAD else "info"
    if not found.notify(title="lukshook", body=delivery.text, notify_type=kind):
        raise Unavailable("Apprise could not deliver it", hint="try the same URL with the command apprise")


def _known_to_apprise(url: str) -> Any:
    """The library, with *url*. Raises `LukshookError`."""
    found = _library().Apprise()
    if not found.add(url):
        raise BadConfiguration("Apprise does not know its URL", hint="see the page of that service in Apprise's wiki")
    return found


def _library() -> Any:
    try:
        return importlib.import_module("apprise")
    except ImportError as error:
        raise Unavailable(
            "it needs the library Apprise", hint="install the extra apprise: docs/install.md, Extras"
        ) from error


_KINDS: dict[str, Callable[[Delivery], None]] = {
    "healthchecks": _healthchecks,
    "uptime-kuma": _uptime_kuma,
    "ntfy": _ntfy,
    "webhook": _webhook,
    "mail": _mail,
    "apprise": _apprise,
}

#: What looks for what a kind needs here, given its URL, where that is not only a URL that can be asked.
_NEEDS: dict[str, Callable[[str], object]] = {"mail": lambda _: find_tool("sendmail"), "apprise": _known_to_apprise}

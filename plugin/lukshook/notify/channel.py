"""The channels of `[notify]`: what the configuration says of each. Reports all problems, each with its location."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen

from lukshook.errors import LukshookError
from lukshook.keys import key_sources
from lukshook.notify.message import BAD, DEFAULT_TEMPLATE, EVENTS, fault_of_template
from lukshook.notify.url import is_good
from lukshook.options import reader, values
from lukshook.options.reader import Reader, Schema, shaped
from lukshook.system.text import clipped

#: Key sources that can hold a URL or a token: nobody has to type it, and it stands in no environment.
_SOURCES = ("file", "command", "credential", "container", "keyring")
_FROM_SOURCE = re.compile(rf"({'|'.join(_SOURCES)}):(?!//)")
_NAME = r"[A-Za-z0-9_-]{1,40}"
_ADDRESS = r"[^\s,<>@]+(@[^\s,<>@]+)?"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
#: How each kind is called, the options it needs and those it may have, and the events it gets by default.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "healthchecks": (("url",), (), ("start", "success", "failure")),
    "uptime-kuma": (("url",), (), ("success", "failure")),
    "ntfy": (("url",), ("token",), BAD),
    "webhook": (("url",), ("token", "template", "content_type"), BAD),
    "mail": (("to",), ("from",), BAD),
    "apprise": (("url",), (), BAD),
}
#: Kinds whose URL is not asked by us.
_OWN_URLS = ("apprise", "mail")
#: Options of every kind.
_COMMON = ("kind", "events", "volumes", "details")


@frozen
class Channel:
    """A way to tell somebody. *events*: which; *volumes*: of which volumes, empty for all of them.

    *url*, *token*: the text itself, or a key source that has it. *details*: names, hosts and reasons are sent as well.
    *sender*: the address in "From" of a mail, "" for what the mail system writes there.
    """

    name: str
    kind: str
    events: tuple[str, ...] = Factory(lambda self: KINDS[self.kind][2], takes_self=True)
    volumes: tuple[str, ...] = ()
    details: bool = False
    url: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    template: str = DEFAULT_TEMPLATE
    content_type: str = "application/json"
    to: str = ""
    sender: str = ""

    @property
    def has_secret_written(self) -> bool:
        """Whether a token, or a URL, which may have one in it, stands in the configuration itself."""
        return any(text and not is_from_source(text) for text in (self.url, self.token))

    def is_for(self, event: str, volume: str) -> bool:
        """Whether it gets *event* of *volume*."""
        return event in self.events and (not self.volumes or volume in self.volumes)


def is_from_source(text: str) -> bool:
    """Whether a URL or token is not written here, but in a key source."""
    return bool(_FROM_SOURCE.match(text))


def _can_be_asked(text: str) -> bool:
    """Whether a URL is one for the web; what is in a key source is seen when it is read."""
    return not text or is_from_source(text) or is_good(text)


@shaped(values.line.shape)
def _secret(value: Any) -> str:
    text = values.line(value)
    if is_from_source(text):
        key_sources.parse(text)
    return text


@shaped(lambda: reader.text(f"({_SCHEME}|({'|'.join(_SOURCES)}):).*"))
def _url(value: Any) -> str:
    text = _secret(value)
    if not is_from_source(text) and not re.match(_SCHEME, text):
        raise ValueError("a URL, or where it is, such as file:/etc/lukshook/ping.url")
    return text


@shaped(lambda: {"type": "string"})
def _template(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    fault = fault_of_template(value)
    if fault:
        raise ValueError(fault)
    return value


@shaped(lambda: reader.text(_ADDRESS))
def _address(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(_ADDRESS, value):
        raise ValueError("one mail address, such as root or admin@example.org")
    return value


@shaped(lambda: reader.several({"enum": list(EVENTS)}))
def _events(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(one in EVENTS for one in value):
        raise ValueError("a list with some of: " + ", ".join(EVENTS))
    return tuple(value)


@shaped(lambda: reader.several({"type": "string"}))
def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ValueError('a list of volumes, such as ["offsite"]')
    return tuple(value)


#: Every option and what reads it: a value that does not fit raises ValueError with what would.
OPTIONS: dict[str, Reader[Any]] = {
    "events": _events,
    "volumes": _names,
    "details": values.boolean,
    "url": _url,
    "token": _secret,
    "template": _template,
    "content_type": values.line,
    "to": _address,
    "from": _address,
}


def schema() -> Schema:
    """A piece of a JSON schema: the table `notify`."""
    kinds = [_of_kind(kind, *parts[:2]) for kind, parts in KINDS.items()]
    return {"type": "object", "propertyNames": {"pattern": f"^{_NAME}$"}, "additionalProperties": {"anyOf": kinds}}


def _of_kind(kind: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> Schema:
    known = [name for name in (*_COMMON, *needed, *optional) if name in OPTIONS]
    readers = {"kind": values.choice((kind,)), **{name: OPTIONS[name] for name in known}}
    return reader.table(readers, needed=("kind", *needed))


def parse(tables: Any, volumes: Mapping[str, Any]) -> tuple[tuple[Channel, ...], list[str]]:
    """The channels of the table `notify`, and what is wrong in it. *volumes*: those that are configured."""
    if not isinstance(tables, dict):
        return (), ["notify: must be tables, [notify.NAME]"]
    problems: list[str] = []
    found = [_channel(name, table, volumes, problems) for name, table in tables.items()]
    return tuple(channel for channel in found if channel is not None), problems


def _channel(name: str, table: Any, volumes: Mapping[str, Any], problems: list[str]) -> Channel | None:
    at, before = f"notify.{clipped(name, 60)}", len(problems)
    if not re.fullmatch(_NAME, name):
        problems.append(f"{at}: a name has up to 40 letters, digits, dashes, underscores")
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        problems.append(f"{at}.kind: has to be one of {', '.join(KINDS)}")
        return None
    needed, optional, _ = KINDS[kind]
    known = (*_COMMON, *needed, *optional)
    problems += [f"{at}.{clipped(key, 60)}: {kind} has no such option" for key in table if key not in known]
    problems += [f"{at}.{key}: missing" for key in needed if key not in table]
    read = {key: _value(f"{at}.{key}", table[key], problems) for key in table if key in OPTIONS and key in known}
    for volume in read.get("volumes") or ():
        if volume not in volumes:
            problems.append(f"{at}.volumes: there is no volume {clipped(volume, 60)}")
    if kind not in _OWN_URLS and not _can_be_asked(read.get("url") or ""):
        problems.append(f"{at}.url: has to begin with https:// or http://, with a host and without a password")
    if len(problems) > before:
        return None
    return Channel(name, kind, **{"sender" if key == "from" else key: value for key, value in read.items()})


def _value(address: str, value: Any, problems: list[str]) -> Any:
    """What *value* means; it is not shown where it is wrong, for it may be a secret."""
    try:
        return OPTIONS[address.rpartition(".")[2]](value)
    except ValueError as error:
        problems.append(f"{address}: has to be {error}")
    except LukshookError as error:
        problems.append(f"{address}: {error.message}")
    return None

"""What is reported of a backup, in words and in the fields of a template."""

from __future__ import annotations

import json
import string

from attrs import frozen

from lukshook.system.text import clipped, one_line

#: What can be reported, as the option `events` names it.
EVENTS = ("start", "success", "failure", "late")
#: Those that are bad news.
BAD = ("failure", "late")
#: A message that somebody asked for.
TEST = "test"
_HEADS = {
    "start": "a backup has started",
    "success": "a backup is done and safely stored",
    "failure": "a backup failed",
    "late": "a backup is late",
    TEST: "this is a test message",
}
#: What an exit status means, for those who may not see a reason with names (docs/exit-codes.md).
_MEANINGS = {
    65: "the image is not as it was left, or its history is wrong",
    69: "the store, the image or a tool is not available",
    71: "the volume could not be closed",
    74: "what was written is not safely stored",
    77: "the key or the permission is missing",
    78: "the configuration is wrong",
}
#: Characters of a reason; ntfy takes messages of up to 4096 bytes.
_MOST = 1000
_FIELDS = ("event", "text", "volume", "host", "exit_status", "reason")
DEFAULT_TEMPLATE = "{" + ", ".join(f'"{name}": "${name}"' for name in _FIELDS) + "}"


@frozen
class Message:
    """*event* of *volume* on *host*. Of a failure: the exit status, None where it is not known, and the reason.

    The reason of what is late is how long ago the last good backup was.
    """

    event: str
    volume: str
    host: str
    exit_status: int | None = None
    reason: str = ""

    def text(self, *, details: bool) -> str:
        """A sentence. Without *details* it names nothing of this machine."""
        where = f"volume {self.volume} on {one_line(self.host)}: " if details and self.volume else "lukshook: "
        status = "" if self.exit_status is None else f" with exit status {self.exit_status}"
        reason = self.why(details=details)
        return f"{where}{_HEADS[self.event]}{status}{f': {reason}' if reason else ''}"

    def why(self, *, details: bool) -> str:
        """Why it failed; without *details* only what the exit status means, "" where it means nothing of ours."""
        known = _MEANINGS.get(self.exit_status or 0, "")
        return clipped(self.reason, _MOST) or known if details else known

    def filled(self, template: str, *, details: bool, escaped: bool) -> str:
        """*template* with its fields; *escaped*: for within a text in JSON."""
        values = {
            "event": self.event,
            "text": self.text(details=details),
            "volume": self.volume if details else "",
            "host": one_line(self.host) if details else "",
            "exit_status": "" if self.exit_status is None else str(self.exit_status),
            "reason": self.why(details=details),
        }
        if escaped:
            values = {name: json.dumps(value)[1:-1] for name, value in values.items()}
        return string.Template(template).substitute(values)


def fault_of_template(template: str) -> str:
    """What a template has to be where *template* is something else, or ""."""
    try:
        string.Template(template).substitute(dict.fromkeys(_FIELDS, ""))
    except (KeyError, ValueError):
        return "a text with the fields " + ", ".join(f"${name}" for name in _FIELDS) + ", and $$ for a dollar sign"
    return ""

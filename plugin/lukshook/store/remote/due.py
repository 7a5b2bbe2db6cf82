"""Until when each request of a connection has to be answered: a server that says something now and then holds nobody.

Silence alone does not show that: one byte each few seconds ends it, and so do the answers to other requests.
"""

from __future__ import annotations

from collections.abc import Hashable

#: Bytes a second that a line carries at least. A slower one could not carry a backup.
_LEAST = 4096
#: What stores may wait until a disk has synced what others wrote: so many times the silence.
_STORING = 4
#: Seconds between two looks at all of them; that one step of ours can take. A process that was frozen has not waited.
_LOOK_SECONDS, _STEP_SECONDS = 1.0, 2.0


class Due:
    """The requests that have no answer. *silence*: seconds that a server may take in any case, 0 for no limit.

    *now*: the seconds in which we have listened to the server.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._until: dict[Hashable, float] = {}
        self._carried: dict[Hashable, int] = {}
        self._under_way = 0
        self._looked = 0.0
        self.now = 0.0

    def wait(self, seconds: float) -> float:
        """How long to wait for the server where *seconds* are left."""
        return max(min(seconds, _LOOK_SECONDS), 0)

    def passed(self, seconds: float) -> None:
        """So many more, in which we have listened."""
        self.now += min(seconds, _STEP_SECONDS)

    def asked(self, key: Hashable, carries: int, *, stores: bool) -> None:
        """A request with *key*; it and its answer bring so many bytes. What is under way may come before them."""
        self.answered(key)
        self._carried[key] = carries
        self._under_way += carries
        self._until[key] = self.now + self._silence * (_STORING if stores else 1) + self._under_way / _LEAST

    def answered(self, key: Hashable) -> None:
        """All of its answer is here."""
        self._until.pop(key, None)
        self._under_way -= self._carried.pop(key, 0)

    def is_late(self) -> bool:
        """Whether one of them should have its answer by now."""
        if not self._silence or self.now < self._looked + _LOOK_SECONDS:
            return False
        self._looked = self.now
        return bool(self._until) and self.now > min(self._until.values())

"""What counts as an older image, and what does not."""

from __future__ import annotations

import time

import pytest

from lukshook.errors import Refused
from lukshook.volume.judgement import Accepting, Pinned
from lukshook.volume.known_state import Known

CLOSED = time.mktime((2026, 3, 7, 4, 30, 0, 0, 0, -1))
KNOWN = Known(filesystem="ours", written=100, last_close=CLOSED)


@pytest.mark.parametrize("written", [100, 101, 10**15, None])
def test_as_much_or_more_than_at_the_last_close_is_no_alarm(written: int | None) -> None:
    """A crash, another host, or a kind of file system without a count."""
    Pinned("v", KNOWN).history("ours", written)


def test_a_host_without_a_count_raises_no_alarm() -> None:
    """One that knows nothing of the volume, or was told of its header alone."""
    pinned = Pinned("v", Known())
    pinned.history("ours", 1)
    assert "ours" == pinned.known.filesystem


@pytest.mark.parametrize("judge", [Pinned, Accepting])
def test_less_is_an_older_image(judge: type[Pinned]) -> None:
    """For `trust` as well, unless it is told; with the day of the last close and the command."""
    with pytest.raises(Refused) as caught:
        judge("v", KNOWN).history("ours", 99)
    assert "the image of volume v is older than when this host closed it last, 2026-03-07 04:30" == caught.value.message
    assert "lukshook trust --rollback v" in caught.value.hint


def test_what_is_accepted_is_known_from_then_on() -> None:
    """An older image with --rollback, another file system without; the latter has a count of its own."""
    older = Accepting("v", KNOWN, rollback=True)
    older.history("ours", 99)
    Pinned("v", older.known).history("ours", 99)
    other = Accepting("v", KNOWN)
    other.history("theirs", 5)
    assert ("theirs", 5) == (other.known.filesystem, other.known.written)


def test_another_file_system_is_refused() -> None:
    """Whatever its count is."""
    with pytest.raises(Refused, match="contains file system"):
        Pinned("v", KNOWN).history("theirs", 1000)

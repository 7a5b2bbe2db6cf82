"""What a conversation with an SFTP server takes from the far side besides."""

from __future__ import annotations

import os

from lukshook.store.remote import sftp_session


def test_of_what_the_far_side_says_only_the_begin_is_kept() -> None:
    """It can say any amount: that fills no disk, and nothing waits for it."""
    with sftp_session._far_words() as (errors, said):
        os.write(errors, b"first ")
        for _ in range(100):
            os.write(errors, b"w" * (1 << 16))
    assert "first " + "w" * ((1 << 16) - 6) == said()


def test_a_far_side_that_says_nothing_is_heard_at_once() -> None:
    with sftp_session._far_words() as (_, said):
        pass
    assert "" == said()

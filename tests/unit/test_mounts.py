"""What a line of mountinfo says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from lukshook.layers import mount as layer
from lukshook.store import liveness
from lukshook.system import kernel
from lukshook.system.command import Command, TimedOut
from support.fake_runner import FakeRunner

FORCED = "36 35 0:31 / /mnt rw,nosuid,noatime shared:7 master:1 - btrfs /dev/loop1 ro,space_cache=v2,subvol=/"
REMOUNTED = "36 35 7:1 / /mnt ro,noatime - ext4 /dev/loop1 ro,errors=remount-ro"
HEALTHY = r"36 35 7:1 /a\040b /mnt rw,noatime - ext4 /dev/loop1 rw,errors=remount-ro"


@pytest.mark.parametrize(
    ("line", "own", "common"),
    [
        pytest.param(
            FORCED,
            frozenset({"rw", "nosuid", "noatime"}),
            frozenset({"ro", "space_cache=v2", "subvol=/"}),
            id="by the kernel",
        ),
        pytest.param(REMOUNTED, frozenset({"ro", "noatime"}), frozenset({"ro", "errors=remount-ro"}), id="by us"),
        pytest.param(HEALTHY, frozenset({"rw", "noatime"}), frozenset({"rw", "errors=remount-ro"}), id="not at all"),
    ],
)
def test_who_made_it_read_only(tmp_path: Path, line: str, own: frozenset[str], common: frozenset[str]) -> None:
    """The options of the mount and those of the super block are kept apart, and known together."""
    (tmp_path / "mountinfo").write_text(f"{line}\n")

    (found,) = kernel.mounts(f"self/root{tmp_path}")

    assert (own, common, own | common) == (found.own, found.common, found.options)


def stuck(work: Callable[[int], None], descriptor: int, command: Command) -> NoReturn:
    """A system call that does not return."""
    raise TimedOut(command)


def test_a_loss_outlives_a_store_that_dies_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it once, so it is with the error, and no further try waits for the store."""
    monkeypatch.setattr(liveness, "call", stuck)
    place = kernel.Mount("0:50", "/", "/mnt", "ext4", "/dev/x", frozenset({"rw"}), frozenset())
    with pytest.raises(TimedOut) as caught:
        layer._make_read_only(place, -1, "Input/output error", FakeRunner())

    assert "Input/output error" == caught.value.lost


def test_what_the_kernel_says_is_worked_out_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` asks for every volume, and there may be thousands of mounts."""
    told = [b"21 1 0:19 / /a rw - tmpfs a rw\n"] * 2 + [b"21 1 0:19 / /b rw - tmpfs a rw\n", b""]
    monkeypatch.setattr(kernel, "_content", lambda _path: told.pop(0))

    first, same, other, gone = (kernel.mounts() for _ in range(4))

    assert first is same
    assert (["/a"], ["/b"], []) == tuple([mount.target for mount in mounts] for mounts in (first, other, gone))

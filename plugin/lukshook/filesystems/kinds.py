"""The kinds of file system that a volume can have, by the name that the configuration, mount(8) and the kernel use."""

from __future__ import annotations

from lukshook.filesystems import btrfs, ext4, xfs
from lukshook.filesystems.kind import Kind

KINDS: dict[str, Kind] = {
    "ext4": ext4.KIND,
    "xfs": xfs.KIND,
    "btrfs": btrfs.KIND,
}

#: The kind of a new file system where the configuration names none.
DEFAULT = "ext4"


def in_words() -> str:
    """All kinds, for a message: "ext4, xfs or btrfs"."""
    *first, last = KINDS
    return f"{', '.join(first)} or {last}"


def has_own_numbers(name: str) -> bool:
    """Whether mounts of the kind *name*, which may be any that the kernel has, have numbers of their own."""
    kind = KINDS.get(name)
    return kind is not None and kind.own_numbers

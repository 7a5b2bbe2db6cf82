"""The engines: each is a stack of layers, and what follows from that for a volume. One entry per engine."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import frozen

from lukshook.system import kernel


def _needs_nothing() -> str:
    return ""


def _kernel_lacks() -> str:
    if os.geteuid():
        return "this user is not root"
    if not kernel.has_capability(kernel.CAP_SYS_ADMIN):
        return "this root has no CAP_SYS_ADMIN"
    return "" if kernel.has_device_mapper() else "this kernel has no device-mapper"


@frozen(kw_only=True)
class Engine:
    """One way to open a volume.

    choice: the value of the option `engine` that selects it.
    layers: names of its layers, bottom first.
    for_root, for_users: who can open a volume with it.
    why: in words, why it is chosen where nothing is configured.
    lacks: why it cannot be used here, in words, or "".
    header: the LUKS version that it can read: `create` makes a header of this type.
    reads_raw_keys: whether it is given the key's bytes; otherwise it is given the key as text (base64).
    journaled: whether its writer uses the journal of the file system.
    """

    choice: str
    layers: tuple[str, ...]
    for_root: bool
    for_users: bool
    why: str = ""
    lacks: Callable[[], str] = _needs_nothing
    header: str = "luks2"
    reads_raw_keys: bool = True
    journaled: bool = True

    def is_for(self, *, root: bool) -> bool:
        """Whether root, or an ordinary user, can open a volume with it."""
        return self.for_root if root else self.for_users


#: By the name that records and `status` show; the first that this machine has is chosen where nothing is configured.
ENGINES = {
    "kernel": Engine(
        choice="kernel",
        layers=("image", "loop", "dmcrypt", "filesystem", "mount"),
        for_root=True,
        for_users=False,
        why="root, and device-mapper is there",
        lacks=_kernel_lacks,
    ),
    "userspace": Engine(
        choice="userspace",
        layers=("image", "qemu", "loop", "filesystem", "mount"),
        for_root=True,
        for_users=False,
        header="luks1",
        reads_raw_keys=False,
    ),
    "rootless": Engine(
        choice="userspace",
        layers=("image", "qemu", "filesystem", "fuse2fs"),
        for_root=False,
        for_users=True,
        header="luks1",
        reads_raw_keys=False,
        journaled=False,
    ),
}

#: What the option `engine` takes.
CHOICES = ("auto", *dict.fromkeys(engine.choice for engine in ENGINES.values()))

"""The layers, and the engines: each is a stack of layers, with what follows from that. One entry for each."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import frozen

from lukshook.layers import dmcrypt, era, filesystem, fuse2fs, image, loop, mount, qemu
from lukshook.layers.base import LayerHandle, LayerSpec
from lukshook.system import kernel


@frozen(eq=False, repr=False)  # every start of lukshook pays for what attrs makes
class Layer:
    """One kind of layer.

    spec: what a configuration asks of it; `config.Volume` has a field of the layer's name for that.
    handle: what is open of it; its part of a record is read into this.
    tools: the programs it starts.
    """

    spec: type[LayerSpec]
    handle: type[LayerHandle]
    tools: tuple[str, ...]


#: By the name that engines and records have for it.
LAYERS = {
    "image": Layer(image.Spec, image.Handle, image.TOOLS),
    "loop": Layer(loop.Spec, loop.Handle, loop.TOOLS),
    "era": Layer(era.Spec, era.Handle, era.TOOLS),
    "dmcrypt": Layer(dmcrypt.Spec, dmcrypt.Handle, dmcrypt.TOOLS),
    "qemu": Layer(qemu.Spec, qemu.Handle, qemu.TOOLS),
    "filesystem": Layer(filesystem.Spec, filesystem.Handle, filesystem.TOOLS),
    "mount": Layer(mount.Spec, mount.Handle, mount.TOOLS),
    "fuse2fs": Layer(fuse2fs.Spec, fuse2fs.Handle, fuse2fs.TOOLS),
}


def _needs_nothing() -> str:
    return ""


def _kernel_lacks() -> str:
    if os.geteuid():
        return "this user is not root"
    if not kernel.has_capability(kernel.CAP_SYS_ADMIN):
        return "this root has no CAP_SYS_ADMIN"
    return "" if kernel.has_device_mapper() else "this kernel has no device-mapper"


@frozen(kw_only=True, eq=False, repr=False)
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
    opens_devices: whether the image can be a block device.
    grows_open: whether an open volume can grow while it is in use.
    trims: whether it tells the store which blocks the file system does not use.
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
    opens_devices: bool = False
    grows_open: bool = False
    trims: bool = False

    def is_for(self, *, root: bool) -> bool:
        """Whether root, or an ordinary user, can open a volume with it."""
        return self.for_root if root else self.for_users


#: By the name that records and `status` show; the first that this machine has is chosen where nothing is configured.
ENGINES = {
    "kernel": Engine(
        choice="kernel",
        layers=("image", "loop", "era", "dmcrypt", "filesystem", "mount"),
        for_root=True,
        for_users=False,
        why="root, and device-mapper is there",
        lacks=_kernel_lacks,
        opens_devices=True,
        grows_open=True,
        trims=True,
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

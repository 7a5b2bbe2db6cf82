"""The same as `faulty_target` for places without files: one block device, or two of which one comes and goes."""

from __future__ import annotations

import random
from collections.abc import Iterator

from attrs import frozen

from lukshook.store.block_target import BlockTarget
from support.faulty_target import Cut, FaultyTarget, Node, Steps

#: Bytes of a device that cannot grow, and of the annex that comes and goes.
LENGTH = 1 << 18


@frozen
class View:
    """A file, as the running machine sees it."""

    live: memoryview


class FaultyDevice:
    """A device on such a disk, that can be stopped at every step. *index*: which of the disk's nodes it is."""

    def __init__(self, disk: BlockDisk, index: int, steps: Steps) -> None:
        self.disk, self.index, self.steps = disk, index, steps
        self.can_grow = disk.grows

    @property
    def node(self) -> Node:
        found = self.disk.nodes[self.index]
        assert found is not None
        return found

    @property
    def length(self) -> int | None:
        return None if self.disk.nodes[self.index] is None else len(self.node.live)

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.node.live)
        return bytes(self.node.live[offset : offset + length])

    def write(self, offset: int, content: bytes | memoryview) -> None:
        assert offset + len(content) <= len(self.node.live)
        half = self.steps.take()
        self.disk.sent += len(content)
        self.node.change("write", offset, bytes(content[: len(content) // 2] if half else content))
        if half:
            raise Cut

    def clear(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def sync(self) -> None:
        self.steps.take_whole()
        if self.disk.honest:
            self.node.sync()

    def resize(self, length: int) -> None:
        """Safe at once, as a cluster does it."""
        assert self.can_grow
        self.steps.take_whole()
        if self.disk.nodes[self.index] is None:
            self.disk.nodes[self.index] = Node()
        self.node.change("resize", length)
        self.node.sync()

    def claim(self) -> None:
        pass

    def remove(self) -> None:
        """A cluster removes an image part by part, in any order, and its name last."""
        if self.disk.nodes[self.index] is not None:
            if self.steps.take():
                self.disk.lose_parts(self.node)
                raise Cut
            self.disk.nodes[self.index] = None

    def free(self) -> int | None:
        return None


class BlockDisk:
    """As `faulty_target.Disk`. *grows*: there are two devices, which are made when they are needed."""

    clones = False

    def __init__(self, *, grows: bool, length: int = LENGTH) -> None:
        self.grows, self.honest, self.sent = grows, True, 0
        #: Which parts of an image remain of a removal that is interrupted, of a hundred.
        self.remain: tuple[int, ...] = (0,)
        self.nodes: list[Node | None] = [None, None]
        if not grows:
            self.nodes = [Node()]
            self.nodes[0].change("resize", length)  # type: ignore[union-attr]
            self.nodes[0].sync()  # type: ignore[union-attr]

    def target(self, steps: Steps) -> BlockTarget:
        devices = [FaultyDevice(self, index, steps) for index in range(len(self.nodes))]
        return BlockTarget(devices[0], devices[-1], FaultyTarget.name, FaultyTarget.shown)

    @property
    def names(self) -> dict[str, View]:
        target = self.target(Steps())
        return dict(self._views(target))

    def _views(self, target: BlockTarget) -> Iterator[tuple[str, View]]:
        for table, node in ((target._copy, self.nodes[0]), (target._beside, self.nodes[-1])):
            for name, place in table.items():
                live = memoryview(node.live) if node else memoryview(bytearray())
                yield name, View(live[place.at : place.at + place.length])

    def content(self, name: str) -> bytes | None:
        found = self.names
        return bytes(found[name].live) if name in found else None

    def power_cut(self, chance: random.Random) -> None:
        """Each write that was not synced is lost or not; one may be half there."""
        for node in self.nodes:
            if node is not None:
                node.lose(chance)

    def lose_parts(self, node: Node) -> None:
        """What a removal that is interrupted does."""
        node.sync()
        size = -(-len(node.live) // 100)
        for part in set(range(100)) - {*self.remain}:
            begin, length = part * size, max(min(size, len(node.live) - part * size), 0)
            node.change("write", begin, bytes(length))
        node.sync()

    def copy(self) -> BlockDisk:
        other = BlockDisk(grows=self.grows)
        other.remain = self.remain
        for index, node in enumerate(self.nodes):
            fresh = Node() if node is not None else None
            if fresh is not None and node is not None:
                fresh.live, fresh.disk = bytearray(node.live), bytearray(node.live)
            other.nodes[index] = fresh
        return other

"""A target in memory that can be stopped at every step, and lose what was not synced, as a disk does in a power cut."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from lukshook.ledger.columns import Column
from lukshook.replica import held as held_module
from lukshook.replica.held import Held
from lukshook.store.target import TargetFile


class Cut(BaseException):
    """The process is gone at this step."""


class Steps:
    """Counts the steps of a run, and ends it at one of them. *at*: the number of steps that are done; None: never."""

    def __init__(self, at: int | None = None) -> None:
        self.done = 0
        self.at = at

    def take(self) -> bool:
        """A step begins; True: half of it is done, and then `Cut` comes."""
        if self.done == self.at:
            return True
        self.done += 1
        return False

    def take_whole(self) -> None:
        """A step that is done or not."""
        if self.take():
            raise Cut


class Node:
    """A file: as the running machine sees it, and as the disk has it."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.disk = bytearray()
        self.pending: list[tuple[Any, ...]] = []

    def change(self, *operation: Any) -> None:
        _carry_out(self.live, operation)
        self.pending.append(operation)

    def sync(self) -> None:
        for operation in self.pending:
            _carry_out(self.disk, operation)
        self.pending.clear()

    def lose(self, chance: random.Random) -> None:
        for operation in self.pending:
            if chance.random() < 0.5:
                _carry_out(self.disk, _torn(operation, chance))
        self.pending.clear()
        self.live = bytearray(self.disk)


def _carry_out(content: bytearray, operation: tuple[Any, ...]) -> None:
    match operation:
        case ("write", int(offset), data):
            content.extend(bytes(max(offset + len(data) - len(content), 0)))
            content[offset : offset + len(data)] = data
        case ("resize", int(size)):
            del content[size:]
            content.extend(bytes(size - len(content)))


def _torn(operation: tuple[Any, ...], chance: random.Random) -> tuple[Any, ...]:
    if operation[0] == "write" and chance.random() < 0.3:
        kind, offset, data = operation
        return kind, offset, data[: chance.randrange(len(data) + 1)]
    return operation


class Disk:
    """What the target lies on. *honest*: it syncs when it is told to; *clones*: files can share blocks."""

    def __init__(self, *, honest: bool = True, clones: bool = False, copies: bool = False) -> None:
        self.honest, self.clones, self.copies = honest, clones, copies
        self.names: dict[str, Node] = {}
        self.disk: dict[str, Node] = {}
        self.pending: list[tuple[Any, ...]] = []
        self.sent = 0

    def change(self, *operation: Any) -> None:
        _rename(self.names, operation)
        self.pending.append(operation)

    def sync_folder(self) -> None:
        if self.honest:
            for operation in self.pending:
                _rename(self.disk, operation)
            self.pending.clear()

    def power_cut(self, chance: random.Random) -> None:
        """What was not synced is lost, or not, each change by chance; one write, or one rename, may be half there."""
        for node in {id(node): node for node in (*self.names.values(), *self.disk.values())}.values():
            node.lose(chance)
        for operation in self.pending:
            if chance.random() < 0.5:
                torn = operation[0] == "rename" and chance.random() < 0.2
                _rename(self.disk, ("enter", operation[2], operation[3]) if torn else operation)
        self.pending.clear()
        self.names = dict(self.disk)

    def target(self, steps: Steps) -> FaultyTarget:
        """As the next process has it."""
        return FaultyTarget(self, steps)

    def content(self, name: str) -> bytes | None:
        return bytes(self.names[name].live) if name in self.names else None

    def copy(self) -> Disk:
        """The same disk once more, as it is now, all of it synced."""
        other = Disk(honest=self.honest, clones=self.clones, copies=self.copies)
        for name, node in self.names.items():
            fresh = Node()
            fresh.live, fresh.disk = bytearray(node.live), bytearray(node.live)
            other.names[name] = other.disk[name] = fresh
        return other


def _rename(names: dict[str, Node], operation: tuple[Any, ...]) -> None:
    match operation:
        case ("enter", str(name), node):
            names[name] = node
        case ("rename", str(name), str(wanted), node):
            if names.get(name) is node:
                del names[name]
            names[wanted] = node
        case ("unlink", str(name)):
            names.pop(name, None)


class FaultyFile:
    """A file on such a disk."""

    def __init__(self, disk: Disk, node: Node, steps: Steps) -> None:
        self.disk, self.node, self.steps = disk, node, steps

    def close(self) -> None:
        pass

    @property
    def size(self) -> int:
        return len(self.node.live)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.node.live[offset : offset + length])

    def write(self, offset: int, content: bytes | memoryview) -> None:
        half = self.steps.take()
        self.disk.sent += len(content)
        self.node.change("write", offset, bytes(content[: len(content) // 2] if half else content))
        if half:
            raise Cut

    def clear(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def resize(self, size: int) -> None:
        self.steps.take_whole()
        self.node.change("resize", size)

    def take(self, source: TargetFile, start: int, offset: int, length: int) -> bool:
        if self.disk.copies:
            before = self.disk.sent
            self.write(offset, source.read(start, length))
            self.disk.sent = before
        return self.disk.copies

    def data(self, start: int) -> int:
        return start

    def sync(self) -> None:
        self.steps.take_whole()
        if self.disk.honest:
            self.node.sync()


class FaultyTarget:
    """A folder on such a disk, with a replica "r"."""

    name = "r"
    shown = "/target/r"
    shows_neighbours = True

    def __init__(self, disk: Disk, steps: Steps) -> None:
        self.disk, self.steps = disk, steps

    def open(self, name: str, *, writable: bool) -> FaultyFile:
        if name not in self.disk.names:
            raise FileNotFoundError(name)
        return FaultyFile(self.disk, self.disk.names[name], self.steps)

    def create(self, name: str) -> FaultyFile:
        if name in self.disk.names:
            raise FileExistsError(name)
        self.steps.take_whole()
        self.disk.change("enter", name, Node())
        return FaultyFile(self.disk, self.disk.names[name], self.steps)

    def claim(self) -> None:
        pass

    def clone(self, name: str, fresh: str) -> bool:
        if not self.disk.clones:
            return False
        copy = self.create(fresh)
        self.steps.take_whole()
        copy.node.change("write", 0, bytes(self.disk.names[name].live))
        return True

    def exists(self, name: str) -> bool:
        return name in self.disk.names

    def rename(self, name: str, wanted: str) -> None:
        self.steps.take_whole()
        self.disk.change("rename", name, wanted, self.disk.names[name])

    def unlink(self, name: str) -> None:
        if name in self.disk.names:
            self.steps.take_whole()
            self.disk.change("unlink", name)

    def sync_folder(self) -> None:
        self.steps.take_whole()
        self.disk.sync_folder()

    def plan(self, size: int, spare: str) -> None:
        pass

    def taken(self, size: int, fresh: int) -> int:
        return fresh

    def is_same_file(self, other: int) -> bool:
        return False

    def free(self) -> int | None:
        return None


class _FaultyColumn(Column):
    def __init__(self, file: Path, width: int, steps: Steps) -> None:
        super().__init__(file, width)
        self._steps = steps

    def put(self, first: int, values: bytes) -> None:
        self._steps.take_whole()
        super().put(first, values)


class FaultyHeld(Held):
    """What is known of a target, kept in steps that count."""

    steps = Steps()

    def save(self, **changed: Any) -> None:
        self.steps.take_whole()
        super().save(**changed)

    def digests(self) -> Column:
        return _FaultyColumn(self._file("digests"), held_module.WIDTH, self.steps)


def held_in(folder: Path, steps: Steps) -> FaultyHeld:
    """What is known of the target in *folder*, as the next process reads it."""
    known = held_module.of(folder, FaultyTarget.shown) or held_module.new(folder, FaultyTarget.shown, "ledger")
    known.save()
    faulty = FaultyHeld(folder, known.holding)
    faulty.steps = steps
    return faulty

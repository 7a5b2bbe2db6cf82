"""The loop devices of this machine and the files behind them, also where the server of such a file hangs.

To say which file is behind a loop device, the kernel asks the file system of that file. A file in user space (the plain
file of another volume, a file on sshfs) has a server, and the kernel waits for it without a limit. So children ask, and
a device that gives no answer is left out. It is not on a file of ours: to get there, we have asked the same server.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lukshook.system import forked_call, kernel
from lukshook.system.kernel import Backing

#: How long a server may take.
SECONDS = 10.0
#: Devices that one child asks about: it tells 4 KiB at most, some 40 bytes for each.
_AT_ONCE = 80


def loops_of(file: Backing) -> tuple[str, ...]:
    """The loop devices that stand on *file*."""
    return tuple(node for node, backing in backings().items() if backing == file)


def backings() -> dict[str, Backing]:
    """The files behind all loop devices with something attached, but for those whose server hangs."""
    nodes = list(kernel.attached_loops())
    found: dict[str, Backing] = {}
    for first in range(0, len(nodes), _AT_ONCE):
        batch = nodes[first : first + _AT_ONCE]
        (told,) = _asked([batch])
        answers = [told] if told is not None else _asked([[node] for node in batch])
        for answer in filter(None, answers):
            for line in answer.rstrip("\n").split("\n"):
                node, device, inode = line.split(" ")
                found[node] = Backing(int(device), int(inode))
    return found


def _asked(batches: Sequence[Sequence[str]]) -> list[str | None]:
    return forked_call.in_children([partial(_tell, batch) for batch in batches], SECONDS)


def _tell(nodes: Sequence[str]) -> str:
    """One line for each device: its node and the numbers behind it."""
    found = ((node, kernel.backing(node)) for node in nodes)
    return "".join(f"{node} {file.device} {file.inode}\n" for node, file in found if file)

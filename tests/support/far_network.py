"""Lines to other machines: to a network namespace, on which packets can be lost without a word, and to a guest."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from lukshook.system import kernel

#: Hardware addresses, made up: so nobody has to ask for them, and a machine that is away is not noticed by that.
_NEAR, _FAR = "02:00:00:00:00:01", "02:00:00:00:00:02"


def _some_net() -> str:
    """The first three numbers of the addresses on a line, which no other line has at the same time."""
    return f"10.{random.randrange(64, 128)}.{random.randrange(256)}"


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@define
class FarNetwork:
    """What `enter` starts runs on the far machine, whose address is *far*. All of it goes with its processes."""

    name: str = field(factory=lambda: f"far{os.getpid()}")
    net: str = field(factory=_some_net)
    holder: subprocess.Popen[bytes] | None = None

    @property
    def near(self) -> str:
        return f"{self.net}.1"

    @property
    def far(self) -> str:
        return f"{self.net}.2"

    @property
    def enter(self) -> tuple[str, ...]:
        """The words that come before those of a program; it keeps the process."""
        assert self.holder is not None
        return ("nsenter", "--net", f"--target={self.holder.pid}")

    def start(self) -> None:
        """Both machines, and packets pass."""
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        ours, theirs = "/proc/self/ns/net", f"/proc/{self.holder.pid}/ns/net"
        assert kernel.wait_until(lambda: os.readlink(ours) != os.readlink(theirs), 20.0)
        peer = ("peer", "name", "line", "address", _FAR, "netns", str(self.holder.pid))
        _run("ip", "link", "add", "name", self.name, "address", _NEAR, "type", "veth", *peer)
        _run(*self.enter, "ip", "link", "set", "lo", "up")
        ends = (((), self.name, self.near, self.far, _FAR), (self.enter, "line", self.far, self.near, _NEAR))
        for enter, name, own, other, hardware in ends:
            _run(*enter, "ip", "address", "add", f"{own}/24", "dev", name)
            _run(*enter, "ip", "link", "set", name, "up")
            _run(*enter, "ip", "neighbour", "replace", other, "lladdr", hardware, "dev", name, "nud", "permanent")

    def lose(self) -> None:
        """From now on, each packet is lost."""
        for enter, name in (((), self.name), (self.enter, "line")):
            _run(*enter, "tc", "qdisc", "replace", "dev", name, "root", "pfifo", "limit", "0")

    def find(self) -> None:
        """From now on, packets pass again; the kernels send again what was lost."""
        for enter, name in (((), self.name), (self.enter, "line")):
            _run(*enter, "tc", "qdisc", "delete", "dev", name, "root")

    def stop(self) -> None:
        """It is gone."""
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait(10)
            subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)


@contextmanager
def far_network() -> Iterator[FarNetwork]:
    """One on which packets pass."""
    network = FarNetwork()
    try:
        network.start()
        yield network
    finally:
        network.stop()


@define
class GuestLine:
    """A line to a test kernel: `Guest(line=line.name)`, and `join` there. This machine is *near* to the guest."""

    name: str = field(factory=lambda: f"guest{os.getpid()}")
    net: str = field(factory=_some_net)

    @property
    def near(self) -> str:
        return f"{self.net}.1"

    @property
    def join(self) -> str:
        """Shell commands for the guest."""
        return f"ip address add {self.net}.2/24 dev vec0; ip link set vec0 up"


@contextmanager
def guest_line() -> Iterator[GuestLine]:
    """One that is there until the end of the block; for root."""
    line = GuestLine()
    _run("ip", "tuntap", "add", "dev", line.name, "mode", "tap")
    try:
        _run("ip", "address", "add", f"{line.near}/24", "dev", line.name)
        _run("ip", "link", "set", line.name, "up")
        yield line
    finally:
        _run("ip", "tuntap", "del", "dev", line.name, "mode", "tap")

"""Backups to every kind of remote store, while servers and lines fail at random moments."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from attrs import define, field

from lukshook.store.remote.kind import EARLIER
from lukshook.store.remote.own_folder import HELD
from support.ceph_cluster import CEPH
from support.far_faults import Fault
from support.far_network import far_network
from support.far_places import PLACES, Place, place
from support.far_volume import house, nothing_stands
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen", "/usr/lib/openssh/sftp-server", "nbdkit"),
    pytest.mark.needs("ip", "tc", "nsenter", "unshare"),
]


@define
class Rounds:
    """Backups to one volume. *stored*: what has to be there, by the name of its file."""

    volume: CliVolume
    place: Place
    chance: Random
    span: float = 0.0
    stored: dict[str, bytes] = field(factory=dict)
    ended: Counter[tuple[str, int]] = field(factory=Counter)

    def plain(self, name: str, *, may_be_late: bool = True) -> None:
        """A backup without a fault works, and finds all that was stored.

        *may_be_late*: or counts as failed once, where data of the one before may still arrive.
        """
        begun = time.monotonic()
        self.volume.do("before-backup", NAME)
        found = {file: (self.volume.data / file).read_bytes() for file in self.stored}
        assert sorted(self.stored) == sorted(file for file in found if found[file] == self.stored[file])
        for file in self.volume.data.iterdir():
            if file.name not in list(self.stored)[-2:] and file.is_file():
                file.unlink()
        self.stored = {file: self.stored[file] for file in list(self.stored)[-2:]}
        content = self.write(name)
        done = self.volume.lukshook("after-backup", NAME)
        if may_be_late and done.returncode == 74 and "a broken connection" in done.stderr:
            return self.plain(f"{name}-again", may_be_late=False)
        assert 0 == done.returncode, done.stderr
        self.stored |= content
        self.span = time.monotonic() - begun
        return None

    def write(self, name: str) -> dict[str, bytes]:
        """A few files; what could be written. *name*: how they begin."""
        contents: dict[str, bytes] = {}
        for number in range(4):
            content = self.chance.randbytes(self.chance.randrange(100_000, 1_500_000))
            (self.volume.data / f"{name}-{number}").write_bytes(content)
            contents[f"{name}-{number}"] = content
        return contents

    def faulty(self, name: str) -> None:
        """A backup while something fails: 0 only where all is stored, and nothing is left open."""
        fault = Fault(self.place, self.chance, self.span)
        code, content, said = 0, dict[str, bytes](), ""
        try:
            code, content, said = self.back_up(name)
        finally:
            fault.over()
        print(f"{name}: {fault}: {code} {said.strip()}", flush=True)
        self.ended[fault.what.__name__, code] += 1
        assert nothing_stands(self.volume, EARLIER, HELD), (str(fault), said)
        if code == 0:
            self.stored |= content

    def back_up(self, name: str) -> tuple[int, dict[str, bytes], str]:
        """The first status that is not 0; what was written; what was said."""
        before = self.volume.lukshook("before-backup", NAME)
        if before.returncode:
            return before.returncode, {}, before.stderr
        lost = 0
        try:
            content = self.write(name)
        except OSError:
            content, lost = {}, 74
        after = self.volume.lukshook("after-backup", NAME)
        return after.returncode or lost, content, before.stderr + after.stderr


def of_kind(kind: str) -> object:
    marks = [] if kind == "nbd" else [pytest.mark.slow]
    return pytest.param(kind, marks=[*marks, *([pytest.mark.needs(*CEPH)] if kind == "rbd" else [])])


@pytest.mark.parametrize("kind", [of_kind(kind) for kind in PLACES])
def test_nothing_is_lost_whatever_fails(
    kind: str, tmp_path: Path, chance: Random, rounds: Callable[[int, int], int]
) -> None:
    """Never 0 where a file is missing, never anything left open, and the next backup works."""
    with far_network() as network, place(kind, tmp_path / "place", network) as far:
        volume = house(tmp_path / "house", far.url, patience="20s", **far.options)
        for _ in closing(volume):
            volume.do("create", NAME)
            far.become_lossy()
            job = Rounds(volume, far, chance)
            job.plain("first")
            for number in range(rounds(1, 100)):
                job.faulty(f"faulty-{number}")
                job.plain(f"plain-{number}")
            print(dict(job.ended))

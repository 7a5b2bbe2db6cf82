"""The whole life of a volume with a ledger, for each kind of remote store: proven, copied, healed, drilled, looked at.

Copies go to a local disk, to a machine with SFTP and with a shell, and to an NBD export. Every server is real.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from support.ceph_cluster import CEPH, POOL, ceph_cluster
from support.copy_places import nbd
from support.far_host import far_host
from support.far_places import place
from support.far_volume import back_up, house, in_it, nothing_stands
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen", "/usr/lib/openssh/sftp-server", "nbdkit"),
]
TAKE = '#!/bin/sh\nset -e\ncp --sparse=always -- "$2" "{folder}/$1.img"\necho "{folder}/$1.img"\n'


@frozen
class Far:
    """Where an image lies: its URL, the options that it takes, and how the store reads and changes what is there."""

    url: str
    options: dict[str, object]
    read: Callable[[], bytes]
    write: Callable[[bytes], object]


@contextmanager
def server(kind: str, folder: Path) -> Iterator[Far]:
    """A place of `far_places`, whose store is a file."""
    with place(kind, folder) as found:
        yield Far(found.url, found.options, found.image.read_bytes, found.image.write_bytes)


@contextmanager
def local(kind: str, folder: Path) -> Iterator[Far]:
    """A disk of this machine."""
    folder.mkdir()
    image = folder / "backup.img"
    yield Far(str(image), {}, image.read_bytes, image.write_bytes)


@contextmanager
def cluster(kind: str, folder: Path) -> Iterator[Far]:
    """A Ceph cluster of one OSD."""
    image = f"{POOL}/h1/backup"
    file = folder.with_name("exchanged")
    with ceph_cluster(folder) as ceph:
        ceph.host("h1")

        def read() -> bytes:
            file.unlink(missing_ok=True)
            ceph.do("rbd", "export", "--no-progress", image, str(file))
            return file.read_bytes()

        def write(content: bytes) -> None:
            file.write_bytes(content)
            ceph.do("rbd", "remove", "--no-progress", image)
            ceph.do("rbd", "import", "--no-progress", "--image-feature=exclusive-lock", str(file), image)

        yield Far(f"rbd:{image}", {"ceph_user": "h1", "ceph_config": str(ceph.config)}, read, write)


#: How a place of each kind is made.
STORES = {"local": local, "ssh": server, "sftp": server, "nbd": server, "nbds": server, "rbd": cluster}


@frozen
class Life:
    """A *volume* whose image is *far*, with copies: each a name, its file, and what the configuration calls it.

    *options*: of the volume.
    """

    volume: CliVolume
    far: Far
    options: dict[str, object]
    copies: dict[str, tuple[Path, str]]

    def check_copies(self, sent: int) -> None:
        """Each copy has become what the image is, by sending less than *sent* bytes, and is verified."""
        content = self.far.read()
        (status,) = json.loads(self.volume.do("status", NAME, "--json"))
        assert sorted(target for _, target in self.copies.values()) == sorted(c["target"] for c in status["copies"])
        for copy in status["copies"]:
            assert (0, False, True) == (copy["behind"], copy["changing"], 0 < copy["sent"] < sent), copy
        for name, (file, _) in self.copies.items():
            assert content == file.read_bytes()[: len(content)], name
            assert "all intact; it has the state of the last close" in self.volume.do("verify", NAME, "--copy", name)

    def check_healed(self, name: str) -> None:
        """Damage is found, is no reason to give nothing back, is healed from that copy, and a drill passes then."""
        good = self.far.read()
        self.far.write(good[:-5] + b"spoil")
        done = self.volume.lukshook("verify", NAME)
        assert (65, True) == (done.returncode, "1 piece is damaged" in done.stderr), done.stderr
        assert "is opened read-only all the same" in self.volume.lukshook("open", "--read-only", NAME).stderr
        self.volume.do("close", NAME)
        self.volume.do("heal", NAME, "--from", name)
        assert good == self.far.read()
        self.volume.do("verify", NAME)
        assert f"image   {self.far.url}" in self.volume.do("drill", NAME)

    def versions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.volume.do("versions", NAME, "--json"))[0]["versions"]
        return found

    def check_older(self, image: str, content: bytes) -> None:
        """An older state opens beside the volume, and has the file that was in it."""
        at = self.volume.folder / "older"
        self.volume.do("open", NAME, "--image", image, "--at", str(at))
        found = (at / "data/file").read_bytes()
        self.volume.do("close", NAME, "--at", str(at))
        assert content == found


KINDS = [pytest.param(kind, marks=[pytest.mark.needs(*CEPH)] if kind == "rbd" else []) for kind in STORES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_whole_life_with_a_ledger(kind: str, tmp_path: Path) -> None:
    """From the creation to the day on which the machine of the image is lost."""
    with life_at(kind, tmp_path) as life:
        made(life)
        first = back_up(life.volume, "file")
        life.check_copies(1 << 40)
        second = back_up(life.volume, "file")  # the copies follow by themselves
        life.check_copies(20 << 20)
        for name in life.copies:
            life.check_healed(name)
        newest, oldest = life.versions()
        life.check_older(oldest["image"], first)
        life.check_older(newest["image"], second)
        for name, (file, _) in life.copies.items():
            assert "passed" in life.volume.do("drill", NAME, "--image", str(file)), name
        assert nothing_stands(life.volume)
        check_restored(life, second)


def test_what_is_stored_is_proven(tmp_path: Path) -> None:
    """The short form of it: behind ssh, copied to each kind of place."""
    with life_at("ssh", tmp_path) as life:
        made(life)
        for _ in range(2):
            back_up(life.volume, "file")
        life.check_copies(20 << 20)
        life.check_healed("friend")
        assert "passed" in life.volume.do("drill", NAME, "--image", str(life.copies["export"][0]))
        assert nothing_stands(life.volume)


@contextmanager
def life_at(kind: str, tmp_path: Path) -> Iterator[Life]:
    """A volume whose image lies at a place of that *kind*, not created yet."""
    with ExitStack() as kept:
        far = kept.enter_context(STORES[kind](kind, tmp_path / "place"))
        rented = kept.enter_context(far_host(tmp_path / "rented", "Subsystem sftp internal-sftp\n"))
        export = kept.enter_context(nbd(tmp_path / "export"))
        (disk := tmp_path / "disk").mkdir()
        take = tmp_path / "take"
        take.write_text(TAKE.format(folder=disk))
        take.chmod(0o755)
        (known := tmp_path / "ssh_config").write_text(both(far.options.get("ssh_config"), rented.config))
        copies = {
            "disk": (disk / "copy.img", str(disk / "copy.img")),
            "rented": (rented.store / "copy.img", f"sftp://rented{rented.store}/copy.img"),
            "friend": (rented.store / "friend.img", f"ssh://rented{rented.store}/friend.img"),
            "export": (export.file(), export.to),
        }
        options: dict[str, object] = {
            **far.options,
            "ledger": True,
            "ssh_config": str(known),
            "snapshot": f"command:{take}",
            "keep_snapshots": 2,
            "copies": {name: {"path": target} for name, (_, target) in copies.items()},
        }
        volume = house(tmp_path / "house", far.url, **options)
        kept.enter_context(contextmanager(closing)(volume))
        yield Life(volume, far, options, copies)


def both(own: object, rented: Path) -> str:
    """One configuration of ssh for the host of the image and for that of a copy."""
    image = Path(str(own)).read_text() if own else ""
    return image + rented.read_text().replace("Host far", "Host rented")


def made(life: Life) -> None:
    """Create the volume, and prove that at once."""
    life.volume.do("create", NAME)
    assert "all intact" in life.volume.do("verify", NAME)


def check_restored(life: Life, content: bytes) -> None:
    """The store has lost the image: one copy is put there, and one is used in its place."""
    volume = life.volume
    file, _ = life.copies["rented"]
    life.far.write(bytes(len(file.read_bytes())))
    assert 65 == volume.lukshook("before-backup", NAME).returncode
    life.far.write(file.read_bytes())
    volume.do("verify", NAME)
    assert [content] == in_it(volume, "file")
    back_up(volume, "another")
    life.check_copies(20 << 20)

    shutil.copy(life.copies["disk"][0], volume.image)
    volume.configure()
    assert [content] == in_it(volume, "file")

"""A place of every kind for the copy of a volume, with the real server of the kind, and what lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from lukshook.store.block_target import BlockTarget
from support.ceph_cluster import POOL, CephCluster, ceph_cluster
from support.far_host import far_host, free_port, nbd_server
from support.tls_material import shared_keys

#: Bytes of an export: the largest image that the tests copy there, and room for its changes.
EXPORT = 200 << 20


@frozen
class CopyPlace:
    """*to*: what the user calls the copy; *options*: of the volume. *names*: of all that lies there.

    *file*: a file that the copy begins in, which cryptsetup opens; *length*: of the copy in bytes, None where there is
    none that is complete. *rounds*: of a long test.
    """

    to: str
    names: Callable[[], list[str]]
    file: Callable[[], Path]
    length: Callable[[], int | None]
    options: dict[str, Any] = field(factory=dict)
    rounds: int = 200

    def content(self) -> bytes | None:
        """The copy."""
        length = self.length()
        if length is None:
            return None
        with self.file().open("rb") as file:
            return file.read(length)

    @property
    def is_marked(self) -> bool:
        """Whether a file says that the copy is mixed."""
        return any(name.endswith(".READ-ME-FIRST") for name in self.names())

    @property
    def shows_marks(self) -> bool:
        """Whether people see that file."""
        return not self.to.startswith(("nbd", "rbd"))


def _in_folder(folder: Path, to: str, options: dict[str, object]) -> CopyPlace:
    """A copy that is a file."""
    file = folder / "copy.img"
    return CopyPlace(
        to,
        lambda: sorted(entry.name for entry in folder.iterdir()),
        lambda: file,
        lambda: file.stat().st_size if file.exists() else None,
        options,
    )


@contextmanager
def disk(folder: Path) -> Iterator[CopyPlace]:
    """A folder here."""
    folder.mkdir(parents=True)
    yield _in_folder(folder, str(folder / "copy.img"), {})


@contextmanager
def sftp(folder: Path) -> Iterator[CopyPlace]:
    """An sshd."""
    with far_host(folder, "Subsystem sftp internal-sftp\n") as far:
        yield _in_folder(far.store, far.url("copy.img", "sftp"), {"ssh_config": str(far.config)})


@contextmanager
def ssh(folder: Path) -> Iterator[CopyPlace]:
    """An sshd without a server for SFTP of its own."""
    with far_host(folder) as far:
        yield _in_folder(far.store, far.url("copy.img"), {"ssh_config": str(far.config)})


class FileDevice:
    """A device whose content is a file, to look at. *can_grow*: whether the real one can."""

    def __init__(self, file: Path, *, can_grow: bool) -> None:
        self.file, self.can_grow = file, can_grow

    @property
    def length(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def read(self, offset: int, length: int) -> bytes:
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        raise AssertionError("nobody writes here")

    def clear(self, offset: int, length: int) -> None:
        raise AssertionError("nobody writes here")

    resize = remove = free = sync = None


def _target(*files: Path) -> BlockTarget:
    """What the directory says of a copy in the first file; the last one has the directory."""
    devices = [FileDevice(file, can_grow=len(files) > 1) for file in files]
    return BlockTarget(devices[0], devices[-1], "copy", str(files[0]))  # type: ignore[arg-type]


def _names_in(target: BlockTarget) -> list[str]:
    return sorted((*target._copy, *target._beside))


def _export(file: Path, to: str, options: dict[str, object]) -> CopyPlace:
    def length() -> int | None:
        found = _target(file)
        return found.open("copy", writable=False).size if found.exists("copy") else None

    return CopyPlace(to, lambda: _names_in(_target(file)), lambda: file, length, options)


@contextmanager
def nbd(folder: Path) -> Iterator[CopyPlace]:
    """An nbdkit that has an empty export."""
    folder.mkdir(parents=True)
    file, port = folder / "export", free_port()
    with file.open("wb") as made:
        made.truncate(EXPORT)
    with nbd_server(port, "file", str(file)):
        yield _export(file, f"nbd://127.0.0.1:{port}/copy.img", {})


@contextmanager
def nbds(folder: Path) -> Iterator[CopyPlace]:
    """The same behind TLS."""
    folder.mkdir(parents=True)
    file, keys, port = folder / "export", folder / "keys.psk", free_port()
    with file.open("wb") as made:
        made.truncate(EXPORT)
    shared_keys(keys, "me")
    with nbd_server(port, "--tls=require", f"--tls-psk={keys}", "file", str(file)):
        yield _export(file, f"nbds://me@127.0.0.1:{port}/copy.img", {"tls_psk": str(keys)})


@contextmanager
def rbd(folder: Path) -> Iterator[CopyPlace]:
    """A Ceph cluster of one OSD."""
    with ceph_cluster(folder) as cluster:
        cluster.host("h1")
        yield in_cluster(cluster, folder)


def in_cluster(cluster: CephCluster, folder: Path) -> CopyPlace:
    """A copy in a cluster that runs; *folder*: for what is exported."""

    def images() -> list[str]:
        return sorted(cluster.json("rbd", "ls", f"{POOL}/h1"))

    def exported(name: str = "copy.img") -> Path:
        """A file that is not there, where an image is listed that somebody is removing."""
        file = folder / name
        file.unlink(missing_ok=True)
        cluster.tried("rbd", "export", "--no-progress", f"{POOL}/h1/{name}", str(file))
        return file

    def names() -> list[str]:
        found = images()
        if (annex := "copy.img.lukshook-journal") not in found:
            return found
        return _names_in(_target(exported(), exported(annex)))

    def length() -> int | None:
        return exported().stat().st_size if {"copy", "copy.img"} & {*names()} else None

    options: dict[str, object] = {"ceph_user": "h1", "ceph_config": str(cluster.config)}
    return CopyPlace(f"rbd:{POOL}/h1/copy.img", names, exported, length, options, rounds=20)


PLACES = {"disk": disk, "sftp": sftp, "ssh": ssh, "nbd": nbd, "nbds": nbds, "rbd": rbd}

"""The ways to keep a backup in an encrypted image: how each is made, opened and closed."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from measure import run

from support.configuration import configuration, write_key

Step = Sequence[str] | str
MIB = 1 << 20


class Way(Protocol):
    """One way. *make* prepares it and leaves it closed; *open* and *close* are what is measured."""

    @property
    def name(self) -> str:
        """How it is called in tables."""
        ...

    @property
    def image(self) -> Path:
        """The file on the store."""
        ...

    @property
    def mountpoint(self) -> Path:
        """Where the volume appears."""
        ...

    def make(self) -> None:
        """Make the image."""
        ...

    @property
    def open(self) -> Step:
        """The command that opens."""
        ...

    @property
    def close(self) -> Step:
        """The command that closes."""
        ...


def new_key() -> str:
    """32 random bytes in base64."""
    return base64.b64encode(os.urandom(32)).decode()


#: What luksFormat's benchmark chooses for the default argon2id on an idle machine, at the least (cryptsetup 2.6: 1 GiB,
#: never under 4 rounds). On a busy machine and in the test kernel it chooses less, and the recipe would be quicker than
#: where people use it.
IDLE_PBKDF = "--pbkdf-memory 1048576 --pbkdf-force-iterations 4"


@dataclass(frozen=True)
class Recipe:
    """The tutorial's recipe as written: dd, the default argon2id, and `mount -o loop`, which makes a second loop."""

    folder: Path
    mib: int
    name: str = "recipe"

    @property
    def image(self) -> Path:
        return self.folder / "recipe.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "recipe"

    @property
    def _key(self) -> str:
        return f"base64 --decode {self.folder}/recipe.key"

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        (self.folder / "recipe.key").write_text(new_key())
        run(f"dd if=/dev/zero of={self.image} bs=1M count={self.mib}")
        run(f"{self._key} | cryptsetup luksFormat --batch-mode {IDLE_PBKDF} --key-file=- {self.image}")
        run(f"{self._key} | cryptsetup luksOpen --key-file=- {self.image} recipe_crypt")
        run("mkfs.ext4 -q /dev/mapper/recipe_crypt && cryptsetup luksClose recipe_crypt")

    @property
    def open(self) -> Step:
        return (
            f"{self._key} | cryptsetup luksOpen --key-file=- {self.image} recipe_crypt\n"
            f"mount -o loop /dev/mapper/recipe_crypt {self.mountpoint}"
        )

    @property
    def close(self) -> Step:
        return f"umount {self.mountpoint}\ncryptsetup luksClose recipe_crypt"


@dataclass(frozen=True)
class Tuned:
    """The floor: the recipe in plain shell with lukshook's parameters and no checks at all.

    The other fields differ where a single choice is measured; *then* is a line of shell that comes last.
    """

    folder: Path
    mib: int
    name: str = "tuned shell"
    stem: str = "tuned"
    sector: int = 4096
    direct_io: str = "on"
    crypt: str = ""
    mount: str = "nodev,nosuid,noexec,noatime,noinit_itable"
    then: str = ""

    @property
    def image(self) -> Path:
        return self.folder / f"{self.stem}.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / self.stem

    @property
    def _key(self) -> str:
        return f"base64 --decode {self.folder}/{self.stem}.key"

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        (self.folder / f"{self.stem}.key").write_text(new_key())
        run(f"fallocate --length {self.mib}M {self.image}")
        run(
            f"{self._key} | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --hash sha512 "
            "--pbkdf-force-iterations 1000 --cipher aes-xts-plain64 --key-size 512 "
            f"--sector-size {self.sector} --key-file=- {self.image}"
        )
        run(f"{self._key} | cryptsetup open --key-file=- {self.image} {self.stem}_crypt")
        run(
            "mkfs.ext4 -q -b 4096 -m 0 -G 256 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "
            f"/dev/mapper/{self.stem}_crypt && cryptsetup close {self.stem}_crypt"
        )

    @property
    def open(self) -> Step:
        return (
            f"LOOP=$(losetup --find --show --direct-io={self.direct_io} {self.image})\n"
            f"{self._key} | cryptsetup open --type luks2 {self.crypt} --key-file=- $LOOP {self.stem}_crypt\n"
            "losetup --detach $LOOP\n"
            f"mount -t ext4 -o {self.mount} /dev/mapper/{self.stem}_crypt {self.mountpoint}\n{self.then}"
        )

    @property
    def close(self) -> Step:
        return f"umount {self.mountpoint}\ncryptsetup close {self.stem}_crypt"


@dataclass(frozen=True)
class TunedUserspace:
    """The floor of the userspace engine: qemu-storage-daemon, a loop device and a mount in plain shell, no checks."""

    folder: Path
    mib: int
    name: str = "tuned shell with qemu"

    @property
    def image(self) -> Path:
        return self.folder / "qemu.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "qemu"

    @property
    def _key(self) -> Path:
        return self.folder / "qemu.key"

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        self._key.write_text(new_key())
        run(f"touch {self.folder}/qemu.plain && fallocate --length {self.mib}M {self.image}")
        run(
            "cryptsetup luksFormat --batch-mode --type luks1 --hash sha256 --pbkdf-force-iterations 1000 "
            f"--cipher aes-xts-plain64 --key-size 512 --key-file={self._key} {self.image}"
        )
        run(f"{self._daemon}\nmkfs.ext4 -q -F -b 4096 {self.folder}/qemu.plain\n{self._end}")

    @property
    def _daemon(self) -> str:
        return (
            f"qemu-storage-daemon --daemonize --pidfile={self.folder}/qemu.pid --object=secret,id=key,file={self._key} "
            f"--blockdev=driver=file,node-name=image,filename={self.image},cache.direct=on,aio=threads "
            "--blockdev=driver=luks,node-name=volume,file=image,key-secret=key "
            f"--export=fuse,id=plain,node-name=volume,mountpoint={self.folder}/qemu.plain,writable=on,allow-other=off"
        )

    @property
    def _end(self) -> str:
        # The daemon removes that file as its last act; its process may stay a zombie for as long as init likes.
        return f"kill $(cat {self.folder}/qemu.pid)\nwhile test -e {self.folder}/qemu.pid; do sleep 0.01; done"

    @property
    def open(self) -> Step:
        return (
            f"{self._daemon}\nLOOP=$(losetup --find --show {self.folder}/qemu.plain)\n"
            f"mount -t ext4 -o nodev,nosuid,noexec,noatime,noinit_itable $LOOP {self.mountpoint}\n"
            "losetup --detach $LOOP"
        )

    @property
    def close(self) -> Step:
        return f"umount {self.mountpoint}\n{self._end}"


@dataclass(frozen=True)
class Tomb:
    """tomb, with the password on the command line: nothing else can answer its prompt without a terminal."""

    folder: Path
    mib: int
    name: str = "tomb"

    @property
    def image(self) -> Path:
        return self.folder / "grave.tomb"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "grave"

    def _tomb(self, *arguments: str) -> str:
        key = self.folder / "grave.key"
        return shlex.join(["tomb", *arguments, "-k", str(key), "--unsafe", "--tomb-pwd", "a test password"])

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        run(f"tomb dig -s {self.mib} {self.image}")
        run(shlex.join(["tomb", "forge", f"{self.folder}/grave.key", "--unsafe", "--tomb-pwd", "a test password"]))
        run(self._tomb("lock", str(self.image)))

    @property
    def open(self) -> Step:
        return self._tomb("open", str(self.image), str(self.mountpoint))

    @property
    def close(self) -> Step:
        return "tomb close grave"


def lukshook(*arguments: str) -> list[str]:
    """A call of the lukshook that lies beside the Python that runs us."""
    return [str(Path(sys.executable).with_name("lukshook")), *arguments]


@dataclass(frozen=True)
class Lukshook:
    """lukshook by its hooks. *options* are further lines of the volume's configuration."""

    folder: Path
    mib: int
    name: str = "lukshook"
    volume: str = "offsite"
    options: str = 'engine = "kernel"'

    @property
    def image(self) -> Path:
        return self.folder / f"{self.volume}.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / self.volume

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / f"{self.volume}.toml"

    def configure(self) -> None:
        """Write key and configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / f"{self.volume}.key"
        write_key(key, os.urandom(32))
        text = configuration(
            self.volume, image=self.image, mountpoint=self.mountpoint, key=f"file:{key}", size=f"{self.mib}MiB"
        )
        self.config.write_text(f"{text}{self.options}\n")

    def forget(self) -> None:
        """Remove the image and what lukshook knows of it, so that it can be made again."""
        self.image.unlink(missing_ok=True)
        for place in Path(os.environ["LUKSHOOK_STATE_DIR"]).glob(f"{self.volume}.*"):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()

    def copy(self, other: Lukshook) -> None:
        """Make it as a copy of *other*, which is made and closed: an image with its key's mark is known by that."""
        self.configure()
        shutil.copy(other.folder / f"{other.volume}.key", self.folder / f"{self.volume}.key")
        run(["cp", "--sparse=always", str(other.image), str(self.image)])
        self.mountpoint.mkdir()

    def call(self, *arguments: str) -> list[str]:
        """A command on this volume."""
        return lukshook("--config", str(self.config), *arguments, self.volume)

    def make(self) -> None:
        self.configure()
        run(self.call("create"))

    @property
    def open(self) -> Step:
        return self.call("before-backup")

    @property
    def close(self) -> Step:
        return self.call("after-backup")


@dataclass(frozen=True)
class Gocryptfs:
    """gocryptfs: one encrypted file for each file, over FUSE. *store*: where these lie, if not in *folder*."""

    folder: Path
    name: str = "gocryptfs"
    store: Path | None = None

    @property
    def image(self) -> Path:
        return (self.store or self.folder) / "gocryptfs.store"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "gocryptfs"

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        self.image.mkdir()
        (self.folder / "gocryptfs.key").write_text(new_key())
        run(f"gocryptfs -q -init -passfile {self.folder}/gocryptfs.key {self.image}")

    @property
    def open(self) -> Step:
        return f"gocryptfs -q -passfile {self.folder}/gocryptfs.key {self.image} {self.mountpoint}"

    @property
    def close(self) -> Step:
        return f"fusermount3 -u {self.mountpoint}"


@dataclass(frozen=True)
class Cryfs:
    """CryFS: everything in encrypted blocks of 16 KiB, over FUSE."""

    folder: Path
    name: str = "CryFS"

    @property
    def image(self) -> Path:
        return self.folder / "cryfs.store"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "cryfs"

    def make(self) -> None:
        self.mountpoint.mkdir(parents=True)
        self.image.mkdir()
        (self.folder / "cryfs.key").write_text(new_key())

    @property
    def open(self) -> Step:
        # A state folder of its own: CryFS remembers which file system lay in a folder, and refuses another one (20).
        settings = f"HOME={self.folder} CRYFS_LOCAL_STATE_DIR={self.folder}/cryfs.state"
        settings += " CRYFS_FRONTEND=noninteractive CRYFS_NO_UPDATE_CHECK=true"
        return f"env {settings} cryfs {self.image} {self.mountpoint} <{self.folder}/cryfs.key"

    @property
    def close(self) -> Step:
        return f"fusermount3 -u {self.mountpoint}"


def available(ways: Sequence[Way]) -> list[Way]:
    """Those whose tool is installed."""
    tools = {
        "tomb": "tomb",
        "gocryptfs": "gocryptfs",
        "CryFS": "cryfs",
        "tuned shell with qemu": "qemu-storage-daemon",
    }
    return [way for way in ways if shutil.which(tools.get(way.name, "cryptsetup"))]

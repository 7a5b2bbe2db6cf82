"""A volume as a user has it, for tests of any engine: configuration, command line, questions to the kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import field, frozen

from lukshook.system import kernel
from support.configuration import configuration, write_key
from support.lukshook_process import Child, Done, nothing

NAME = "offsite"
#: The size of test images: the header's 16 MiB and room for the smallest file system with a journal.
SIZE = "64MiB"


@frozen
class CliVolume:
    """One volume named "offsite" with everything of its own in *folder*."""

    folder: Path
    engine: str = "kernel"
    extra: Mapping[str, str] = field(factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def image(self) -> Path:
        return self.folder / "store/backup.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    @property
    def data(self) -> Path:
        return self.mountpoint / "data"

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    @property
    def state_folder(self) -> Path:
        return self.folder / "state"

    @property
    def own_folders(self) -> dict[str, str]:
        """The variables that give a lukshook the folders of this volume alone."""
        return {"LUKSHOOK_RUN_DIR": str(self.run_folder), "LUKSHOOK_STATE_DIR": str(self.state_folder)}

    @property
    def environment(self) -> dict[str, str]:
        """What a hook's process has, and our own folders."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LUKSHOOK_CONFIG": str(self.config),
            **self.own_folders,
            **self.extra,
        }

    def values(self, **options: object) -> dict[str, object]:
        """What the configuration says of the volume; *options* replace or add values, None leaves one out."""
        return {
            "image": str(self.image),
            "mountpoint": str(self.mountpoint),
            "size": SIZE,
            "fill": "sparse",
            "key": f"file:{self.key}",
            "engine": self.engine,
            "old_fuse2fs": True if self.engine == "userspace" else None,  # Debian 12 has no other
            **options,
        }

    def configure(self, **options: object) -> None:
        """Write the configuration, with *options* as in `values`."""
        self.config.write_text(configuration(NAME, **self.values(**options)))

    def set_key(self, key: bytes) -> None:
        """Put another key where the configuration says."""
        write_key(self.key, key)

    def prepare(self, key: bytes | None = None) -> None:
        """Everything but the image."""
        self.image.parent.mkdir(parents=True, exist_ok=True)
        self.mountpoint.mkdir(exist_ok=True)
        self.set_key(key or os.urandom(32))
        self.configure()

    def start(self, *arguments: str, prepare: Callable[[], None] = nothing, **more: str) -> Child:
        """Start lukshook in a session of its own; *prepare* is called in its process first."""
        return Child(arguments, {"LUKSHOOK_CONFIG": str(self.config)} | self.environment | more, prepare)

    def lukshook(self, *arguments: str, **more: str) -> Done:
        """Run lukshook to its end."""
        return self.start(*arguments, prepare=nothing, **more).wait()

    def do(self, *arguments: str, **more: str) -> str:
        """Run lukshook, which has to succeed; what it says on stdout."""
        done = self.lukshook(*arguments, **more)
        assert 0 == done.returncode, (arguments, done.stdout, done.stderr)
        return done.stdout

    def refusal(self, code: int, *arguments: str) -> str:
        """Run lukshook, which has to refuse with *code*, one line and a hint; gives the line."""
        done = self.lukshook(*arguments)
        assert (code, "") == (done.returncode, done.stdout), (done.stdout, done.stderr)
        line, hint = [line for line in done.stderr.splitlines() if not line.startswith("warning:")]
        assert line.startswith("lukshook: "), done.stderr
        assert hint.startswith("  hint: "), done.stderr
        return line.removeprefix("lukshook: ")

    # What the kernel says

    def mounts(self) -> list[str]:
        """The mounts below our folder, the guard of the bare mount point left out."""
        ours = (mount for mount in kernel.mounts() if mount.target.startswith(f"{self.folder}/"))
        return [mount.target for mount in ours if not self._is_guard(mount)]

    def _is_guard(self, mount: kernel.Mount) -> bool:
        """A read-only bind of the mount point on itself."""
        same = mount.target == str(self.mountpoint) and mount.root.endswith(f"/{self.mountpoint.name}")
        return same and "ro" in mount.own

    def loops(self) -> list[str]:
        """The loop devices on files below our folder."""
        nodes = Path("/sys/block").glob("loop*/loop/backing_file")
        return [node.parent.parent.name for node in nodes if node.read_text().startswith(f"{self.folder}/")]

    def mappings(self) -> list[str]:
        """The device-mapper names of lukshook's kind."""
        names = [node.read_text().strip() for node in Path("/sys/block").glob("dm-*/dm/name")]
        return [name for name in names if name.startswith("lukshook-")]

    def standing(self) -> list[str]:
        """Everything of the volume that the kernel still has; empty when it is closed."""
        return [*self.mounts(), *self.loops(), *self.mappings()]

    def is_bare(self) -> bool:
        """Whether the mount point is empty and nobody can write there."""
        if self.standing() or any(self.mountpoint.iterdir()):
            return False
        try:
            (self.mountpoint / "probe").touch()
        except OSError:
            return True
        (self.mountpoint / "probe").unlink()
        return False

    def is_open(self) -> bool:
        return str(self.mountpoint) in self.mounts()

    def digest(self) -> str:
        """The image's content in a number."""
        with self.image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def copy_to(self, folder: Path) -> CliVolume:
        """A second volume with the same image, key and state, in a folder of its own."""
        other = CliVolume(folder, self.engine, self.extra)
        other.prepare()
        shutil.copy(self.key, other.key)
        shutil.copytree(self.state_folder, other.state_folder, dirs_exist_ok=True)
        os.chmod(other.state_folder, 0o700)
        subprocess.run(["cp", "--sparse=always", self.image, other.image], check=True)
        return other

    def remove(self) -> None:
        """Let the guarded mount point be deleted."""
        if kernel.mount_at(self.mountpoint) is not None:
            subprocess.run(["umount", self.mountpoint], check=False, capture_output=True)
        if self.mountpoint.is_dir() and kernel.is_immutable(self.mountpoint):
            subprocess.run(["chattr", "-i", self.mountpoint], check=False, capture_output=True)


def created(folder: Path, engine: str = "kernel", **options: object) -> Iterator[CliVolume]:
    """For fixtures: a volume that was created once, whose copies tests work on. *options* go into the configuration."""
    volume = CliVolume(folder, engine)
    volume.prepare()
    volume.configure(**options)
    volume.do("create", NAME)
    yield volume
    volume.remove()


def copied(volume: CliVolume, folder: Path) -> Iterator[CliVolume]:
    """For fixtures: a copy of *volume* with its configuration, closed after the test."""
    other = volume.copy_to(folder)
    other.config.write_text(volume.config.read_text().replace(str(volume.folder), str(folder)))
    yield from closing(other)


def closing(volume: CliVolume) -> Iterator[CliVolume]:
    """For fixtures: close after the test, whatever it has left, and let the folder be deleted."""
    try:
        yield volume
    finally:
        if volume.standing() or (volume.run_folder / f"{NAME}.json").exists():
            volume.lukshook("after-backup", NAME, "--kill-holders")
            volume.lukshook("close", NAME, "--kill-holders")
        volume.remove()

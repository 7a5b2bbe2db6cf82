"""A volume as a user has it, for tests of any engine: configuration, command line, questions to the kernel."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from lukshook.cli import main, resize
from lukshook.system import kernel, signals

for module in set(main.COMMANDS.values()):  # so that a forked lukshook need not import them
    importlib.import_module(f"lukshook.cli.{module}")
PROGRAMS: dict[str, Callable[[], object]] = {"lukshook": main.lukshook, "lukshook-resize": resize.main}
NAME = "offsite"
PATIENCE = 240.0  # seconds any lukshook may take on a loaded machine
#: The size of test images: the header's 16 MiB and room for the smallest file system with a journal.
SIZE = "64MiB"


#: The user and group id of nobody.
NOBODY = 65534


def nothing() -> None:
    """Prepare nothing."""


def to_nobody() -> None:
    """Where we are root: go on as an ordinary user, with the places of Python that this user can read."""
    if not os.geteuid():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        sys.path[:] = [place for place in sys.path if os.access(place, os.R_OK)]


@frozen
class Done:
    """How a lukshook ended; a negative status is the number of the signal that ended it."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A lukshook in a process of its own, forked from the tests': starting Python takes longer than the work.

    The first of *arguments* may name another program of ours.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], prepare: Callable[[], None]) -> None:
        self.out, self.err = os.memfd_create("out"), os.memfd_create("err")
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, environment, prepare)
        self.code: int | None = None

    def _become(self, arguments: Sequence[str], environment: Mapping[str, str], prepare: Callable[[], None]) -> None:
        status = 70
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (self.out, 1), (self.err, 2)):
                os.dup2(source, target)
            os.closerange(3, 256)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir("/")
            program, words = PROGRAMS["lukshook"], arguments
            if arguments[0] in PROGRAMS:
                program, words = PROGRAMS[arguments[0]], arguments[1:]
            sys.argv = ["lukshook", *words]
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            for number in signals.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            prepare()
            program()
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send a signal to it alone."""
        if not self.poll():
            os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> Done:
        """Its end, after at most *timeout* seconds: else it is killed, and that is an error."""
        end = time.monotonic() + timeout
        while not self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"lukshook did not end: {self._text(self.err)}")
            time.sleep(0.005)
        assert self.code is not None
        done = Done(self.code, self._text(self.out), self._text(self.err))
        os.close(self.out)
        os.close(self.err)
        return done

    def _text(self, descriptor: int) -> str:
        return os.pread(descriptor, 1 << 20, 0).decode(errors="replace")


@frozen
class Bench:
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
    def environment(self) -> dict[str, str]:
        """What a hook's process has, and our own folders."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LUKSHOOK_CONFIG": str(self.config),
            "LUKSHOOK_RUN_DIR": str(self.run_folder),
            "LUKSHOOK_STATE_DIR": str(self.state_folder),
            **self.extra,
        }

    def configure(self, **options: object) -> None:
        """Write the configuration; *options* replace or add TOML values, None leaves one out."""
        values: dict[str, object] = {
            "image": str(self.image),
            "mountpoint": str(self.mountpoint),
            "size": SIZE,
            "fill": "sparse",
            "key": f"file:{self.key}",
            "engine": self.engine,
            "old_fuse2fs": True if self.engine == "userspace" else None,  # Debian 12 has no other
            **options,
        }
        lines = [f"{name} = {toml(value)}" for name, value in values.items() if value is not None]
        self.config.write_text("\n".join([f"[volumes.{NAME}]", *lines, ""]))

    def set_key(self, key: bytes) -> None:
        """Put another key where the configuration says."""
        self.key.unlink(missing_ok=True)
        descriptor = os.open(self.key, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")

    def prepare(self, key: bytes | None = None) -> None:
        """Everything but the image."""
        self.image.parent.mkdir(parents=True, exist_ok=True)
        self.mountpoint.mkdir(exist_ok=True)
        self.set_key(key or os.urandom(32))
        self.configure()

    def start(self, *arguments: str, prepare: Callable[[], None] = nothing, **more: str) -> Child:
        """Start lukshook in a session of its own; *prepare* is called in its process first."""
        return Child(arguments, self.environment | more, prepare)

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

    def copy_to(self, folder: Path) -> Bench:
        """A second volume with the same image, key and state, in a folder of its own."""
        other = Bench(folder, self.engine, self.extra)
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
        subprocess.run(["chattr", "-i", self.mountpoint], check=False, capture_output=True)


def toml(value: object) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def created(folder: Path, engine: str = "kernel", **options: object) -> Iterator[Bench]:
    """For fixtures: a volume that was created once, whose copies tests work on. *options* go into the configuration."""
    bench = Bench(folder, engine)
    bench.prepare()
    bench.configure(**options)
    bench.do("create", NAME)
    yield bench
    bench.remove()


def copied(volume: Bench, folder: Path) -> Iterator[Bench]:
    """For fixtures: a copy of *volume* with its configuration, closed after the test."""
    other = volume.copy_to(folder)
    other.config.write_text(volume.config.read_text().replace(str(volume.folder), str(folder)))
    yield from closing(other)


def closing(bench: Bench) -> Iterator[Bench]:
    """For fixtures: close after the test, whatever it has left, and let the folder be deleted."""
    try:
        yield bench
    finally:
        if bench.standing() or (bench.run_folder / f"{NAME}.json").exists():
            bench.lukshook("after-backup", NAME, "--kill-holders")
            bench.lukshook("close", NAME, "--kill-holders")
        bench.remove()

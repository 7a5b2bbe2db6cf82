"""A qemu-storage-daemon as a test wants it, to find out what the installed version does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define, field

from lukshook.system import kernel, qmp

PROGRAM = "qemu-storage-daemon"
KEY = b"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="
MIB = 1 << 20
#: Bytes of a LUKS1 header, as `luks_image` makes it.
OFFSET = 2 * MIB
#: How lukshook opens an image.
DIRECT = "cache.direct=on,aio=threads"


def version() -> tuple[int, ...]:
    """Of the installed program."""
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    assert found, said
    return tuple(map(int, found.groups()))


def luks_image(place: Path, size: int, *options: str, key: bytes = KEY) -> Path:
    """A sparse image with a LUKS1 header and *size* bytes of data."""
    with place.open("wb") as file:
        file.truncate(OFFSET + size)
    form = ["cryptsetup", "luksFormat", "--batch-mode", *(options or ("--type=luks1", "--align-payload=4096"))]
    form += ["--pbkdf-force-iterations=1000", "--key-file=-", "--", str(place)]
    subprocess.run(form, input=key, check=True, capture_output=True)
    return place


@define
class Daemon:
    """At most one daemon at a time, with everything of it in *folder*. Its plaintext is shown at *plain*."""

    folder: Path
    pid: int = 0
    started: int | None = None
    inherits: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)

    @property
    def plain(self) -> Path:
        return self.folder / "plain"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def monitor(self) -> Path:
        return self.folder / "m"

    def run(self, *options: str, key: bytes = KEY) -> subprocess.CompletedProcess[str]:
        """Start it with *options*, in this order; whether it serves is for the caller to see."""
        self.plain.touch()
        argv = [PROGRAM, "--daemonize", f"--pidfile={self.pid_file}", "--object=secret,id=key,file=/dev/stdin"]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [*argv, *options], input=key, capture_output=True, check=False, pass_fds=self.inherits, env=environment
        )
        if not done.returncode:
            self.pid = int(self.pid_file.read_text())
            self.started = kernel.started(self.pid)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *options: str) -> None:
        """The same, and it has to serve."""
        done = self.run(*options)
        assert 0 == done.returncode, done.stderr

    def show(self, image: Path | str, *, raw: bool = False, options: str = DIRECT, more: Sequence[str] = ()) -> None:
        """Show the plaintext of *image*, or with *raw* the image itself, with a monitor."""
        self.start(self.file(image, options), *([] if raw else [self.luks()]), *self.listen(), *more)
        assert kernel.mount_at(self.plain) is None
        export = {"type": "fuse", "id": "plain", "node-name": "image" if raw else "volume", "writable": True}
        self.ask("block-export-add", export | {"mountpoint": str(self.plain), "allow-other": "off"})

    def file(self, image: Path | str, options: str = DIRECT) -> str:
        return f"--blockdev=driver=file,node-name=image,filename={image}" + (f",{options}" if options else "")

    def luks(self, options: str = "") -> str:
        given = f",{options}" if options else ""
        return f"--blockdev=driver=luks,node-name=volume,file=image,key-secret=key{given}"

    def export(self, writable: bool = True) -> str:
        how = ",writable=on" if writable else ""
        return f"--export=fuse,id=plain,node-name=volume,mountpoint={self.plain},allow-other=off{how}"

    def listen(self) -> tuple[str, ...]:
        return (f"--chardev=socket,id=m,path={self.monitor},server=on,wait=off", "--monitor=chardev=m")

    def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Ask the monitor one question."""
        with qmp.connect(self.monitor) as monitor:
            return monitor.ask(command, arguments)

    def is_shown(self) -> bool:
        return kernel.mount_at(self.plain) is not None

    def is_alive(self) -> bool:
        return self.started is not None and kernel.started(self.pid) == self.started

    def kill(self) -> None:
        """With SIGKILL, and wait until it has ended."""
        os.kill(self.pid, signal.SIGKILL)
        assert kernel.wait_until(lambda: not self.is_alive(), 20.0)

    def end(self) -> int:
        """Ask it to end until it has; how often it was asked."""
        asked = 0
        while self.is_alive():
            asked += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            kernel.wait_until(lambda: not self.is_alive(), 1.0)
        return asked

    def close(self) -> None:
        """End it, and drop the mount of one that was killed."""
        self.end()
        if self.is_shown():
            tool = ["fusermount3", "-u"] if os.geteuid() else ["umount"]
            subprocess.run([*tool, str(self.plain)], check=True, capture_output=True)


@contextlib.contextmanager
def daemon_in(folder: Path) -> Iterator[Daemon]:
    """A daemon that is gone afterwards."""
    daemon = Daemon(folder)
    try:
        yield daemon
    finally:
        daemon.close()

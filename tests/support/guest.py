"""A real Linux kernel with device-mapper as an ordinary process: User-Mode Linux over this machine's files.

    with Guest(disk=tmp_path / "disk") as guest:
        guest.run(["cryptsetup", "--version"], check=True)

By hand: ``python tests/support/guest.py -- CMD ARG...`` runs CMD in a fresh guest.
The guest sees this machine's files and writes to a layer of its own that is gone with it. What shall stay is
written to ``/out`` (the folder ``share`` here) or to ``/disk`` (ext4 on the file ``disk`` here).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import json
import math
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
DISK = Path("/disk")
OUT = Path("/out")
KERNEL = "linux.uml"
PASSED_ON = ("LUKSHOOK_TEST_PATIENCE",)  # of our environment, to every command in a guest
REGISTERS = HERE / "guest_registers.c"  # what it needs on processors with AMX
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN_IN_GUEST = ("/tmp", "/var/tmp", "/run", "/dev")  # the guest mounts fresh ones there
BOOT_LIMIT = 300.0
TASKS_SECONDS = 5.0  # to show what its processes wait for
CONSOLE_LINES = 200
SYSTEMD = ("systemd.unit=guest.target", "systemd.show_status=1", "systemd.status_unit_format=name")
MIB = 1 << 20
PIPE_SIZE = MIB  # more than guest_agent.py sends before it waits


class GuestError(Exception):
    """The guest did not boot, hung, or went away; the message ends with the tail of its console."""


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended; a negative status is the number of the signal that ended it."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Job:
    """A command that runs in the guest."""

    def __init__(self, guest: Guest, number: int, argv: Sequence[str], echo: bool) -> None:
        self.guest = guest
        self.number = number
        self.argv = tuple(argv)
        self.echo = echo
        self.data = {1: bytearray(), 2: bytearray()}
        self.returncode: int | None = None
        self.ended = threading.Event()
        self.heard = time.monotonic()

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return self.data[1].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self.data[2].decode(errors="replace")

    def add(self, stream: int, data: bytes) -> None:
        self.heard = time.monotonic()
        self.data[stream] += data
        if self.echo:
            target = sys.stdout if stream == 1 else sys.stderr
            target.buffer.write(data)
            target.flush()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group in the guest."""
        self.guest.send({"job": self.number, "signal": int(number)})

    def wait(self, timeout: float, silence: float = math.inf) -> Result:
        """Wait for the end, at most ``timeout`` seconds, and as long as no ``silence`` lasts longer than that.

        A guest that takes longer is ended, after it has shown what each of its processes waits for: GuestError.
        """
        deadline = time.monotonic() + timeout
        while not self.ended.wait(max(0.0, min(deadline, self.heard + silence) - time.monotonic())):
            if time.monotonic() >= deadline:
                self.guest.fail_showing_tasks(f"{shlex.join(self.argv)}: no end after {timeout:.0f} s")
            if time.monotonic() >= self.heard + silence:
                self.guest.fail_showing_tasks(f"{shlex.join(self.argv)}: nothing printed for {silence:.0f} s")
        if self.returncode is None:
            self.guest.fail(f"{shlex.join(self.argv)}: the guest went away")
        assert self.returncode is not None
        return Result(self.argv, self.returncode, self.stdout, self.stderr)


class Guest:
    """One booted guest; leaving the block shuts it down and leaves nothing of it on this machine.

    disk: file that becomes /dev/ubda, mounted at /disk; made with ``disk_size`` bytes and ext4 if it is absent.
    share: folder of this machine that the guest sees as /out, read and write.
    memory: bytes of RAM of the guest. None of it is taken before the guest uses it.
    systemd: process 1 is systemd, with a journal, D-Bus and logind (`guest_init_systemd` says which units there are).
    line: the name of this machine's end of a line (`far_network.GuestLine`); the guest's end is `vec0` there.
    """

    def __init__(
        self,
        *,
        disk: Path | None = None,
        disk_size: int = 2048 * MIB,
        share: Path | None = None,
        memory: int = 2048 * MIB,
        systemd: bool = False,
        line: str = "",
    ) -> None:
        self.disk = disk
        self.disk_size = disk_size
        self.share = share
        self.memory = memory
        self.systemd = systemd
        self.line = line
        self.jobs: dict[int, Job] = {}
        self.ready = threading.Event()
        self.sending = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.processor: socket.socket | None = None

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut_down()

    # What a test asks for

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = False,
        timeout: float = 300,
        silence: float = math.inf,
        echo: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        stdin: bytes = b"",
    ) -> Result:
        """Run a command to its end as root; ``check`` turns a status other than 0 into CalledProcessError."""
        result = self.start(argv, echo=echo, env=env, cwd=cwd, stdin=stdin).wait(timeout, silence)
        if check and result.returncode != 0:
            if not echo:
                sys.stderr.write(result.stdout + result.stderr)
            raise subprocess.CalledProcessError(result.returncode, list(argv), result.stdout, result.stderr)
        return result

    def start(
        self,
        argv: Sequence[str],
        *,
        echo: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        stdin: bytes = b"",
    ) -> Job:
        """Start a command as root, in a session of its own, and return at once."""
        job = Job(self, len(self.jobs) + 1, argv, echo)
        self.jobs[job.number] = job
        order = {
            "argv": list(argv),
            "env": guest_environment() | dict(env or {}),
            "cwd": str(cwd),
            "stdin": base64.b64encode(stdin).decode(),
        }
        (self.folder / "jobs" / str(job.number)).write_text(json.dumps(order))
        self.send({"job": job.number})
        return job

    def power_cut(self) -> None:
        """End the guest as a power cut does: what it had not flushed to the disk is lost."""
        if self.process is None:
            return
        kill_group(self.process)
        self.clean_up()

    def wait_for_end(self, timeout: float = 90) -> str:
        """Wait until the guest has switched itself off; what its console has said."""
        assert self.process
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.fail(f"the guest is not off after {timeout:.0f} s")
        return self.console()

    def shut_down(self, timeout: float = 30) -> None:
        """Unmount /disk, power off, and clean up; a guest that does not end in time is killed."""
        if self.process is None:
            return
        try:
            self.send({"off": True})
            self.process.wait(timeout)
        except (GuestError, subprocess.TimeoutExpired):
            pass
        self.power_cut()

    # How it is done

    def boot(self) -> None:
        """Start the kernel and wait until it takes commands.

        Raises GuestError when the kernel is not installed or does not come up.
        """
        if shutil.which(KERNEL, path=SYSTEM_PATH) is None:
            raise GuestError(f"{KERNEL} is not installed (Debian package: user-mode-linux)")
        if self.disk is not None and not self.disk.exists():
            make_disk(self.disk, self.disk_size)
        self.folder = Path(tempfile.mkdtemp(prefix="lukshook-guest-"))
        self.write_settings()
        guest_in, self.to_guest = os.pipe()
        self.from_guest, guest_out = os.pipe()
        fcntl.fcntl(guest_out, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.processor, number = claim_processor()
        with (self.folder / "console").open("wb") as console:
            self.process = subprocess.Popen(
                ["taskset", "--cpu-list", str(number), *self.kernel_command(guest_in, guest_out)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=self.kernel_environment(),
                start_new_session=True,
                pass_fds=[guest_in, guest_out],
            )
        os.close(guest_in)
        os.close(guest_out)
        self.reader = threading.Thread(target=self.read_line, daemon=True)
        self.reader.start()
        if not self.wait_until_ready():
            self.fail("the guest did not boot")

    def wait_until_ready(self) -> bool:
        deadline = time.monotonic() + BOOT_LIMIT
        while time.monotonic() < deadline and self.reader.is_alive():
            if self.ready.wait(0.2):
                return True
        return self.ready.is_set()

    def kernel_command(self, line_in: int, line_out: int) -> list[str]:
        disk = [f"ubd0={self.disk}"] if self.disk else []
        line = [f"vec0:transport=tap,ifname={self.line},gro=1"] if self.line else []
        return [
            KERNEL,
            *disk,
            *line,
            *("rootfstype=hostfs", "root=none", "hostfs=/", "ro", f"mem={self.memory // MIB}M"),
            f"init={self.folder}/init",
            f"GUEST_FOLDER={self.folder}",
            *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{line_in},fd:{line_out}", "quiet", "loglevel=4"),
            *(f"uml_dir={self.folder}/uml", "umid=guest"),
            *(SYSTEMD if self.systemd else ()),
        ]

    def kernel_environment(self) -> dict[str, str]:
        variables = {"PATH": SYSTEM_PATH, "HOME": str(self.folder), "TMPDIR": self.memory_folder()}
        if has_amx():
            library = self.folder / "registers.so"
            compile_library(REGISTERS, library)
            variables["LD_PRELOAD"] = str(library)
        return variables

    def memory_folder(self) -> str:
        """Where the kernel keeps the guest's memory in an unlinked file; containers often have a tiny /dev/shm."""
        shm = Path("/dev/shm")
        if shm.is_dir():
            space = os.statvfs(shm)
            if space.f_bavail * space.f_frsize >= self.memory:
                return str(shm)
        return str(self.folder)

    def write_settings(self) -> None:
        shutil.copy(HERE / "guest_init", self.folder / "init")
        for name in ("uml", "jobs"):
            (self.folder / name).mkdir()
        share = self.share or self.folder / "out"
        share.mkdir(parents=True, exist_ok=True)
        settings = {
            "PYTHON": sys.executable,
            "AGENT": str(HERE / "guest_agent.py"),
            "DISK_FOLDER": str(DISK),
            "SHARE": str(share.resolve()),
            "SYSTEMD": "yes" if self.systemd else "no",
            "SYSTEMD_SETUP": str(HERE / "guest_init_systemd"),
        }
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
        (self.folder / "settings").write_text("".join(lines))
        (self.folder / "hidden").write_text("".join(f"{folder}\n" for folder in hidden_folders()))

    def send(self, message: Mapping[str, object]) -> None:
        try:
            with self.sending:
                write_all(self.to_guest, json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}") from error

    def read_line(self) -> None:
        with open(self.from_guest, "rb") as source:
            try:
                for text in source:
                    self.take(json.loads(text))
            except (OSError, ValueError, GuestError):
                pass
        for job in self.jobs.values():
            job.ended.set()

    def take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready.set()
        elif "mark" in message:
            self.send({"ack": True})
        elif "stream" in message:
            self.jobs[message["job"]].add(message["stream"], base64.b64decode(message["data"]))
        else:
            job = self.jobs[message["job"]]
            job.returncode = message["exit"]
            job.ended.set()

    def console(self) -> str:
        """What the kernel and its first program have printed."""
        return (self.folder / "console").read_text(errors="replace")

    def fail_showing_tasks(self, reason: str) -> None:
        """As `fail`, with a line for each process of the guest, where its agent still answers."""
        with contextlib.suppress(GuestError):
            self.send({"tasks": True})
            time.sleep(TASKS_SECONDS)
        self.fail(reason)

    def fail(self, reason: str) -> None:
        tail = "\n".join(self.console().splitlines()[-CONSOLE_LINES:])
        self.power_cut()
        raise GuestError(f"{reason}\n--- console of the guest:\n{tail}")

    def clean_up(self) -> None:
        self.process = None
        if self.processor:
            self.processor.close()
        os.close(self.to_guest)
        self.reader.join(5)
        shutil.rmtree(self.folder, ignore_errors=True)


def claim_processor() -> tuple[socket.socket, int]:
    """The processor a guest runs on, the last that no other guest has, and what keeps it so until it is closed.

    A guest uses one at a time, and its processes wake each other at every system call and page fault. Across two
    processors of a virtual machine that takes three times as long where the machine has nothing else to do.
    """
    processors = sorted(os.sched_getaffinity(0), reverse=True)
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for number in processors:
        with contextlib.suppress(OSError):
            claim.bind(f"\0lukshook-guest-{number}")  # unix(7): an abstract name goes with the socket
            return claim, number
    return claim, random.choice(processors)


def has_amx() -> bool:
    """Whether this machine's processors have the matrix registers, which the test kernel has no room for."""
    return "amx_tile" in Path("/proc/cpuinfo").read_text().split()


def compile_library(source: Path, library: Path) -> None:
    """Build a shared library. Raises GuestError."""
    try:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except FileNotFoundError as error:
        raise GuestError("the test kernel needs gcc on a processor with AMX (Debian package: gcc)") from error
    except subprocess.CalledProcessError as error:
        raise GuestError(f"gcc cannot build {source.name}: {error.stderr.decode()}") from error


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and all its children; returns when the group is gone."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.poll()
        time.sleep(0.01)
    process.wait(10)


def write_all(target: int, data: bytes) -> None:
    """Write all of ``data``, in as many steps as the pipe takes."""
    while data:
        data = data[os.write(target, data) :]


def make_disk(path: Path, size: int) -> None:
    """A sparse file of ``size`` bytes with an empty ext4 on it; needs no root."""
    with path.open("xb") as file:
        file.truncate(size)
    options = ["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]
    subprocess.run(["mkfs.ext4", *options, str(path)], check=True, env={"PATH": SYSTEM_PATH}, stdin=subprocess.DEVNULL)


def hidden_folders() -> list[str]:
    """Folders a test needs that the guest's own /tmp, /var/tmp, /run and /dev would hide."""
    wanted = dict.fromkeys(str(Path(path).resolve()) for path in (PROJECT, sys.prefix, sys.base_prefix))
    return [path for path in wanted if any(path.startswith(f"{top}/") for top in HIDDEN_IN_GUEST)]


def guest_environment() -> dict[str, str]:
    """The environment of a command in the guest: nothing of this machine's but the virtual environment's PATH."""
    scripts = PROJECT / ".venv" / "bin" if sys.prefix == sys.base_prefix else Path(sys.prefix) / "bin"
    return {
        "PATH": f"{scripts}:{SYSTEM_PATH}",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "LUKSHOOK_GUEST": "1",
        "LUKSHOOK_TEST_DISK": str(DISK),
        "LUKSHOOK_TEST_OUT": str(OUT),
    } | {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a command as root in a fresh guest with device-mapper.")
    parser.add_argument("--disk", type=Path, help="file for /disk, kept; default: a new one, removed after")
    parser.add_argument("--disk-size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--share", type=Path, help="folder that the guest sees as /out")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--silence", type=float, default=math.inf, metavar="SECONDS", help="longest without output")
    parser.add_argument("--systemd", action="store_true", help="boot systemd")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="lukshook-guest-disk-") as folder:
        guest = Guest(
            disk=chosen.disk or Path(folder) / "disk",
            disk_size=chosen.disk_size * MIB,
            share=chosen.share,
            memory=chosen.memory * MIB,
            systemd=chosen.systemd,
        )
        try:
            with guest:
                env = dict(pair.split("=", 1) for pair in chosen.env)
                cwd = Path.cwd() if Path.cwd().is_relative_to(PROJECT) else PROJECT
                limits = {"timeout": chosen.timeout, "silence": chosen.silence}
                result = guest.run(chosen.command, echo=True, **limits, env=env, cwd=cwd)
        except GuestError as error:
            print(error, file=sys.stderr)
            return 124
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


if __name__ == "__main__":
    sys.exit(main())

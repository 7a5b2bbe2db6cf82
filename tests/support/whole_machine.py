"""A whole machine: Debian with its own kernel, systemd, udev and udisks, emulated by qemu, which needs no KVM.

    disk = whole_machine.build("trixie", tmp_path)
    with WholeMachine(disk) as machine:
        machine.run(["lukshook", "--version"], check=True)

It has no network. Commands go through a virtio port, on which a service in the machine listens. `plug_in` and
`pull_out` are what a person does with a USB disk; Debian's kernel for clouds has no drivers for that.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import define, field, frozen

from lukshook.system import kernel, qmp
from support import debian_roots as roots

AGENT = Path(__file__).with_name("whole_machine_agent.py")
QEMU = "qemu-system-x86_64"
PORT = "lukshook"
PACKAGES = (
    *(
        "systemd-sysv",
        "udev",
        "dbus",
        "udisks2",
        "kmod",
        "procps",
        "initramfs-tools",
        "zstd",
    ),
    *("cryptsetup-bin", "dmsetup", "e2fsprogs", "mount", "python3-venv", "borgmatic", "borgbackup", "rsync"),
)
#: Kernels: the one boots sooner, the other has drivers for what a person plugs in.
CLOUD, ANY_HARDWARE = "linux-image-cloud-amd64", "linux-image-amd64"
#: In the machine's own registry, for a test that installs them: a service, a socket and a server with its own script.
SERVERS = {"prometheus": "prometheus.service", "tang": "tangd.socket", "openssh-server": "ssh.service"}
#: Run in the root. Debian's timer for borgmatic starts it at a time of its own; a test starts it. All lists of Debian
#: would cost apt minutes in an emulator, and the machine has no network: its only registry is a folder.
INSTALL = f"""set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qqy --no-install-recommends install {" ".join(PACKAGES)} "$@"
python3 -m venv /opt/lukshook
/opt/lukshook/bin/pip install --quiet .
ln -s /opt/lukshook/bin/lukshook /usr/local/bin/
systemctl --quiet enable agent.service
systemctl --quiet disable borgmatic.timer
apt-get clean
apt-get -qqy --no-install-recommends --download-only install {" ".join(SERVERS)}
mkdir /srv/packages
cd /srv/packages
for file in /var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$file" Package).deb
    mv "$file" "$name"
    dpkg-deb --field "$name"
    printf 'Filename: ./%s\\nSize: %s\\n' "$name" "$(stat --format=%s "$name")"
    printf 'SHA256: %s\\n\\n' "$(sha256sum "$name" | cut -d " " -f 1)"
done >Packages
rm -r /etc/apt/sources.list* /var/lib/apt/lists/*
echo "deb [trusted=yes] file:/srv/packages ./" >/etc/apt/sources.list
apt-get -qq update
"""
#: It waits for its port itself: on a busy machine, udev makes that later than systemd waits for a device.
SERVICE = f"""[Service]
ExecStart=python3 -I /usr/local/lib/agent.py /dev/virtio-ports/{PORT}
Environment=PATH={roots.SYSTEM_PATH} HOME=/root LANG=C.UTF-8
KillMode=process
[Install]
WantedBy=multi-user.target
"""
#: Nobody logs in on the console, and two units take minutes for what no test needs. On a machine with other work,
#: devices and services take longer than systemd and udev wait. An emulator needs no help against faults of processors.
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=1 systemd.firstboot=off "
    "systemd.mask=serial-getty@ttyS0.service systemd.mask=e2scrub_reap.service systemd.mask=ldconfig.service "
    "systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 "
    "udev.event_timeout=900 mitigations=off"
)
DISK_SIZE = "6G"
MEMORY = "1G"
INSTALL_SECONDS = 1800.0
#: A loaded machine without KVM needs minutes.
BOOT_SECONDS = 1800.0
COMMAND_SECONDS = 1800.0
CONSOLE_LINES = 60


class MachineError(Exception):
    """The machine did not boot, hung, or went away; the message ends with the last lines of its console."""


@frozen
class Disk:
    """What a machine boots from. *image*: its ext4, which keeps what the machine writes."""

    image: Path
    kernel: Path
    initrd: Path


@frozen
class Result:
    """How a command ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def build(release: str, folder: Path, linux: str = CLOUD, *more: str) -> Disk:
    """Debian with that package of a kernel and *more* packages, and lukshook, on a disk of their own in *folder*.

    Raises `roots.CannotBuild`.
    """
    root = roots.unpacked(release, folder)
    roots.copy_project(root, "/root", 0)
    (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
    (root / "etc/systemd/system/agent.service").write_text(SERVICE)
    shutil.copy(AGENT, root / "usr/local/lib/agent.py")
    done = roots.run(root, "/root", 0, f"set -- {' '.join((linux, *more))}\n{INSTALL}", INSTALL_SECONDS)
    if done.returncode:
        raise roots.CannotBuild(done.stdout[-2000:])
    disk = Disk(folder / f"{release}.ext4", folder / f"{release}.kernel", folder / f"{release}.initrd")
    shutil.copy(root / "vmlinuz", disk.kernel)
    shutil.copy(root / "initrd.img", disk.initrd)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, disk.image, DISK_SIZE], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    return disk


@define
class WholeMachine:
    """A machine that runs inside the block, from *disk*."""

    disk: Disk
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _port: socket.socket = field(init=False)
    _lines: Any = field(init=False)
    _asking: socket.socket = field(init=False)
    _monitor: qmp.Monitor = field(init=False)

    def __enter__(self) -> Self:
        """Boot. Raises `MachineError`."""
        self._port, port = socket.socketpair()
        self._asking, monitor = qmp.pair()
        with port, monitor, self._console.open("wb") as console:
            self._process = subprocess.Popen(
                self._command(port.fileno(), monitor.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[port.fileno(), monitor.fileno()],
                start_new_session=True,
            )
        self._lines = self._port.makefile("rb")
        try:
            self._monitor = qmp.over(self._asking, COMMAND_SECONDS)
            self._receive(BOOT_SECONDS)
            self.run(["systemctl", "is-system-running", "--wait"])
        except BaseException:
            self.power_cut()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of it stays but the disk."""
        self.power_cut()

    def _command(self, port: int, monitor: int) -> list[str]:
        """What it writes is as safe as this machine's memory: a kill of qemu loses nothing of that."""
        return [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
            *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", MEMORY, "-serial", "stdio"),
            *("-kernel", str(self.disk.kernel), "-initrd", str(self.disk.initrd)),
            *("-append", KERNEL_COMMAND_LINE),
            *("-drive", f"file={self.disk.image},format=raw,if=virtio,cache=unsafe"),
            *("-chardev", f"socket,id=port,fd={port}", "-device", "virtio-serial"),
            *("-device", f"virtserialport,chardev=port,name={PORT}", "-device", "qemu-xhci"),
            *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        ]

    @property
    def _console(self) -> Path:
        return self.disk.image.with_suffix(".console")

    def run(self, argv: Sequence[str], *, check: bool = False, stdin: bytes = b"") -> Result:
        """Run a command to its end as root; *check* turns a status other than 0 into `CalledProcessError`."""
        self._send(argv, stdin)
        result = Result(tuple(argv), **self._receive(COMMAND_SECONDS))
        if check and result.returncode:
            sys.stderr.write(result.stdout + result.stderr)
            raise subprocess.CalledProcessError(result.returncode, list(argv), result.stdout, result.stderr)
        return result

    def plug_in(self, disk: Path) -> None:
        """Put a USB disk with the content of that file into the machine."""
        file = {"driver": "file", "filename": str(disk)}
        self._monitor.ask("blockdev-add", {"driver": "raw", "node-name": "usb", "file": file})
        self._monitor.ask("device_add", {"driver": "usb-storage", "id": "usb-disk", "drive": "usb", "serial": "4711"})

    def pull_out(self) -> None:
        """Take it out again, whether or not the machine is done with it."""
        self._monitor.ask("device_del", {"id": "usb-disk"})
        assert kernel.wait_until(self._forgets_disk, COMMAND_SECONDS)

    def _forgets_disk(self) -> bool:
        """Whether its file is closed: qemu does that some time after the disk is gone."""
        try:
            self._monitor.ask("blockdev-del", {"node-name": "usb"})
        except qmp.Rejected:
            return False
        return True

    def power_cut(self) -> None:
        """End it as a power cut does: what it had not written to the disk is lost."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._lines.close()
            self._port.close()
            self._asking.close()

    def power_off(self) -> str:
        """Shut it down as a user does; what its console has said."""
        assert self._process
        self._send(["systemctl", "poweroff"], b"")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(COMMAND_SECONDS)
        if self._process.returncode is None:
            self._fail("it does not switch itself off")
        self.power_cut()
        return self._console.read_text(errors="replace")

    def _send(self, argv: Sequence[str], stdin: bytes) -> None:
        order = {"argv": list(argv), "stdin": stdin.decode()}
        self._port.sendall(json.dumps(order).encode() + b"\n")

    def _receive(self, seconds: float) -> dict[str, Any]:
        """One line of the agent. Raises `MachineError` where none comes in time."""
        self._port.settimeout(seconds)
        try:
            line = self._lines.readline()
        except TimeoutError:
            self._fail(f"no answer after {seconds:.0f} s")
        if not line:
            self._fail("it went away")
        message: dict[str, Any] = json.loads(line)
        return message

    def _fail(self, reason: str) -> None:
        """End it, so that the next command fails at once, and raise."""
        self.power_cut()
        tail = "\n".join(self._console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:])
        raise MachineError(f"{reason}\n--- console of the machine:\n{tail}")

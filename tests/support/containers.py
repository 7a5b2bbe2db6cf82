"""The example container without a container engine: its Containerfile built into a root, and commands in it.

The limits of compose.yaml are read from there: capabilities, devices, no-new-privileges, a read-only root. What an
engine does besides (seccomp, AppArmor, the device cgroup) is not there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support import debian_roots as roots

EXAMPLE = roots.PROJECT / "examples/container"
COMPOSE = (EXAMPLE / "compose.yaml").read_text()

#: Run as root: `$1` becomes the read-only root folder of processes of its own. `$2`: the folder that the volumes of
#: the container are in, `$3`: its capabilities, for setpriv, `$4`: its devices.
ENTER = """set -e
root=$1 volumes=$2 capabilities=$3 devices=$4; shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"; mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
for place in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
for node in null zero full random urandom tty $devices; do cp -a "/dev/$node" "$root/dev/$node"; done
ln -s /proc/self/fd "$root/dev/fd"
for link in stdin:0 stdout:1 stderr:2; do ln -s "fd/${link#*:}" "$root/dev/${link%:*}"; done
mkdir -p "$root/run/secrets"; touch "$root/run/secrets/offsite"
bind() { mount --bind "$volumes/$1" "$root/$2"; }
bind key run/secrets/offsite; mount -o remount,bind,ro "$root/run/secrets/offsite"
bind store store; bind restored restored; bind state var/lib/lukshook
bind etc etc/lukshook; mount -o remount,bind,ro "$root/etc/lukshook"
bind source source; mount -o remount,bind,ro "$root/source"
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . old
umount -l /old
exec setpriv --no-new-privs --inh-caps=-all --bounding-set="$capabilities" "$@"
"""


def build(folder: Path) -> Path:
    """The root of the image, and empty folders for the volumes. Raises `roots.CannotBuild`."""
    root = roots.unpacked("trixie", folder)
    (root / "root/lukshook").mkdir()
    for name, argument in _instructions((EXAMPLE / "Containerfile").read_text()):
        if name == "COPY":
            *sources, target = argument.split()
            for source in sources:
                name_there = Path(source).name if target.endswith("/") else ""
                _copy(roots.PROJECT / source, root / target.lstrip("/") / name_there)
        if name == "RUN":
            done = roots.run(root, "/root", 0, argument)
            if done.returncode:
                raise roots.CannotBuild(f"{argument[:60]}: {done.stdout[-2000:]}")
    for place in ("old", "store", "restored", "source", "etc/lukshook", "var/lib/lukshook"):
        (root / place).mkdir(exist_ok=True, parents=True)
    return root


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    for line in filter(None, lines):
        name, _, argument = line.partition(" ")
        yield name, argument


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=roots.NOT_COPIED)
    else:
        shutil.copy(source, target)


def entrypoint() -> list[str]:
    """What each command of the container begins with."""
    text = dict(_instructions((EXAMPLE / "Containerfile").read_text()))["ENTRYPOINT"]
    return [str(word) for word in json.loads(text)]


def capabilities() -> tuple[str, ...]:
    """The names under cap_add."""
    return tuple(re.findall(r"^      - ([A-Z_]+) #", COMPOSE, re.MULTILINE))


def devices() -> tuple[str, ...]:
    """The names under devices, without /dev."""
    return tuple(re.findall(r"^      - /dev/([\w-]+):", COMPOSE, re.MULTILINE))


def _stop(pid: int) -> None:
    """SIGTERM for process 1 of the container, the child of unshare(1), which ignores it itself."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)


def run(
    root: Path, volumes: Path, command: str, *, without: str = "", seconds: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run the words of *command* in a fresh container, *without* one capability or device.

    At the end of the time it gets SIGTERM, as from `docker stop`, and never SIGKILL (docs/containers.md).
    """
    kept = [name.lower() for name in capabilities() if name != without]
    argv = [
        *("unshare", "--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child=TERM"),
        *("--propagation=private", "sh", "-c", ENTER, "sh", str(root), str(volumes)),
        *(",".join(["-all", *(f"+{name}" for name in kept)]), " ".join(d for d in devices() if d != without)),
        *("env", "-i", "HOME=/root", f"PATH={roots.SYSTEM_PATH}", *entrypoint(), *shlex.split(command)),
    ]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _stop(process.pid)
            said, _ = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, said)

"""Minimal roots of Debian's releases, and commands that run in them as on a machine of their own.

What comes from outside comes from where this machine takes it: apt's registry and proxy, pip's settings, the name
server and the list of certificates.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "roots"
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
#: All that the README asks for, besides apt.
PACKAGES = ("python3", "ca-certificates")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds until a root in the cache is built again, with the packages of that day.
FRESH = 7 * 24 * 3600.0
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".cache", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")

#: Run as root: `$1` becomes the root folder of processes of its own, with this machine's devices, and the rest runs
#: there as user `$2`. A /dev/fuse that everybody may open, as udev makes it, where this machine's is root's alone.
ENTER = """set -e
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ -e /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
    cp -a /dev/fuse "$root/fuse"; chmod 666 "$root/fuse"; mount --bind "$root/fuse" "$root/dev/fuse"
fi
cd "$root"
pivot_root . mnt
umount -l /mnt
exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
"""


class CannotBuild(Exception):
    """Why there is no root, on one line."""


def registry() -> str:
    """Where this machine's apt takes Debian's packages from."""
    wanted = ("Created-By: Packages", "Component: main", "Label: Debian")
    found = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).split()
    if not found:
        raise CannotBuild("apt of this machine has no Debian registry: apt-get update first")
    return found[0]


def _proxies() -> list[str]:
    """The lines of apt's settings that say how to reach a registry."""
    dump = _output(["apt-config", "dump"]).splitlines()
    return [line for line in dump if re.match(r"Acquire::https?::Proxy\b.* \"[^\"]+\";", line)]


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise CannotBuild(f"{argv[0]}: {error.strerror}") from error


def archive(release: str) -> Path:
    """A tar archive of a minimal root, from the cache where that is fresh. Raises `CannotBuild`."""
    kept = CACHE / f"{release}.tar"
    if kept.is_file() and time.time() - kept.stat().st_mtime < FRESH:
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{release}-", dir=CACHE) as folder:
        built = Path(folder) / f"{release}.tar"
        argv = [
            *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *("--dpkgopt=force-unsafe-io", *(f"--aptopt={line}" for line in _proxies())),
            *(release, str(built), f"deb {registry()} {release} main"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise CannotBuild(_last_error(done.stderr) or f"mmdebstrap: exit status {done.returncode}")
        built.rename(kept)
    return kept


def _last_error(text: str) -> str:
    """The first line that says what went wrong: those after it are its consequences."""
    lines = [line for line in text.splitlines() if line.startswith("E: ")]
    return lines[0] if lines else ""


def unpacked(release: str, folder: Path) -> Path:
    """A root of its own in *folder*. Raises `CannotBuild`."""
    root = folder / release
    root.mkdir()
    argv = ["tar", "--extract", "--numeric-owner", "--xattrs", f"--file={archive(release)}", f"--directory={root}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(done.stderr.strip().splitlines()[-1])
    settle_in(root)
    return root


def settle_in(root: Path) -> None:
    """What an installation makes besides: the list of mounts, the way to the network, an ordinary user."""
    (root / "etc/mtab").unlink(missing_ok=True)
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).is_file():
            (root / name).unlink(missing_ok=True)
            shutil.copyfile(Path("/", name), root / name)
    (root / "etc/dpkg/dpkg.cfg.d/fast").write_text("force-unsafe-io\n")  # it lives for minutes
    (root / "etc/apt/apt.conf.d/90machine").write_text("\n".join([*_proxies(), ""]))
    with (root / "etc/passwd").open("a") as users:
        users.write("tester:x:1000:1000::/home/tester:/bin/sh\n")


def copy_project(root: Path, home: str, user: int) -> None:
    """The project as a fresh clone in the home folder of a user."""
    place = root / home.lstrip("/") / "lukshook"
    shutil.copytree(PROJECT, place, symlinks=True, ignore=NOT_COPIED)
    for path in (place.parent, place, *place.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


def run(
    root: Path, home: str, user: int, command: str, seconds: float = 900.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the project's copy; what it leaves running ends with it."""
    variables = dict(passed_on()) | environment | {"HOME": home, "PATH": SYSTEM_PATH}
    argv = [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"),
        *("sh", "-c", ENTER, "sh", str(root), str(user)),
        *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
        *("sh", "-c", f"cd {home}/lukshook && {command}"),
    ]
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if error.stdout else ""
        return subprocess.CompletedProcess(argv, 124, f"{said}\nnot done after {seconds:.0f} s\n")


def passed_on() -> Iterator[tuple[str, str]]:
    """The variables of this machine that say how to reach a registry."""
    for name, value in os.environ.items():
        if name.startswith("PIP_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy"):
            yield name, value


def leftovers(root: Path) -> list[str]:
    """Files and loop devices of a quickstart that is over."""
    files = [str(path) for place in ("tmp", "var/tmp") for path in (root / place).iterdir()]
    devices = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file") if path.is_file()]
    return [*files, *(device for device in devices if str(root) in device or "quickstart" in device)]

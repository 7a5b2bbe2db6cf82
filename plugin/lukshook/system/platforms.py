"""What each system calls the packages of the programs that lukshook needs, and which versions have known faults.

The only list of both: hints, `check`, examples/quickstart and tests/run use it. The last two run before anything is
installed, so this file imports only the standard library, and it is a program too:

    python3 plugin/lukshook/system/platforms.py missing cryptsetup fuse2fs     packages to install, one a line
    python3 plugin/lukshook/system/platforms.py command cryptsetup fuse2fs     the command that installs them

It is loaded when something is missing, and by `check`; not when a hook starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

Version = tuple[int, ...]


class _Row(NamedTuple):
    """Which package has *programs*, in each family."""

    programs: str
    debian: str
    fedora: str
    arch: str


#: Ubuntu's packages are Debian's unless `_EARLIER` says otherwise. The last two are what the quickstart needs besides.
#: Debian 12, 13 and sid: `dpkg -S` there. Fedora: SerenityOS/serenity#24946 (fuse2fs), its qemu.spec. Arch: its
#: PKGBUILDs of qemu and e2fsprogs.
_ROWS = (
    _Row("cryptsetup", "cryptsetup-bin", "cryptsetup", "cryptsetup"),
    _Row("dmsetup", "dmsetup", "device-mapper", "device-mapper"),
    _Row(
        "era_check era_invalidate",
        "thin-provisioning-tools",
        "device-mapper-persistent-data",
        "thin-provisioning-tools",
    ),
    _Row("losetup mount umount", "mount", "util-linux", "util-linux"),
    _Row("e2fsck mkfs.ext4 tune2fs resize2fs debugfs chattr", "e2fsprogs", "e2fsprogs", "e2fsprogs"),
    _Row("mkfs.xfs xfs_growfs xfs_info", "xfsprogs", "xfsprogs", "xfsprogs"),
    _Row("mkfs.btrfs btrfs", "btrfs-progs", "btrfs-progs", "btrfs-progs"),
    _Row("lvcreate lvs lvremove", "lvm2", "lvm2", "lvm2"),
    _Row("qemu-storage-daemon qemu-img qemu-nbd", "qemu-utils", "qemu-img", "qemu-img"),
    _Row("rbd ceph", "ceph-common", "ceph-common", "ceph"),
    _Row("block-rbd.so", "qemu-block-extra", "qemu-block-rbd", "qemu-block-rbd"),
    _Row("setpriv", "util-linux", "util-linux", "util-linux"),
    _Row("fusermount3", "fuse3", "fuse3", "fuse3"),
    _Row("fuse2fs", "fuse2fs", "e2fsprogs", "fuse2fs"),
    _Row("age", "age", "age", "age"),
    _Row("ssh", "openssh-client", "openssh-clients", "openssh"),
    _Row("rsync", "rsync", "rsync", "rsync"),
    _Row("socat", "socat", "socat", "socat"),
    _Row("nbdfuse", "libnbd-bin", "nbdfuse", "libnbd"),
    _Row("nbdkit", "nbdkit", "nbdkit", "nbdkit"),
    _Row("ssh", "openssh-client", "openssh-clients", "openssh"),
    _Row("venv", "python3-venv", "python3", "python"),
)
_PACKAGES = {program: row for row in _ROWS for program in row.programs.split(" ")}


class _Earlier(NamedTuple):
    """Before *release* of *family*, *program* was in *package*."""

    program: str
    family: str
    release: Version
    package: str


#: qemu-storage-daemon moved to qemu-utils in Debian's qemu 1:8.0+dfsg-5 (its Breaks). Debian 12 has 7.2, Ubuntu 23.04
#: 7.2, 23.10 8.0.4.
_EARLIER = (
    _Earlier("qemu-storage-daemon", "debian", (13,), "qemu-system-common"),
    _Earlier("qemu-storage-daemon", "ubuntu", (23, 10), "qemu-system-common"),
)

#: Family -> its own name, and what installs packages there.
_FAMILIES = {
    "debian": ("Debian", "apt install"),
    "ubuntu": ("Ubuntu", "apt install"),
    "fedora": ("Fedora", "dnf install"),
    "arch": ("Arch Linux", "pacman -S"),
}

#: Family -> its releases, and what it calls them. Derivatives name in os-release the one that they are built on; the
#: second line of Debian is Devuan's. Complete since 2014, as debian-distro-info(1) and ubuntu-distro-info(1) have it: a
#: name that is not here is newer than all of them.
_RELEASES = {
    "debian": "8 jessie 9 stretch 10 buster 11 bullseye 12 bookworm 13 trixie "
    "9 ascii 10 beowulf 11 chimaera 12 daedalus 13 excalibur",
    "ubuntu": "14.04 trusty 14.10 utopic 15.04 vivid 15.10 wily 16.04 xenial 16.10 yakkety 17.04 zesty 17.10 artful "
    "18.04 bionic 18.10 cosmic 19.04 disco 19.10 eoan 20.04 focal 20.10 groovy 21.04 hirsute 21.10 impish "
    "22.04 jammy 22.10 kinetic 23.04 lunar 23.10 mantic 24.04 noble 24.10 oracular 25.04 plucky 25.10 questing "
    "26.04 resolute",
}
_NEWEST: Version = (9999,)


def _version(text: str) -> Version:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


_CODENAMES = {
    name: (family, _version(release))
    for family, words in _RELEASES.items()
    for release, name in zip(words.split(" ")[::2], words.split(" ")[1::2], strict=True)
}


class Fault(NamedTuple):
    """Versions of *program* before *fixed* have a fault; *why* says which."""

    program: str
    fixed: Version
    why: str


#: qemu has no row: what 7.2, 10.0 and 11.1 do differently (docs/internals/userspace-engine.md), lukshook does not use.
FAULTS = (
    Fault("cryptsetup", (2, 4, 3), "a forged header can make older ones write plaintext (CVE-2021-4122)"),
    Fault("losetup", (2, 37), "older ones have no LOOP_CONFIGURE, and do not report autoclear"),
    Fault("e2fsck", (1, 45), "older ones can lose data"),
    # Its release notes name bugs that it fixed (fallocate, O_TRUNC, ACLs, deleting large files). Trials of 1.47.0 found
    # wrong contents without `direct_io`, and none with it; 1.47.2 of Debian 13 does not know `direct_io`.
    Fault("fuse2fs", (1, 47, 3), "older ones have bugs that are fixed in e2fsprogs 1.47.3"),
)


class System(NamedTuple):
    """A *family* of systems ("" where it is none that we know), its *release*, and how it names itself."""

    family: str
    release: Version
    name: str


def this_system() -> System:
    """From /etc/os-release, os-release(5)."""
    for place in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            return system_of(_assignments(Path(place).read_bytes().decode(errors="replace")))
        except OSError:
            continue
    return system_of({})


def _assignments(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.split("\n"))
    return {name: value.strip(" \"'") for name, _, value in pairs}


def system_of(release: Mapping[str, str]) -> System:
    """Which system has this os-release. A derivative counts as the release that it is built on, else as the newest."""
    own = release.get("ID", "")
    for name in ("UBUNTU_CODENAME", "DEBIAN_CODENAME", "VERSION_CODENAME"):
        family, number = _CODENAMES.get(release.get(name, ""), ("", ()))
        if family:
            return System(family, number, _called(family, number))
    family = next((each for each in (own, *release.get("ID_LIKE", "").split(" ")) if each in _FAMILIES), "")
    number = _version(release.get("VERSION_ID", "")) if own == family else ()
    return System(family, number or _NEWEST, _called(family, number))


def _called(family: str, release: Version) -> str:
    """Such as Debian 12, Ubuntu 24.04, Fedora."""
    name = _FAMILIES[family][0] if family else ""
    shown = ".".join(f"{part:02}" if place else str(part) for place, part in enumerate(release))
    return f"{name} {shown}" if shown else name


def package(program: str, system: System) -> str:
    """The package that has *program*; *program* itself where we do not know."""
    for known in _EARLIER:
        if (known.program, known.family) == (program, system.family) and system.release < known.release:
            return known.package
    family = "debian" if system.family in ("", "ubuntu") else system.family
    return str(getattr(_PACKAGES.get(program), family, program))


def packages(programs: Iterable[str], system: System) -> tuple[str, ...]:
    """The packages of all, each once."""
    return tuple(dict.fromkeys(package(program, system) for program in programs))


def install_hint(program: str, system: System, *others: str) -> str:
    """How to install *program* and the *others*, for one line.

    Where the system is unknown: what Debian, Fedora and Arch call them.
    """
    wanted = (program, *others)
    if system.family:
        return f"on {system.name}: {install_command(wanted, system)}"
    newest = (System(family, _NEWEST, _FAMILIES[family][0]) for family in ("debian", "fedora", "arch"))
    return "; ".join(f"on {each.name}: {install_command(wanted, each)}" for each in newest)


def install_command(programs: Iterable[str], system: System) -> str:
    """The command that root runs."""
    return " ".join((_FAMILIES[system.family or "debian"][1], *packages(programs, system)))


def fault(program: str, version: Version) -> Fault | None:
    """The fault that is known of this version, or None."""
    return next((each for each in FAULTS if each.program == program and version < each.fixed), None)


def _is_there(program: str) -> bool:
    import shutil  # noqa: PLC0415 - a hint does not need it
    from importlib.util import find_spec  # noqa: PLC0415

    if program == "venv":
        return find_spec("ensurepip") is not None  # Debian leaves it out of python3
    return bool(shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin"))


def main(arguments: list[str]) -> int:
    """For shell scripts. See the top of the file."""
    what, *programs = arguments or [""]
    system = this_system()
    absent = [program for program in programs if not _is_there(program)]
    if what == "missing":
        sys.stdout.writelines(f"{name}\n" for name in packages(absent, system))
    elif what == "command":
        print(install_command(absent or programs, system))  # noqa: T201
    else:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 64
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

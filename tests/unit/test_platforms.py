"""What each system calls the packages, and which versions are known to be bad."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.filesystems.kinds import KINDS
from lukshook.layers.engines import LAYERS
from lukshook.system import platforms
from lukshook.system.command import find_tool

FILE = Path(platforms.__file__)

DEBIAN_12 = 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n'
DEBIAN_13 = 'NAME="Debian GNU/Linux"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n'
DEBIAN_SID = 'NAME="Debian GNU/Linux"\nVERSION_CODENAME=forky\nID=debian\n'
UBUNTU_22 = 'VERSION_ID="22.04"\nVERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=jammy\n'
UBUNTU_23 = 'VERSION_ID="23.04"\nVERSION_CODENAME=lunar\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=lunar\n'
UBUNTU_24 = 'VERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=noble\n'
UBUNTU_26 = 'VERSION_ID="26.10"\nVERSION_CODENAME=unheard\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=unheard\n'
MINT = "ID=linuxmint\nID_LIKE='ubuntu debian'\nVERSION_ID=\"22\"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n"
LMDE = 'ID=linuxmint\nID_LIKE=debian\nVERSION_ID="6"\nVERSION_CODENAME=faye\nDEBIAN_CODENAME=bookworm\n'
RASPBIAN = 'ID=raspbian\nID_LIKE=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
BULLSEYE = 'ID=mx\nID_LIKE=debian\nVERSION_ID="21"\nVERSION_CODENAME=bullseye\n'
DEVUAN = 'ID=devuan\nID_LIKE=debian\nVERSION_ID="5"\nVERSION_CODENAME="daedalus"\n'
ELEMENTARY = 'ID=elementary\nID_LIKE=ubuntu\nVERSION_ID="6.1"\nVERSION_CODENAME=jolnir\nUBUNTU_CODENAME=focal\n'
KALI = 'ID=kali\nID_LIKE=debian\nVERSION_ID="2026.1"\nVERSION_CODENAME=kali-rolling\n'
FEDORA = "ID=fedora\nVERSION_ID=43\n"
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="10.0"\n'
ARCH = "ID=arch\nBUILD_ID=rolling\n"
MANJARO = "ID=manjaro\nID_LIKE=arch\n"
ALPINE = "ID=alpine\nVERSION_ID=3.22.1\n"
UNKNOWN = "on Debian: apt install qemu-utils; on Fedora: dnf install qemu-img; on Arch Linux: pacman -S qemu-img"


def system(release: str) -> platforms.System:
    return platforms.system_of(platforms._assignments(release))


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        (DEBIAN_12, "on Debian 12: apt install qemu-system-common"),
        (DEBIAN_13, "on Debian 13: apt install qemu-utils"),
        (DEBIAN_SID, "on Debian: apt install qemu-utils"),
        (UBUNTU_22, "on Ubuntu 22.04: apt install qemu-system-common"),
        (UBUNTU_23, "on Ubuntu 23.04: apt install qemu-system-common"),
        (UBUNTU_24, "on Ubuntu 24.04: apt install qemu-utils"),
        (UBUNTU_26, "on Ubuntu 26.10: apt install qemu-utils"),
        (MINT, "on Ubuntu 24.04: apt install qemu-utils"),
        (LMDE, "on Debian 12: apt install qemu-system-common"),
        (RASPBIAN, "on Debian 12: apt install qemu-system-common"),
        (BULLSEYE, "on Debian 11: apt install qemu-system-common"),
        (DEVUAN, "on Debian 12: apt install qemu-system-common"),
        (ELEMENTARY, "on Ubuntu 20.04: apt install qemu-system-common"),
        (KALI, "on Debian: apt install qemu-utils"),
        (FEDORA, "on Fedora 43: dnf install qemu-img"),
        (ROCKY, "on Fedora: dnf install qemu-img"),
        (ARCH, "on Arch Linux: pacman -S qemu-img"),
        (MANJARO, "on Arch Linux: pacman -S qemu-img"),
        *((unknown, UNKNOWN) for unknown in (ALPINE, "", "ID\n=\n\0")),
    ],
)
def test_the_hint_names_the_package_of_that_system(release: str, hint: str) -> None:
    """A derivative counts as what it is built on; what is unknown as the newest."""
    assert hint == platforms.install_hint("qemu-storage-daemon", system(release))


def test_no_release_between_two_is_missing() -> None:
    """An older one whose name is unknown would count as the newest."""
    debian, ubuntu = (
        {release for family, release in platforms._CODENAMES.values() if family == name}
        for name in ("debian", "ubuntu")
    )

    assert {(number,) for number in range(8, max(debian)[0] + 1)} == debian
    assert {
        (year, month) for year in range(14, max(ubuntu)[0] + 1) for month in (4, 10) if (year, month) <= max(ubuntu)
    } == ubuntu


def test_what_reads_the_record_of_writes_has_a_package_of_its_own_on_debian_12() -> None:
    """There qemu-img is not where qemu-storage-daemon is."""
    assert "on Debian 12: apt install qemu-utils" == platforms.install_hint("qemu-img", system(DEBIAN_12))
    assert "on Debian 13: apt install qemu-utils" == platforms.install_hint("qemu-img", system(DEBIAN_13))


def test_a_program_that_is_in_no_table_is_its_own_package() -> None:
    """A key command of a user."""
    assert "on Debian 13: apt install gopass" == platforms.install_hint("gopass", system(DEBIAN_13))


def test_every_tool_of_a_layer_or_a_file_system_is_in_the_table() -> None:
    """Else the hint would name a package that may not exist."""
    named = [*(layer.tools for layer in LAYERS.values()), *(kind.tools for kind in KINDS.values())]
    tools = {"cryptsetup", *(tool for tools in named for tool in tools)}

    assert set() == tools - set(platforms._PACKAGES)


def test_every_program_of_the_quickstart_is_in_the_table() -> None:
    """It installs what the table names."""
    script = (FILE.parents[3] / "examples/quickstart").read_text()
    programs = re.search(r"^programs=\((.*)\)$", script, re.MULTILINE)

    assert programs is not None
    assert set() == set(programs[1].split()) - set(platforms._PACKAGES)


def test_packages_are_named_once() -> None:
    """Several programs come from one package."""
    found = platforms.packages(("e2fsck", "mkfs.ext4", "losetup", "umount"), system(DEBIAN_12))

    assert ("e2fsprogs", "mount") == found


@pytest.mark.parametrize(
    ("program", "version", "bad"),
    [
        ("cryptsetup", (2, 4, 2), True),
        ("cryptsetup", (2, 4, 3), False),
        ("losetup", (2, 36, 1), True),
        ("losetup", (2, 37), False),
        ("e2fsck", (), True),
        ("rsync", (1,), False),
    ],
)
def test_versions_with_known_faults(program: str, version: tuple[int, ...], bad: bool) -> None:
    """A program that says no version counts as old."""
    assert bad == (platforms.fault(program, version) is not None)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As examples/quickstart starts it: the file alone, without lukshook."""
    argv = [sys.executable, "-I", "-S", str(FILE), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_shell_script_learns_what_is_missing() -> None:
    """By the file alone: nothing is installed yet."""
    done = shell("missing", "sh", "no-such-program", "no-such-other")

    assert (0, "no-such-program\nno-such-other\n", "") == (done.returncode, done.stdout, done.stderr)
    assert "" == shell("missing", "sh").stdout
    assert 64 == shell().returncode


def test_a_shell_script_learns_how_to_install() -> None:
    """Only what is missing."""
    expected = platforms.install_command(("no-such-program",), platforms.this_system())

    assert f"{expected}\n" == shell("command", "sh", "no-such-program").stdout


def test_the_table_is_read_when_something_is_missing() -> None:
    """Not at each start of a hook."""
    program = (
        "import sys; from lukshook.system import command; import lukshook.plugins.open_and_close; "
        "before = 'lukshook.system.platforms' in sys.modules\n"
        "try: command.find_tool('no-such-program')\n"
        "except Exception as error: print(before, error.hint)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert f"False {platforms.install_hint('no-such-program', platforms.this_system())}\n" == shown.stdout


def test_what_is_there_is_found() -> None:
    """No hint for it."""
    assert find_tool("sh").endswith("/sh")


APT = "apt-get install --no-install-recommends "
KERNEL_ENGINE = ("cryptsetup", "dmsetup", "mount", "e2fsck")
USERSPACE_ENGINE = ("qemu-storage-daemon", "qemu-img", "fusermount3", "fuse2fs")


@pytest.mark.parametrize(
    ("heading", "release"),
    [
        ("Debian 12", DEBIAN_12),
        ("Debian 13", DEBIAN_13),
        ("Ubuntu 24.04", UBUNTU_24),
        ("Fedora", FEDORA),
        ("Arch Linux", ARCH),
    ],
)
def test_the_page_about_installing_names_the_same(heading: str, release: str) -> None:
    """In a section with commands, or in a row of the table of systems that nobody has tried."""
    page = (FILE.parents[3] / "docs/install.md").read_text()
    block, row = rf"^## {heading}\n.*?^apt-get update && (.*?)\n(.*?)\n", rf"^\| {heading} \| `(.*?)` \| `(.*?)` \|"
    ((kernel, userspace),) = re.findall(block, page, re.MULTILINE | re.DOTALL) or re.findall(row, page, re.MULTILINE)
    named = system(release)

    assert platforms.packages(KERNEL_ENGINE, named) == tuple(kernel.removeprefix(APT).split())
    assert platforms.packages(USERSPACE_ENGINE, named) == tuple(userspace.removeprefix(APT).split())

"""Setups for stores that a user copies: lukshook understands the configurations, and systemd the lines for fstab."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lukshook import config
from lukshook.store.remote import kinds
from support.store_examples import backup, text

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs/stores.md").read_text()
#: systemd-fstab-generator(8): it reads the file that SYSTEMD_FSTAB names, and writes units into three folders.
GENERATOR = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
SETUPS = ("nas-nfs", "nas-smb", "friend-ssh", "rented-sftp", "ceph")
LINES = re.findall(r"^\S+ /srv/.* 0 0$", PAGE, re.MULTILINE)


def tables(page: str) -> list[dict[str, Any]]:
    """Each configuration in a page; what it leaves out because it is not about that is put in."""
    found = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    for table in found:
        for name, volume in table["volumes"].items():
            volume.update({"image": "/srv/i", "mountpoint": f"/mnt/{name}", "key": "file:/k"} | volume)
    return found


@pytest.mark.parametrize("table", tables(PAGE))
def test_a_configuration_on_the_page_is_valid(table: dict[str, Any]) -> None:
    assert list(table["volumes"]) == list(config.parse(table, Path("/c.toml")).volumes)


@pytest.mark.parametrize("setup", SETUPS)
def test_the_backup_goes_into_the_volume(setup: str) -> None:
    """Into a folder that exists only inside of it."""
    volume = config.parse(tomllib.loads(text(setup, "config.toml")), Path("/c.toml")).volumes["offsite"]
    assert ["lukshook", "run", "offsite", "--", "rsync"] == backup(setup)[:5]
    assert backup(setup)[-1].startswith(f"{volume.data}/")


@pytest.mark.parametrize("setup", SETUPS)
def test_the_instructions_name_every_file(setup: str) -> None:
    files = {file.name for file in (TOP / "examples" / setup).iterdir()} - {"README.md"}
    assert [] == sorted(file for file in files if file not in text(setup, "README.md"))


@pytest.mark.parametrize(("setup", "line"), [("nas-nfs", 0), ("nas-smb", 1)])
def test_the_line_for_fstab_is_that_of_the_page(setup: str, line: int) -> None:
    assert f"{LINES[line]}\n" == text(setup, "fstab")


def units(line: str, folder: Path) -> dict[str, str]:
    """What systemd makes of a line in fstab: unit and text. Raises CalledProcessError where it takes it for wrong."""
    (folder / "fstab").write_text(f"{line}\n")
    places = [folder / name for name in ("normal", "early", "late")]
    for place in places:
        place.mkdir()
    environment = os.environ | {"SYSTEMD_FSTAB": str(folder / "fstab")}
    subprocess.run([GENERATOR, *places], env=environment, check=True)
    return {unit.name: unit.read_text() for unit in places[0].iterdir() if unit.is_file()}


@pytest.mark.needs(GENERATOR)
@pytest.mark.parametrize("line", LINES)
def test_systemd_mounts_it_when_it_is_used(tmp_path: Path, line: str) -> None:
    """And does not wait for it when the machine starts."""
    made = units(line, tmp_path)

    name = line.split()[1].strip("/").replace("/", "-")
    assert {f"{name}.automount", f"{name}.mount"} == set(made)
    assert f"Type={line.split()[2]}\n" in made[f"{name}.mount"]
    assert {"_netdev", "nofail", "nosuid", "nodev", "noexec"} <= set(line.split()[3].split(","))


@pytest.mark.needs(GENERATOR)
def test_a_typing_error_is_seen(tmp_path: Path) -> None:
    assert {"srv-nas.mount"} == set(units(LINES[0].replace("x-systemd.automount", "x-systemd.automuont"), tmp_path))


#: An image of each kind that the table of remote images has a column for.
COLUMNS = ["ssh://h/i", "sftp://h/i", "nbd://h/i", "rbd:p/i"]
#: The abilities that it has a row for, by how that begins.
ROWS = {
    "a second host": "lock",
    "`create` makes": "create",
    "`resize` changes": "grow",
    "a restart": "reboots",
    "takes snapshots": "snapshots",
}
TABLE = [line.strip("|").split("|") for line in PAGE.partition("\n| | `ssh://`")[2].partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("url", COLUMNS)
def test_the_table_of_remote_images_says_what_they_can_do(url: str) -> None:
    """As `check` does."""
    number = 1 + COLUMNS.index(url)
    can = kinds.parse(url).abilities
    for begin, ability in ROWS.items():
        (said,) = [row[number].strip() for row in TABLE if row[0].strip().startswith(begin)]
        able = getattr(can, ability) or (ability == "lock" and can.lock_file)
        assert able != said.startswith(("no", "**is not")), (begin, said)


def test_the_page_has_a_line_for_each_kind() -> None:
    assert ["nfs4", "cifs", "fuse.sshfs"] == [line.split()[2] for line in LINES]

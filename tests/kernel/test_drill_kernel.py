"""The cases of drill_cases.py with the kernel engine; what the recovery sheet says, typed as it stands there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.drill_cases import (  # noqa: F401 - pytest finds them here
    test_a_backup_goes_before_a_drill,
    test_a_configured_source_that_is_gone_is_no_drill,
    test_a_copy_in_an_overlay_is_a_copy,
    test_a_drill_leaves_the_line_of_the_last_backup,
    test_a_drill_that_was_killed_is_in_nobodys_way,
    test_a_dry_run_of_a_drill_changes_nothing,
    test_a_header_backup_from_before_a_key_was_changed_is_found,
    test_a_healthy_image_passes_and_stays_as_it_is,
    test_a_missing_header_backup_is_found,
    test_a_missing_second_key_is_found,
    test_a_place_behind_a_link_is_not_compared,
    test_a_replica_that_stopped_is_found,
    test_a_rolled_back_image_is_found,
    test_a_volume_without_content_proves_nothing,
    test_a_wrong_second_key_is_found,
    test_an_image_by_another_name_is_still_the_image,
    test_an_image_that_a_person_looks_at_is_not_drilled,
    test_an_image_without_its_header_passes,
    test_an_open_volume_is_drilled_by_a_copy,
    test_files_are_read_where_nothing_else_is_asked_for,
    test_files_that_changed_since_are_no_fault,
    test_one_damaged_file_is_found,
    test_options_that_make_no_sense_are_refused,
    test_the_configured_check_decides,
)
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")


#: Whatever the sheet takes for granted, and a shell.
TOOLS = ("sh", "base64", "cryptsetup", "mount", "umount", "cat")
#: What a sheet with a share takes for granted besides: coreutils, and a Python, which has the standard tool.
TOOLS_OF_SHARES = (*TOOLS, "tr", "basenc", "python3")


def typed(lines: list[str], root: Path, *program: str) -> str:
    """What a person gets who types *lines* into a shell, or *program*, on a machine that has only what is in *root*."""
    alone = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = ["chroot", os.fspath(root), *(program or ("sh", "-e"))]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(argv, input=text, env=alone, check=False, capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def unmount(place: Path) -> None:
    subprocess.run(["umount", place], check=True)


@contextmanager
def empty_root(folder: Path, *files: Path, programs: tuple[str, ...] = TOOLS) -> Iterator[Path]:
    """A root folder with the tools, what they are linked to, and *files* in their places; the kernel's folders too."""
    root = folder / "root"
    for name in ("dev", "proc", "sys", "run", "mnt"):
        (root / name).mkdir(parents=True)
    tools = [found for tool in programs if (found := shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin"))]
    linked = subprocess.run(["ldd", *tools], check=True, capture_output=True, text=True).stdout
    there = [*tools, *dict.fromkeys(re.findall(r"(/\S+) \(0x", linked)), *map(os.fspath, files)]
    subprocess.run(["cp", "--dereference", "--parents", "--sparse=always", *there, root], check=True)
    with ExitStack() as stack:
        for name in ("dev", "proc", "sys"):
            subprocess.run(["mount", "--bind", f"/{name}", root / name], check=True)
            stack.callback(unmount, root / name)
        yield root


def test_the_lines_of_the_sheet_open_the_image(volume: CliVolume) -> None:
    """Those that open, and close, and put a lost header back, on a machine that has only cryptsetup."""
    volume.remove()
    volume.image.unlink()
    for file in volume.state_folder.iterdir():
        file.unlink()
    sheet = volume.do("create", NAME, "--show-key")
    volume.do("run", NAME, "--", "sh", "-c", f"echo content >{volume.data}/file")
    opening, mounting, unmounting, closing, restoring, *_ = [
        line.removeprefix("    ") for line in sheet.splitlines() if line.startswith("    ")
    ]
    with volume.image.open("r+b") as image:
        image.write(bytes(1 << 20))

    with empty_root(volume.folder, volume.image, volume.state_folder / f"{NAME}.header") as root:
        assert "The files are in /mnt/data." in sheet
        said = typed([restoring, opening, mounting, "cat /mnt/data/file", unmounting, closing], root)

    assert "content\n" == said
    assert [] == volume.standing()


def install(root: Path, stack: ExitStack) -> None:
    """The standard tool for shares, where Debian has it: two modules, and what they import."""
    modules = root / "usr/lib/python3/dist-packages"
    modules.mkdir(parents=True)
    for name in ("shamir_mnemonic", "click"):
        (found,) = importlib.util.find_spec(name).submodule_search_locations  # type: ignore[union-attr,misc]
        shutil.copytree(found, modules / name)
    told = subprocess.run(
        ["/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    library = Path(told.stdout.strip())
    place = root / library.relative_to("/")
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", library, place], check=True)
    stack.callback(unmount, place)


def test_two_of_three_sheets_typed_by_hand_open_the_image(volume: CliVolume) -> None:
    """On a machine that has only cryptsetup and the standard tool: neither lukshook nor the volume's key is there."""
    pytest.importorskip("shamir_mnemonic")
    volume.do("run", NAME, "--", "sh", "-c", f"echo content >{volume.data}/file")
    sheets = volume.do("key", "split", NAME, "2/3").split("\f")
    lines = [line.removeprefix("    ") for line in sheets[2].splitlines() if line.startswith("    ")]
    shares = [re.sub(r"\d+", "", " ".join(re.findall(r"^    ( ?\d+ [a-z ]+)$", s, re.MULTILINE))) for s in sheets]
    begin = lines.index("apt install python3-shamir-mnemonic python3-click") + 1
    tool, opening, mounting, unmounting, closing = lines[begin : begin + 5]

    with ExitStack() as stack:
        root = stack.enter_context(empty_root(volume.folder, volume.image, programs=TOOLS_OF_SHARES))
        install(root, stack)
        assert not list((root / "usr").glob("**/lukshook*/"))
        (key,) = re.findall("[0-9a-f]{64}", typed([shares[2], shares[0]], root, *tool.split()))
        said = typed([opening.replace("KEY", key), mounting, "cat /mnt/data/file", unmounting, closing], root)

    assert "content\n" == said
    assert [] == volume.standing()

"""The warning of swap in the clear: said when it is so, once in each boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from lukshook import kernel, swap

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def areas(tmp_path: Path, *names: str) -> tuple[str, ...]:
    table = tmp_path / "swaps"
    table.write_text(HEAD + "".join(f"{name} file\t\t1048572\t\t0\t\t-2\n" for name in names))
    return swap.in_the_clear(table, tmp_path / "blocks")


def device(tmp_path: Path, number: str, uuid: str = "", slaves: tuple[str, ...] = ()) -> None:
    """A block device in a sysfs of ours."""
    folder = tmp_path / "blocks" / number
    (folder / "slaves").mkdir(parents=True)
    for slave in slaves:
        (folder / "slaves" / slave.replace(":", "-")).symlink_to(tmp_path / "blocks" / slave)
    if uuid:
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(uuid + "\n")


def swap_file(tmp_path: Path) -> tuple[str, str]:
    """A swap file and the number of the device it lies on."""
    file = tmp_path / "swapfile"
    file.touch()
    return str(file), kernel.number_within(file)


def test_no_swap_is_in_the_clear_where_there_is_none(tmp_path: Path) -> None:
    """Neither with an empty table nor without one."""
    assert () == areas(tmp_path)
    assert () == swap.in_the_clear(tmp_path / "absent", tmp_path)


def test_a_file_on_a_plain_disk_is_in_the_clear(tmp_path: Path) -> None:
    """Nothing below it encrypts."""
    file, number = swap_file(tmp_path)
    device(tmp_path, number)
    assert (file,) == areas(tmp_path, file)


def test_what_lies_on_dm_crypt_is_not(tmp_path: Path) -> None:
    """Directly, or with LVM in between."""
    file, number = swap_file(tmp_path)
    device(tmp_path, number, "LVM-abc", slaves=("253:7",))
    device(tmp_path, "253:7", "CRYPT-LUKS2-abc-root")
    assert () == areas(tmp_path, file)


def test_half_on_dm_crypt_is_in_the_clear(tmp_path: Path) -> None:
    """LVM over two disks of which one is not encrypted."""
    file, number = swap_file(tmp_path)
    device(tmp_path, number, "LVM-abc", slaves=("253:7", "8:1"))
    device(tmp_path, "253:7", "CRYPT-LUKS2-abc-root")
    device(tmp_path, "8:1")
    assert (file,) == areas(tmp_path, file)


def test_compressed_memory_is_not(tmp_path: Path) -> None:
    """zram never reaches a disk by itself."""
    assert () == areas(tmp_path, "/dev/zram0")


def test_the_warning_comes_once_in_each_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts show what a hook writes to stderr, so it is not repeated."""
    said: list[str] = []
    for boot in ("one", "one", "two"):
        monkeypatch.setattr(kernel, "boot_id", lambda boot=boot: boot)
        swap.warn_once(tmp_path / "run", said.append, ("/dev/sda2",))
    assert 2 == len(said)
    assert "/dev/sda2" in said[0]
    swap.warn_once(tmp_path / "other", said.append, ())
    assert 2 == len(said)

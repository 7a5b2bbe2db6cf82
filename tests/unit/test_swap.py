"""The warning of swap in the clear: said when it is so, once in each boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from lukshook.report import check
from lukshook.system import kernel, swap

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


@pytest.mark.parametrize(
    ("uuids", "plain"), [(("LVM-abc", ""), True), (("LVM-abc", "CRYPT-LUKS2-x"), False), (("CRYPT-LUKS2-x",), False)]
)
def test_check_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuids: tuple[str, ...], plain: bool
) -> None:
    """Of a device-mapper device, which may be LVM on a disk or on dm-crypt."""
    for number, uuid in enumerate(uuids):
        device(tmp_path, f"253:{number}", uuid, slaves=(f"253:{number + 1}",) if number + 1 < len(uuids) else ())
    monkeypatch.setattr(kernel, "number", lambda path: "253:0")
    monkeypatch.setattr(Path, "is_block_device", lambda path: True)
    found = areas(tmp_path, "/dev/dm-0")
    monkeypatch.setattr(swap, "in_the_clear", lambda: found)
    monkeypatch.setattr(Path, "read_text", lambda path, *rest: HEAD + "/dev/dm-0 partition 1 0 -2\n")

    lines = [finding.text for finding in check._surroundings()]

    assert (("/dev/dm-0",) if plain else ()) == found
    assert plain == any("swap is not encrypted (/dev/dm-0)" in line for line in lines)


def test_a_kernel_without_swap_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no table then."""
    missing = tmp_path / "swaps"
    real, read = kernel._content, Path.read_text
    monkeypatch.setattr(kernel, "_content", lambda path: real(missing if path == Path("/proc/swaps") else path))
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: read(missing if path == Path("/proc/swaps") else path))

    assert [] == [f for f in check._surroundings() if "swap" in f.text]


@pytest.mark.parametrize("name", ["zram.img", "zram0", "zramfoo"])
def test_a_file_is_no_compressed_memory_by_its_name(tmp_path: Path, name: str) -> None:
    """Only /dev/zramN is."""
    (tmp_path / name).touch()
    device(tmp_path, kernel.number_within(tmp_path / name))

    assert (str(tmp_path / name),) == areas(tmp_path, str(tmp_path / name))


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

"""Whether what is in memory can end up on a disk in the clear."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lukshook.system import files, json_files, kernel
from lukshook.system.ownership import private_folder

_COMPRESSED_MEMORY = re.compile(r"/dev/zram[0-9]+")


def in_the_clear(table: Path = Path("/proc/swaps"), blocks: Path = Path("/sys/dev/block")) -> tuple[str, ...]:
    """The swap areas in use (proc(5)) that do not lie on dm-crypt and are not compressed memory (zram)."""
    return tuple(name for name in kernel.swaps(table) if not _is_safe(name, blocks))


def _is_safe(name: str, blocks: Path) -> bool:
    if _COMPRESSED_MEMORY.fullmatch(name):
        return True
    try:
        number = kernel.number(name) if Path(name).is_block_device() else kernel.number_within(name)
    except OSError:
        return False
    return _encrypted(blocks / number)


def _encrypted(device: Path) -> bool:
    """A dm-crypt mapping, or something that stands on nothing else (LVM on LUKS)."""
    try:
        if kernel.value(device / "dm/uuid").startswith("CRYPT-"):
            return True
        below = [link.resolve() for link in (device / "slaves").iterdir()]
    except OSError:
        return False
    return bool(below) and all(map(_encrypted, below))


def _is_noted(file: Path, boot: str) -> bool:
    try:
        return json_files.read(file) == boot.encode()
    except (OSError, json_files.Damaged):
        return False


def warn_once(run_folder: Path, warn: Callable[[str], None], areas: tuple[str, ...] | None = None) -> None:
    """Warn of swap in the clear, once in each boot."""
    areas = in_the_clear() if areas is None else areas
    noted, boot = run_folder / "swap-warned", kernel.boot_id()
    if not areas or _is_noted(noted, boot):
        return
    private_folder(run_folder)
    with suppress(OSError):  # something else is there: warned once too often is better than not opened
        files.write_whole(noted, boot.encode(), durable=False)
    warn(
        f"swap is not encrypted ({', '.join(areas)}): what a backup tool has in memory can end up "
        "there in the clear. Encrypt it, or use zram"
    )

"""A volume whose image is to lie at a remote place, and what tests of every such place do with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lukshook.system import kernel, processes
from support.volume import NAME, CliVolume


def some(number: int = 3_000_000) -> bytes:
    return os.urandom(number)


def house(folder: Path, url: str, **options: object) -> CliVolume:
    """A volume in *folder* for the userspace engine, not created yet."""
    return house_with("userspace", folder, url, **options)


def house_with(engine: str, folder: Path, url: str, **options: object) -> CliVolume:
    """The same for any *engine*."""
    volume = CliVolume(folder, engine)
    volume.prepare()
    volume.configure(image=url, **options)
    return volume


def back_up(volume: CliVolume, name: str) -> bytes:
    """Write a file *name*; what is in it."""
    content = some()
    volume.do("before-backup", NAME)
    (volume.data / name).write_bytes(content)
    volume.do("after-backup", NAME)
    return content


def nothing_stands(volume: CliVolume, *notes: str) -> bool:
    """Whether neither mount nor private folder is left, only locks. Processes are counted after each test.

    *notes*: what may be left in the private folder, for the next opening.
    """
    left = os.listdir(volume.run_folder) if volume.run_folder.exists() else []
    private = f"{NAME}.remote"
    noted = os.listdir(volume.run_folder / private) if private in left else []
    names = [name for name in left if not name.endswith(".lock") and not (noted and name == private)]
    return not volume.standing() and not names and set(noted) <= set(notes)


def in_it(volume: CliVolume, *names: str) -> list[bytes]:
    """What is in those files of the volume, opened for that and closed again."""
    volume.do("open", NAME, "--read-only")
    found = [(volume.data / name).read_bytes() for name in names]
    volume.do("close", NAME)
    return found


def ours(volume: CliVolume, program: str) -> list[int]:
    """The processes of that program that show the image of *volume*."""
    found = (volume.run_folder / f"{NAME}.remote").stat()
    return list(kernel.processes_with(program[:15], found.st_dev, found.st_ino))


def connections(volume: CliVolume, program: str = "") -> list[int]:
    """The processes that make the connections of *volume*, or those of one *program* among them."""
    families = (processes.family(pid) for pid in ours(volume, "socat"))
    pids = dict.fromkeys(pid for family in families for pid, _ in family)
    return [pid for pid in pids if program in ("", kernel.command(pid))]


def check_a_frozen_host_changes_nothing(
    volume: CliVolume, other: CliVolume, is_free: Callable[[], bool], image: Callable[[], bytes]
) -> None:
    """The place forgets it, *other* writes; what the frozen one still has to write is stored nowhere.

    *is_free*: whether the place has forgotten it. *image*: what lies there.
    """
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    (volume.data / "begun").write_bytes(some())
    subprocess.run(["sync", "-f", volume.data], check=True)
    # What shows the image goes on: losetup(8) asks all of this kernel, and would hang.
    frozen = [*ours(volume, "socat"), *connections(volume)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert kernel.wait_until(is_free, 90.0)
        shutil.copy(volume.key, other.key)
        other.do("trust", NAME)
        content = back_up(other, "theirs")
        before = image()
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    with suppress(OSError), (volume.data / "late").open("wb") as late:
        late.write(some())
    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert before == image()
    assert [content] == in_it(other, "theirs")
    assert nothing_stands(volume)
    other.remove()

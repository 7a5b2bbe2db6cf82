"""A volume that somebody still uses when it is to be closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lukshook.cli import main
from support.lukshook_process import Done
from support.volume import NAME, CliVolume, closing

#: Programs that hold a file of the volume, and how that is named.
HOLDERS = {
    "file": ("import time; f = open('{data}/held', 'w'); print(flush=True); time.sleep(600)", "file {data}/held"),
    "folder": ("import os, time; os.chdir('{data}'); print(flush=True); time.sleep(600)", "working folder"),
    "mapping": (
        (
            "import mmap, os, time; f = open('{data}/held', 'w+'); f.write('x' * 4096); f.flush();"
            "m = mmap.mmap(f.fileno(), 0); os.closerange(3, 99); print(flush=True); time.sleep(600)"
        ),
        "mapping {data}/held",
    ),
}
#: What keeps a volume busy without any process: how it is begun, how it is ended, and how it is named.
HELD_BY_KERNEL = {
    "mount": (
        "mkdir {data}/nested; mount -t tmpfs nested {data}/nested",
        "umount {data}/nested",
        "by a mount on {data}/nested",
    ),
    "bind": (
        "mkdir {folder}/elsewhere; mount --bind {data} {folder}/elsewhere",
        "umount {folder}/elsewhere",
        "by a mount on {folder}/elsewhere",
    ),
    "loop": (
        "truncate --size=1M {data}/disk; losetup --find {data}/disk",
        "losetup --detach $(losetup --noheadings --output NAME --associated {data}/disk)",
        "by the loop device /dev/loop",
    ),
    "swap": (
        "cd {data}; fallocate --length=4M swap; chmod 600 swap; mkswap swap >/dev/null; swapon swap",
        "swapoff {data}/swap",
        "by swap on {data}/swap",
    ),
}
ELSEWHERE = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume that is there."""
    volume = CliVolume(tmp_path_factory.mktemp("busy"), "kernel")
    volume.prepare()
    volume.do("create", NAME)
    yield from closing(volume)


@pytest.fixture
def volume(template: CliVolume) -> Iterator[CliVolume]:
    """The volume, open for a backup, and closed again after the test."""
    template.do("before-backup", NAME)
    yield template
    template.lukshook("after-backup", NAME, "--kill-holders")


def impatient() -> None:
    """Wait for nobody."""
    site = main.App.site
    setattr(main.App, "site", lambda app, **more: site(app, patience=0.2, **more))  # noqa: B010


def after(volume: CliVolume, *options: str) -> Done:
    """after-backup that waits for nobody."""
    return volume.start("after-backup", NAME, *options, prepare=impatient).wait()


@contextmanager
def holding(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it holds what it shall."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", HOLDERS)
def test_who_holds_it_is_named_and_the_next_run_closes(volume: CliVolume, kind: str) -> None:
    """71 with process and what it holds; once it has ended, closing goes through."""
    program, held = (text.format(data=volume.data) for text in HOLDERS[kind])
    with holding(sys.executable, "-c", program) as holder:
        done = after(volume)
        assert 71 == done.returncode, done.stderr
        assert f"(pid {holder.pid}" in done.stderr
        assert held in done.stderr

    volume.do("after-backup", NAME)
    assert volume.is_bare()


@pytest.mark.parametrize("kind", HELD_BY_KERNEL)
def test_what_no_process_holds_is_named_and_left_alone(volume: CliVolume, kind: str) -> None:
    """71 also with --kill-holders, which ends processes; once it is gone, closing goes through."""
    begin, end, named = (text.format(data=volume.data, folder=volume.folder) for text in HELD_BY_KERNEL[kind])
    subprocess.run(["sh", "-ec", begin], check=True)
    try:
        done = after(volume, "--kill-holders")
    finally:
        subprocess.run(["sh", "-ec", end], check=True)
    assert 71 == done.returncode, done.stderr
    assert named in done.stderr

    volume.do("after-backup", NAME)
    assert volume.is_bare()


@pytest.mark.parametrize("options", [(), ("--kill-holders",)], ids=["plain", "kill"])
def test_a_holder_in_another_mount_namespace_is_found(volume: CliVolume, options: tuple[str, ...]) -> None:
    """umount says 0 then, and lsof and fuser see nobody; the mapping cannot be closed. It is named, never ended."""
    with holding(*ELSEWHERE, "import time; print(flush=True); time.sleep(600)") as holder:
        done = after(volume, *options)
        assert 71 == done.returncode, done.stderr
        assert f"(pid {holder.pid}" in done.stderr
        assert "another mount namespace" in done.stderr
        assert holder.poll() is None
        assert [f"lukshook-{NAME}"] == volume.mappings()

    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_what_stays_open_is_read_only(volume: CliVolume) -> None:
    """Nobody writes to a volume whose backup is over, as soon as nobody has a file open for writing."""
    with holding(sys.executable, "-c", HOLDERS["folder"][0].format(data=volume.data)):
        assert 71 == after(volume).returncode

        with pytest.raises(OSError, match="Read-only"):
            (volume.data / "late").touch()


def test_a_new_backup_does_not_join_what_could_not_be_closed(volume: CliVolume) -> None:
    """It is read-only: the new backup waits for the holder, and opens again once it is gone."""
    with holding(sys.executable, "-c", HOLDERS["folder"][0].format(data=volume.data)):
        after(volume)
        assert 71 == volume.start("before-backup", NAME, prepare=impatient).wait().returncode

    volume.do("before-backup", NAME)
    (volume.data / "file").touch()


def test_holders_are_ended_only_when_asked(volume: CliVolume) -> None:
    """With --kill-holders, also those that ignore SIGTERM; nobody else."""
    program = "import signal; signal.signal(15, signal.SIG_IGN);" + HOLDERS["file"][0].format(data=volume.data)
    with holding(sys.executable, "-c", program) as holder, holding("sh", "-c", "echo; exec sleep 600") as bystander:
        assert 71 == after(volume).returncode
        assert holder.poll() is None

        done = after(volume, "--kill-holders")

        assert 0 == done.returncode, done.stderr
        assert done.stderr.startswith("warning: ending ")
        assert -signal.SIGKILL == holder.wait()
        assert bystander.poll() is None
    assert volume.is_bare()


def test_dying_children_of_the_host_are_waited_for(volume: CliVolume) -> None:
    """An interrupted host calls its after hook while its children still write for a moment."""
    program = f"import time; f = open('{volume.data}/held', 'w'); print(flush=True); time.sleep(2)"
    with holding(sys.executable, "-c", program):
        volume.do("after-backup", NAME)

    assert volume.is_bare()


def test_a_lost_write_is_told_even_when_closing_is_busy_first(volume: CliVolume) -> None:
    """The kernel tells it once, at the first try; the try that closes still ends with 74."""
    record = volume.run_folder / f"{NAME}.json"
    with holding(sys.executable, "-c", HOLDERS["folder"][0].format(data=volume.data)):
        assert 71 == volume.start("after-backup", NAME, prepare=losing).wait().returncode
    assert "Input/output error" in record.read_text()

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode
    assert "Input/output error" in done.stderr
    assert volume.is_bare()


def losing() -> None:
    """The first flush tells of a lost write, as the kernel does, and no other."""
    from lukshook.layers import mount  # noqa: PLC0415

    answers = iter([os.strerror(5)])
    setattr(mount, "flush", lambda descriptor: next(answers, ""))  # noqa: B010
    impatient()


def test_a_program_on_the_device_itself_is_named(volume: CliVolume) -> None:
    """Whoever reads the open mapping keeps it from closing."""
    node = f"/dev/mapper/lukshook-{NAME}"
    if not Path(node).exists():
        pytest.skip("this engine has no mapping")
    with holding(
        sys.executable, "-c", f"import time; f = open('{node}'); print(flush=True); time.sleep(600)"
    ) as holder:
        done = after(volume)
        assert 71 == done.returncode, done.stderr
        assert f"(pid {holder.pid}" in done.stderr

    volume.do("after-backup", NAME)

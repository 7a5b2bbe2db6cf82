"""A whole life at odd places, for callers with odd names, umasks, limits and signals; through the command line."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lukshook.system import kernel
from support.lukshook_process import Done
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
#: What people have in names, and what means something to a shell, to qemu, to mount or to a format.
ODD = "B\u00fcro \u65e5\u672c a\\b %d{x}$y;z&`#'\"!*?[]~"


@pytest.fixture(params=[pytest.param(ODD, id="odd"), pytest.param(f"{ODD},c,,d=e:f", id="with commas")])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume with everything at such a place; for an ordinary user, all but the run folder."""
    folder = tmp_path / request.param
    folder.mkdir()
    volume = CliVolume(folder, "userspace", {"LUKSHOOK_RUN_DIR": str(tmp_path / "run")} if os.geteuid() else {})
    volume.prepare()
    yield from closing(volume)


def test_a_whole_life_at_a_place_with_an_odd_name(place: CliVolume) -> None:
    """Created, checked, opened, written, closed, resized, its key rotated and its header cared for."""
    sheet = place.do("create", NAME)
    for word in ("before-backup", "before-backup"):
        assert "" == place.do(word, NAME)
    (place.data / "file").write_text("content")
    shown = place.do("status")
    assert f"{NAME}: open for " in shown
    assert str(place.mountpoint) in shown
    assert "" == place.do("after-backup", NAME)
    assert place.is_bare()

    for words in (["check"], ["resize", NAME, "+16MiB"], ["header", "verify", NAME], ["header", "backup", NAME]):
        place.do(*words)
    place.do("key", "rotate", NAME)
    place.do("key", "add", NAME, "--key", f"file:{place.key}.second")
    place.do("run", NAME, "--", "test", "-e", str(place.data / "file"))
    place.do("header", "restore", NAME)
    place.do("run", NAME, "--", "grep", "-q", "content", str(place.data / "file"))
    assert place.is_bare()
    assert str(place.image) in opened_by(sheet)


def opened_by(sheet: str) -> list[str]:
    """The words that a shell makes of the line of the recovery sheet that opens the image."""
    line = next(line for line in sheet.splitlines() if "luksOpen" in line)
    words = line.partition("| cryptsetup ")[2]
    found = subprocess.run(["sh", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@contextmanager
def called(name: bytes) -> Iterator[None]:
    """While the tool that calls the hooks, this very process, has another name."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes(name)
    try:
        yield
    finally:
        comm.write_bytes(before.rstrip(b"\n"))


@pytest.mark.parametrize(
    "name", [b"a\nwarning: x", b"\x1b[2J\x1b]0;x\x07", "\u00e4".encode() * 7 + b"\xc3", b"a\x0b\xe2\x80\xa8b"]
)
def test_a_host_may_have_any_name(volume: CliVolume, name: bytes) -> None:
    """It opens and closes, and whatever shows it shows one printable line."""
    with called(name):
        assert "" == volume.do("before-backup", NAME)
        shown = volume.do("status", NAME)
        facts = json.loads(volume.do("status", "--json"))
        refused = volume.lukshook("close", NAME)
        done = volume.lukshook("-v", "after-backup", NAME)

    assert (71, 0) == (refused.returncode, done.returncode)
    lines = [line for text in (shown, refused.stderr, done.stderr) for line in text.removesuffix("\n").split("\n")]
    assert [] == [line for line in lines if not line.isprintable()]
    assert not any(line.startswith("warning: x") for line in lines)
    assert all(user.isprintable() for user in facts[0]["users"])
    assert volume.is_bare()


def run(volume: CliVolume, prepare: Callable[[], object], *words: str) -> Done:
    return volume.start(*words, prepare=lambda: (prepare(), None)[1]).wait()


def writable(folder: Path) -> list[str]:
    """What of a folder others may write, itself included."""
    entries = [folder, *folder.rglob("*")]
    return [str(entry) for entry in entries if not entry.is_symlink() and entry.stat().st_mode & 0o022]


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077, 0o777])
def test_a_life_under_any_umask(tmp_path: Path, mask: int) -> None:
    """Nothing of ours can be written by others, and we can use all that we have made; `data` is as `mode` says."""
    data = 0o700
    volume = CliVolume(tmp_path / "volume", "userspace")
    volume.folder.mkdir()
    volume.prepare()
    volume.key.unlink()
    volume.mountpoint.rmdir()
    deep = {"LUKSHOOK_RUN_DIR": "deep/er/run", "LUKSHOOK_STATE_DIR": "deeper/still/state"}
    own = {name: str(volume.folder / folder) for name, folder in deep.items()}
    volume = CliVolume(volume.folder, "userspace", own)
    volume.configure(mountpoint=str(volume.folder / "made/by/mnt"), metrics=None)
    config = volume.config.read_text()
    volume.config.write_text(f'metrics = "{volume.folder}/lukshook.prom"\n{config}')
    mountpoint = volume.folder / "made/by/mnt"
    masked = f"umask >{volume.folder}/umask; stat -c %a {mountpoint}/data >{volume.folder}/mode"
    try:
        for words in (
            ["create", NAME],
            ["before-backup", NAME],
            ["after-backup", NAME],
            ["run", NAME, "--", "sh", "-c", masked],
        ):
            done = run(volume, lambda: os.umask(mask), *words)
            assert 0 == done.returncode, (words, done.stderr)
        # What the user's command has made has the caller's umask; with 0777 it could not even be read by a user.
        for file in ("umask", "mode"):
            (volume.folder / file).chmod(0o600)
        assert (f"{mask:04o}", f"{data:o}") == tuple(
            (volume.folder / file).read_text().strip() for file in ("umask", "mode")
        )
        assert 0o644 == (volume.folder / "lukshook.prom").stat().st_mode & 0o777
        assert 0o600 == volume.key.stat().st_mode & 0o777
        for folder in ("deep", "deeper", "made", "store"):
            assert [] == writable(volume.folder / folder)
    finally:
        volume.lukshook("close", NAME, "--kill-holders")
        subprocess.run(["chattr", "-i", mountpoint], check=False, capture_output=True)


def test_the_status_of_a_command_is_known_where_the_caller_ignores_its_children(volume: CliVolume) -> None:
    """Else a backup that failed would seem to be done, and a tool that failed to have done its work."""
    done = run(volume, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN), "run", NAME, "--", "sh", "-c", "exit 23")

    assert (23, "") == (done.returncode, re.sub("warning: swap.*\n", "", done.stderr))
    assert volume.is_bare()


def test_a_limit_on_the_size_of_files_ends_no_backup(volume: CliVolume) -> None:
    """The daemon that decrypts writes the image, and would be killed at the limit."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))

    assert 0 == run(volume, limit, "before-backup", NAME).returncode
    (volume.data / "file").write_bytes(os.urandom(8 << 20))
    done = run(volume, limit, "after-backup", NAME)

    assert (0, "") == (done.returncode, done.stderr)
    assert volume.is_bare()


def test_a_limit_that_stays_is_refused_before_anything_is_open(volume: CliVolume) -> None:
    """Where root has the capability for it, it is raised."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = run(volume, limit, "before-backup", NAME)

    if kernel.has_capability(kernel.CAP_SYS_RESOURCE):
        assert 0 == done.returncode
    else:
        assert 69 == done.returncode
        assert "only files of up to 1MiB may be written" in done.stderr
        assert volume.is_bare()

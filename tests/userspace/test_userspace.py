"""What a host can count on with the userspace engine, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from lukshook.layers import filesystem, mount
from lukshook.system import kernel
from support.command_faults import killed_with_a_new_header
from support.daemons import daemons
from support.lukshook_process import kill_all
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


def write(volume: CliVolume, name: str, content: str) -> None:
    """A backup of one file."""
    volume.do("before-backup", NAME)
    (volume.data / name).write_text(content)
    volume.do("after-backup", NAME)


def content_of(volume: CliVolume, name: str) -> str:
    """What the file has at the next opening."""
    volume.do("before-backup", NAME)
    content = (volume.data / name).read_text()
    volume.do("after-backup", NAME)
    return content


def test_a_backup_is_there_at_the_next_opening(volume: CliVolume) -> None:
    """Before and after say nothing; what was written between is there again, and was not there between."""
    assert "" == volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    assert "" == volume.do("after-backup", NAME)
    assert volume.is_bare()
    assert [] == daemons(volume)

    assert "content" == content_of(volume, "file")
    assert volume.is_bare()


def test_before_and_after_come_as_often_as_they_like(volume: CliVolume) -> None:
    """A host may call before twice, after twice, and after without before."""
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    first = daemons(volume)
    volume.do("before-backup", NAME)
    assert volume.is_open()
    assert first == daemons(volume)

    volume.do("after-backup", NAME)
    assert volume.is_bare()
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_a_command_that_fails_keeps_its_status(volume: CliVolume) -> None:
    """`run` closes and ends as its command did, and what that wrote is kept."""
    line = f"echo content >'{volume.data}/file'; exit 23"

    done = volume.lukshook("run", NAME, "--", "sh", "-c", line)

    assert (23, True) == (done.returncode, volume.is_bare()), done.stderr
    assert "content\n" == content_of(volume, "file")


def test_a_wrong_key_is_told(volume: CliVolume) -> None:
    """77, and nothing is left open."""
    volume.set_key(b"k" * 32)

    assert "key" in volume.refusal(77, "before-backup", NAME)
    assert volume.is_bare()
    assert [] == daemons(volume)


def test_a_missing_image_is_told(volume: CliVolume) -> None:
    """69, and nothing is left open."""
    volume.image.unlink()

    assert "is not there" in volume.refusal(69, "before-backup", NAME)
    assert volume.is_bare()


@pytest.mark.parametrize("which", [0, -1], ids=["lowest", "highest"])
def test_a_killed_daemon_is_never_a_success(volume: CliVolume, which: int) -> None:
    """74 at the end; what an earlier run had stored is whole in the next one."""
    write(volume, "earlier", "stored")
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("perhaps")
    pid = daemons(volume)[which]
    os.kill(pid, signal.SIGKILL)
    assert kernel.wait_until(lambda: kernel.started(pid) is None, 10.0)

    done = volume.lukshook("after-backup", NAME)

    assert 74 == done.returncode, done.stderr
    assert "" != done.stderr
    assert [] == volume.standing()
    assert "stored" == content_of(volume, "earlier")
    assert volume.is_bare()


def test_after_a_killed_daemon_the_next_before_works(volume: CliVolume) -> None:
    """Also where nobody called after: whoever had it open still hears 74 then, and nobody after that."""
    write(volume, "earlier", "stored")
    volume.do("before-backup", NAME)
    os.kill(daemons(volume)[0], signal.SIGKILL)

    again = volume.lukshook("before-backup", NAME)
    ended = volume.lukshook("after-backup", NAME)

    assert (0, 74) == (again.returncode, ended.returncode), (again.stderr, ended.stderr)
    assert "not safe" == json.loads(volume.do("status", NAME, "--json"))[0]["last_result"]
    assert "stored" == content_of(volume, "earlier")
    assert volume.is_bare()


def another_host(volume: CliVolume, *steps: str) -> list[int]:
    """Another backup tool calls these hooks, one after the other, and ends; their exit statuses."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.write(tell, bytes(volume.lukshook(step, NAME).returncode for step in steps))
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        return list(pipe.read())


def test_a_second_host_does_not_hide_what_the_first_has_lost(volume: CliVolume) -> None:
    """It gets the volume, recovered; the first hears 74."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("perhaps")
    kill_all(daemons(volume))

    assert [0] == another_host(volume, "before-backup")

    assert 74 == volume.lukshook("after-backup", NAME).returncode
    assert volume.is_bare()
    assert [0, 0] == another_host(volume, "before-backup", "after-backup")


@pytest.mark.parametrize("what", ["image", "mountpoint"])
def test_what_is_configured_anew_while_it_is_open(volume: CliVolume, what: str) -> None:
    """While somebody uses it the old way it is refused; else the old one is closed, and the new one opened."""
    place = volume.folder / "other"
    if what == "mountpoint":
        place.mkdir()
    else:
        shutil.copy(volume.image, place)
    assert [0] == another_host(volume, "before-backup")
    volume.configure(**{what: str(place)})
    volume.do("before-backup", NAME)
    mounted = [mount for mount in volume.mounts() if mount in (str(volume.mountpoint), str(place))]
    assert [str(place) if what == "mountpoint" else str(volume.mountpoint)] == mounted

    volume.configure()

    assert "with an earlier configuration" in volume.refusal(69, "before-backup", NAME)
    assert "with an earlier configuration" in volume.refusal(69, "run", NAME, "--", "true")
    volume.do("after-backup", NAME)
    assert [] == volume.standing()
    volume.do("run", NAME, "--", "true")
    subprocess.run(["chattr", "-i", place], check=False, capture_output=True)


def told_once() -> None:
    """As the `prepare` of a `run`: the kernel tells of lost data once, to whoever asks first."""
    flush = mount.flush
    told: list[int] = []

    def first_time(descriptor: int) -> str:
        told.append(descriptor)
        return "Input/output error" if len(told) == 1 else flush(descriptor)

    mount.flush = first_time


def test_what_run_was_told_of_is_told_to_all_who_use_it(volume: CliVolume) -> None:
    """The one who ran, the one who had it open as well, and status."""
    volume.do("before-backup", NAME)

    done = volume.start("run", NAME, "--", "true", prepare=told_once).wait()

    assert 74 == done.returncode, done.stderr
    assert 74 == volume.lukshook("after-backup", NAME).returncode
    assert "not safe" == json.loads(volume.do("status", NAME, "--json"))[0]["last_result"]
    assert volume.is_bare()


def test_the_mount_point_is_guarded_below_the_volume_too(volume: CliVolume) -> None:
    """It comes to light with a power cut, or when somebody else unmounts: nothing is written there in the clear."""
    volume.do("before-backup", NAME)
    holding = daemons(volume)
    kill_all(holding)
    assert kernel.wait_until(lambda: not any(map(kernel.started, holding)), 10.0)
    unmount = ["fusermount3", "-u"] if os.geteuid() else ["umount"]
    subprocess.run([*unmount, volume.mountpoint], check=True)

    with pytest.raises(PermissionError):
        (volume.mountpoint / "file").touch()
    assert 74 == volume.lukshook("after-backup", NAME).returncode
    assert volume.is_bare()


@pytest.mark.parametrize("seconds", [0.02, 0.08, 0.15, 0.3])
@pytest.mark.parametrize("hook", ["before-backup", "after-backup"])
def test_a_killed_lukshook_is_put_right_by_the_next(volume: CliVolume, hook: str, seconds: float) -> None:
    """Whenever SIGKILL comes, the next run finds its way, and what was stored is whole."""
    write(volume, "earlier", "stored")
    if hook == "after-backup":
        volume.do("before-backup", NAME)
    child = volume.start(hook, NAME)
    kernel.wait_until(child.poll, seconds)
    child.signal(signal.SIGKILL)
    child.wait()

    assert "stored" == content_of(volume, "earlier")
    assert volume.is_bare()
    assert [] == daemons(volume)


def test_a_read_only_opening_changes_no_byte(volume: CliVolume) -> None:
    """For looking and restoring."""
    write(volume, "file", "content")
    before = volume.digest()

    volume.do("open", NAME, "--read-only")
    assert "content" == (volume.data / "file").read_text()
    with pytest.raises(OSError, match="Read-only"):
        (volume.data / "other").touch()
    volume.do("close", NAME)

    assert before == volume.digest()


def cut_off(volume: CliVolume) -> None:
    """A file is written and synced, and the daemons are killed."""
    volume.do("before-backup", NAME)
    with (volume.data / "synced").open("wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
    kill_all(daemons(volume))
    assert 74 == volume.lukshook("after-backup", NAME).returncode


def test_looking_at_what_was_cut_off_says_so(volume: CliVolume) -> None:
    """A read-only opening mends nothing, so it may show less than there is; one for writing puts it right."""
    cut_off(volume)

    looked = volume.lukshook("open", NAME, "--read-only")
    volume.do("close", NAME)

    assert 0 == looked.returncode
    assert "this read-only opening may be missing the most recent writes" in looked.stderr
    volume.do("before-backup", NAME)
    assert b"content" == (volume.data / "synced").read_bytes()
    volume.do("after-backup", NAME)
    assert "" == volume.lukshook("open", NAME, "--read-only").stderr
    volume.do("close", NAME)


@pytest.mark.parametrize("words", [["before-backup", NAME], ["run", NAME, "--", "true"]], ids=["hook", "run"])
def test_a_source_that_was_cut_off_is_no_source(volume: CliVolume, words: list[str]) -> None:
    """What is missing in it would be deleted from the copy."""
    cut_off(volume)
    volume.configure(read_only=True)

    assert "may be missing the most recent writes" in volume.refusal(65, *words)

    assert volume.is_bare()
    volume.do("open", NAME)
    assert "may be missing the most recent writes" in volume.refusal(65, *words)
    volume.do("close", NAME)
    volume.configure()
    volume.do("run", NAME, "--", "true")
    volume.configure(read_only=True)
    volume.do(*words)
    volume.do("after-backup", NAME)


@pytest.mark.parametrize("size", ["96MiB", "48MiB"])
def test_a_closed_volume_is_resized(volume: CliVolume, size: str) -> None:
    """Larger and smaller; what was stored is whole, and the image has that size."""
    write(volume, "file", "content" * 1000)

    volume.do("resize", NAME, size, "--yes")

    assert int(size.removesuffix("MiB")) << 20 == volume.image.stat().st_size
    assert "content" * 1000 == content_of(volume, "file")
    assert volume.is_bare()


@pytest.mark.parametrize("size", ["+4MiB", "-1MiB"])
def test_a_key_command_that_was_cut_off_is_no_obstacle_to_resizing(volume: CliVolume, size: str) -> None:
    """The change of the header is finished first."""
    assert -9 == volume.start("key", "rotate", NAME, prepare=killed_with_a_new_header).wait().returncode

    volume.do("resize", NAME, size, "--yes")

    volume.do("header", "verify", NAME)


def test_inode_tables_are_whole_where_there_is_no_journal(volume: CliVolume) -> None:
    """As they are made, and after growing into a second and third group of blocks: nobody is warned."""
    assert "" == volume.lukshook("before-backup", NAME).stderr
    volume.do("after-backup", NAME)

    volume.do("resize", NAME, "300MiB", "--yes")

    assert "" == volume.lukshook("before-backup", NAME).stderr
    volume.do("after-backup", NAME)


def test_a_volume_that_was_made_for_root_is_told_of(tmp_path: Path) -> None:
    """An ordinary user is: its inode tables are noise, and e2fsck gives up on that after a kill of fuse2fs."""
    other = CliVolume(tmp_path / "other", "userspace")
    other.folder.mkdir()
    other.prepare()
    assert 0 == other.start("create", NAME, prepare=_make_as_for_root).wait().returncode

    told = other.lukshook("before-backup", NAME).stderr
    assert bool(os.geteuid()) == ("warning: volume offsite was created as root" in told), told
    other.do("after-backup", NAME)


def _make_as_for_root() -> None:
    make = filesystem.make_commands
    filesystem.make_commands = lambda spec, path, **_: make(spec, path)


@pytest.mark.parametrize("decoded", [True, False], ids=["raw", "text"])
def test_cryptsetup_opens_the_image_with_either_form(volume: CliVolume, decoded: bool) -> None:
    """The tutorial's decoded bytes, and the base64 text that qemu wants."""
    text = volume.key.read_text().strip()
    given = subprocess.run(["base64", "--decode"], input=text.encode(), capture_output=True, check=True).stdout
    argv = ["cryptsetup", "open", "--test-passphrase", "--type", "luks1", "--key-file=-", str(volume.image)]

    done = subprocess.run(argv, input=given if decoded else text.encode(), capture_output=True, check=False)

    assert 0 == done.returncode, done.stderr


def test_options_of_run_stand_before_the_command(volume: CliVolume) -> None:
    """`--soft` may stand behind the name; anything else there is a slip, not a program."""
    assert "" == volume.do("run", NAME, "--soft", "--", "true")
    assert "has no option --sof" in volume.refusal(64, "run", NAME, "--sof", "--", "true")


def test_the_userspace_engine_does_not_pretend_to_compact(volume: CliVolume) -> None:
    """qemu swallows it."""
    assert "cannot be compacted" in volume.refusal(69, "compact", NAME, "--yes")

"""A volume on real dm-crypt: what is refused and how, and what a host can count on."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.options import names
from lukshook.system import platforms
from support.command_faults import Fault
from support.volume import NAME, CliVolume, closing


@pytest.fixture
def fresh(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that has everything but an image."""
    volume = CliVolume(tmp_path, template.engine)
    volume.prepare()
    yield from closing(volume)


def test_a_backup_is_there_at_the_next_opening(volume: CliVolume) -> None:
    """Before and after say nothing; what was written between is there again, and was not there between."""
    assert "" == volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    assert "" == volume.do("after-backup", NAME)
    assert volume.is_bare()

    volume.do("before-backup", NAME)
    assert "content" == (volume.data / "file").read_text()
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_the_longest_name_there_can_be(fresh: CliVolume) -> None:
    """The kernel keeps all of the mapping's uuid; a name with one letter more is refused before anything is made."""
    longest = "x" * names.LONGEST_NAME
    text = fresh.config.read_text()
    fresh.config.write_text(text.replace(NAME, longest))
    fresh.do("create", longest)
    fresh.do("before-backup", longest)
    assert [f"lukshook-{longest}"] == fresh.mappings()
    fresh.do("after-backup", longest)
    assert fresh.is_bare()

    fresh.config.write_text(text.replace(NAME, longest + "x"))
    assert f"a name has up to {len(longest)}" in fresh.refusal(78, "before-backup", longest + "x")


def test_before_and_after_come_as_often_as_they_like(volume: CliVolume) -> None:
    """A host may call before twice, after twice, and after without before."""
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    volume.do("before-backup", NAME)
    assert volume.is_open()

    volume.do("after-backup", NAME)
    assert volume.is_bare()
    volume.do("after-backup", NAME)
    assert volume.is_bare()


def test_after_a_failed_before_all_is_closed(volume: CliVolume) -> None:
    """A host that goes on to its after hook finds nothing to do."""
    volume.set_key(bytes(32))
    volume.refusal(77, "before-backup", NAME)
    assert volume.is_bare()

    volume.do("after-backup", NAME, "--failed")


def test_a_wrong_key_is_told(volume: CliVolume) -> None:
    """77, nothing left open, and the key stands nowhere in the message."""
    volume.set_key(b"k" * 32)

    line = volume.refusal(77, "before-backup", NAME)

    assert "key" in line
    assert NAME in line
    assert base64.b64encode(b"k" * 32).decode() not in line
    assert volume.is_bare()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_told_before_anything_is_opened(volume: CliVolume, length: int) -> None:
    """77: what is not 32 bytes is no key."""
    volume.set_key(b"k" * length)

    volume.refusal(77, "before-backup", NAME)

    assert volume.is_bare()


@pytest.mark.parametrize("key", [b"\n" + b"k" * 31, b"k" * 15 + b"\n" + b"k" * 16, b"k" * 31 + b"\n", b"\0" * 32])
def test_any_32_bytes_are_a_key(fresh: CliVolume, key: bytes) -> None:
    """A newline or zero in the decoded key ends nothing: a tool that took it for an end would open with less."""
    fresh.set_key(key)
    fresh.do("create", NAME)
    fresh.do("before-backup", NAME)
    fresh.do("after-backup", NAME)

    fresh.set_key(key[:16].split(b"\n")[0].ljust(32, b"x"))
    fresh.refusal(77, "before-backup", NAME)


def test_a_missing_image_is_told(volume: CliVolume) -> None:
    """69: come again later."""
    volume.image.unlink()

    assert "is not there" in volume.refusal(69, "before-backup", NAME)
    assert volume.is_bare()


def test_an_absent_store_is_told(volume: CliVolume) -> None:
    """69, and the folder is named as missing."""
    volume.image.unlink()
    volume.image.parent.rmdir()

    assert "and its folder too" in volume.refusal(69, "before-backup", NAME)


def test_a_link_for_an_image_is_refused(volume: CliVolume) -> None:
    """78: a store could point it to any file of ours."""
    volume.image.rename(volume.image.with_suffix(".real"))
    volume.image.symlink_to(volume.image.with_suffix(".real"))

    assert "symbolic link" in volume.refusal(78, "before-backup", NAME)


def test_a_missing_mount_point_is_told(volume: CliVolume) -> None:
    """78, with the command that makes it."""
    volume.remove()
    volume.mountpoint.rmdir()

    assert "does not exist" in volume.refusal(78, "before-backup", NAME)
    assert [] == volume.standing()
    volume.mountpoint.mkdir()


def test_a_full_mount_point_is_told(volume: CliVolume) -> None:
    """78: what lies there may be an unencrypted backup; it is not covered up."""
    volume.remove()
    (volume.mountpoint / "leak").touch()

    assert "is not empty" in volume.refusal(78, "before-backup", NAME)
    assert [] == volume.standing()


def test_a_link_for_a_mount_point_is_refused(volume: CliVolume) -> None:
    """78."""
    volume.remove()
    volume.mountpoint.rmdir()
    volume.mountpoint.symlink_to(volume.folder / "elsewhere")

    assert "symbolic link" in volume.refusal(78, "before-backup", NAME)
    volume.mountpoint.unlink()
    volume.mountpoint.mkdir()


def test_an_unknown_volume_is_told(volume: CliVolume) -> None:
    """66, and the one that may have been meant."""
    done = volume.lukshook("before-backup", "offsit")

    assert 66 == done.returncode
    assert "did you mean offsite?" in done.stderr


def test_three_mistakes_are_told_at_once(volume: CliVolume) -> None:
    """78, each with its address."""
    volume.configure(size="500G", fill="sparce", mount_point="/mnt")

    line = volume.refusal(78, "before-backup", NAME)

    assert "3 problems" in line
    for address in ("size", "fill", "mount_point"):
        assert f"volumes.offsite.{address}: " in line


def test_a_foreign_mapping_of_our_name_is_left_alone(volume: CliVolume) -> None:
    """69: it is not ours, so it is neither used nor closed."""
    name = f"lukshook-{NAME}"
    subprocess.run(["dmsetup", "create", name, "--table", "0 8 zero"], check=True)
    try:
        assert "lukshook did not create it" in volume.refusal(69, "before-backup", NAME)
        assert volume.loops() == []
        assert [name] == volume.mappings()
    finally:
        subprocess.run(["dmsetup", "remove", name], check=True)
    volume.do("before-backup", NAME)


def test_a_read_only_opening_changes_no_byte(volume: CliVolume) -> None:
    """For looking and restoring, also when the journal of a cut-off run is still to be replayed."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)
    before = volume.digest()

    volume.do("open", NAME, "--read-only")
    assert "content" == (volume.data / "file").read_text()
    with pytest.raises(OSError, match="Read-only"):
        (volume.data / "other").touch()
    volume.do("close", NAME)

    assert before == volume.digest()


def test_the_tutorials_commands_open_what_create_made(volume: CliVolume) -> None:
    """Nothing but cryptsetup and mount is needed to get at the data."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)
    lines = f"""set -e
        base64 --decode {volume.key} | cryptsetup luksOpen --key-file=- {volume.image} tutorial
        mount /dev/mapper/tutorial {volume.mountpoint}
        cat {volume.data}/file
        umount {volume.mountpoint}
        cryptsetup luksClose tutorial"""

    done = subprocess.run(["sh", "-c", lines], check=True, capture_output=True, text=True)

    assert "content" == done.stdout


def test_the_key_is_seen_nowhere(fresh: CliVolume) -> None:
    """Not in the arguments or environment of any process while it is used, nor in any file, message or log."""
    key = os.urandom(32)
    fresh.set_key(key)
    forms = {key, base64.b64encode(key), base64.b64encode(key).rstrip(b"="), key.hex().encode()}
    seen: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(forms, seen, done))
    watcher.start()
    fresh.key.rename(fresh.folder / "kept")
    fresh.configure(key=f"command:cat {fresh.folder}/kept")
    try:
        messages = [
            fresh.lukshook("-vv", *arguments)
            for arguments in (("create", NAME), ("before-backup", NAME), ("after-backup", NAME))
        ]
    finally:
        done.set()
        watcher.join()

    assert [0, 0, 0] == [message.returncode for message in messages], messages
    assert set() == seen
    written = [(message.stdout + message.stderr).encode() for message in messages]
    written += [file.read_bytes() for file in fresh.folder.rglob("*") if file.is_file() and file.name != "kept"]
    assert not [text for text in written for form in forms if form in text]


def watch(forms: set[bytes], seen: set[str], done: threading.Event) -> None:
    """Look at every process there is, again and again."""
    while not done.wait(0.005):
        for entry in Path("/proc").glob("[0-9]*"):
            for part in ("cmdline", "environ"):
                try:
                    text = (entry / part).read_bytes()
                except OSError:
                    continue
                seen.update(f"{entry.name} {part}" for form in forms if form in text)


def test_a_missing_tool_is_told_with_its_package(volume: CliVolume, tmp_path: Path) -> None:
    """69: the mount namespace of this run has an empty folder where cryptsetup lies."""
    hidden = tmp_path / "empty"
    hidden.touch()
    found = [f"{folder}/cryptsetup" for folder in ("/usr/sbin", "/sbin") if Path(folder, "cryptsetup").exists()]
    hide = "; ".join(f"mount --bind {hidden} {path}" for path in dict.fromkeys(os.path.realpath(p) for p in found))
    argv = ["unshare", "--mount", "sh", "-c", f'{hide}; exec "$@"', "sh"]

    done = subprocess.run(
        [*argv, sys.executable, "-m", "lukshook", "before-backup", NAME],
        env=volume.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 69 == done.returncode, done.stderr
    hint = platforms.install_hint("cryptsetup", platforms.this_system())
    assert f"lukshook: cryptsetup is not installed\n  hint: {hint}\n" == done.stderr
    assert [] == volume.standing()


def test_the_hook_opens_what_the_tutorials_commands_made(fresh: CliVolume) -> None:
    """Raw 32-byte key, cryptsetup's own defaults but for the cost of the key derivation."""
    fast = "--pbkdf-memory=1024 --pbkdf-parallel=1 --pbkdf-force-iterations=4"
    lines = f"""set -e
        dd if=/dev/zero of={fresh.image} bs=1M count=64 status=none
        base64 --decode {fresh.key} | cryptsetup luksFormat -q {fast} {fresh.image} -
        base64 --decode {fresh.key} | cryptsetup luksOpen --key-file=- {fresh.image} tutorial
        mkfs.ext4 -q /dev/mapper/tutorial
        cryptsetup luksClose tutorial"""
    subprocess.run(["sh", "-c", lines], check=True)

    fresh.refusal(65, "before-backup", NAME)
    fresh.do("trust", NAME)
    fresh.do("before-backup", NAME)
    assert fresh.is_open()
    fresh.do("after-backup", NAME)


def test_a_lukshook_resize_that_was_cut_off_is_named(volume: CliVolume) -> None:
    """69 with what to do; the same command goes on, and then the backup works."""
    arguments = ("lukshook-resize", str(volume.image), "68MiB", "--key", f"file:{volume.key}")
    log = volume.folder / "steps"
    assert -9 == volume.start(*arguments, prepare=Fault(log, "KILL to us after", 1)).wait().returncode

    assert "another lukshook" in volume.refusal(69, "before-backup", NAME)

    volume.do(*arguments)
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)

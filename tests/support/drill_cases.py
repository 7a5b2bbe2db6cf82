"""Drills: what they find, and that they change nothing.

For any engine: a test file imports from here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lukshook.system import kernel
from support.configuration import write_key
from support.copy_cases import backup, digest, place, snapshot, status
from support.volume import NAME, CliVolume

MIB = 1 << 20
#: What a drill may change.
NOTED = {"last_drill", "drill_result", "drill_keys", "drill_files", "drill_compared", "drill_bytes"}


def known(volume: CliVolume) -> dict[str, Any]:
    """What this host knows of the volume, but for its drills."""
    found: dict[str, Any] = json.loads((volume.state_folder / f"{NAME}.json").read_text())
    return {name: value for name, value in found.items() if name not in NOTED}


def source(volume: CliVolume) -> Path:
    """A folder that was backed up, with its times."""
    folder = volume.folder / "home"
    (folder / "deep/er").mkdir(parents=True)
    for number in range(5):
        (folder / f"deep/er/file{number}").write_bytes(os.urandom(3000 + number))
    (folder / "large").write_bytes(os.urandom(MIB))
    (folder / "link").symlink_to("large")
    volume.do("before-backup", NAME)
    subprocess.run(["cp", "-R", "--preserve=mode,timestamps", folder, volume.data / "home"], check=True)
    volume.do("after-backup", NAME)
    return folder


def with_drill(volume: CliVolume, table: str, **options: object) -> None:
    """Configure the volume with that table for drills."""
    volume.configure(**options)
    with volume.config.open("a") as file:
        file.write(f"[volumes.{NAME}.drill]\n{table}\n")


def test_a_healthy_image_passes_and_stays_as_it_is(volume: CliVolume) -> None:
    """0; not one byte of image, header backup, key or knowledge changes; the outcome is noted."""
    folder = source(volume)
    header = volume.state_folder / f"{NAME}.header"
    before = digest(volume.image), digest(header), known(volume), set(volume.state_folder.iterdir())

    said = volume.do("drill", NAME, "--source", f"{folder}:data/home")

    assert before == (digest(volume.image), digest(header), known(volume), set(volume.state_folder.iterdir()))
    assert [] == volume.standing()
    assert "passed" in said
    assert "as at the last close" in said
    facts = status(volume)
    assert ("passed", 1, 6, 6) == tuple(facts[f"drill_{what}"] for what in ("result", "keys", "files", "compared"))
    assert time.time() - 3600 < facts["last_drill"] <= time.time()
    backup(volume, "file", "content")  # a drill is in nobody's way


def test_files_are_read_where_nothing_else_is_asked_for(volume: CliVolume) -> None:
    """As many as there are, or as were asked for."""
    source(volume)
    assert "6 of 6 read" in volume.do("drill", NAME)
    assert "2 of 6 read" in volume.do("drill", NAME, "--files", "2")


def test_a_missing_header_backup_is_found(volume: CliVolume) -> None:
    """65; also one that is no header, or that of another volume."""
    backup(volume, "file", "content")
    header = volume.state_folder / f"{NAME}.header"
    kept = header.rename(volume.folder / "kept")

    assert "the header backup" in refused(volume)
    header.write_text("nothing")
    assert "is not a header backup" in refused(volume)
    volume.do("drill", NAME, "--header", str(kept))
    assert [] == volume.standing()


def refused(volume: CliVolume, *arguments: str) -> str:
    """A drill finds something: 65; the line that says what."""
    done = volume.lukshook("drill", NAME, *arguments)
    assert 65 == done.returncode, (done.stdout, done.stderr)
    assert "failed" in done.stdout
    assert [] == volume.standing()
    return next(line for line in done.stderr.splitlines() if line.startswith("lukshook: "))


def test_a_wrong_second_key_is_found(volume: CliVolume) -> None:
    """65, although the first one opens it; with the key added, or left out, it passes."""
    backup(volume, "file", "content")
    second = volume.folder / "second"
    write_key(second, os.urandom(32))
    volume.configure(key=[f"file:{volume.key}", f"file:{second}"])

    line = refused(volume)
    assert not (volume.run_folder / f"{NAME}.drill").exists()
    assert f"the key from file:{second} does not open the header backup" in line
    assert ("failed", None, 1) == tuple(status(volume)[f] for f in ("drill_result", "last_drill", "drill_keys"))

    volume.do("drill", NAME, "--key", f"file:{volume.key}")
    volume.do("key", "add", NAME, "--key", f"file:{second}")
    volume.do("drill", NAME)
    assert 2 == status(volume)["drill_keys"]


def test_shares_of_a_key_are_tried_like_any_other_key(volume: CliVolume) -> None:
    """Two sheets as they were printed pass; those of a split that was revoked do not, and one alone is no drill."""
    pytest.importorskip("shamir_mnemonic")
    backup(volume, "file", "content")
    first, second, third = volume.do("key", "split", NAME, "2/3").split("\f")
    files = [volume.folder / name for name in ("anna", "ben", "carl")]
    for file, sheet in zip(files, (first, second, third), strict=True):
        file.touch(mode=0o600)
        file.write_text(sheet)

    said = volume.do("drill", NAME, "--key", f"shares:{files[0]} {files[2]}")
    assert f"keys    shares:{files[0]}" in said
    assert 77 == volume.lukshook("drill", NAME, "--key", f"shares:{files[1]}").returncode
    for number in re.findall(r"--slot (\d+)", re.findall("Revoked by: .*", first)[0]):
        volume.do("key", "remove", NAME, "--slot", number)
    assert "does not open the header backup" in refused(volume, "--key", f"shares:{files[0]} {files[2]}")


def test_a_missing_second_key_is_found(volume: CliVolume) -> None:
    """65: what the sheet names has to be there."""
    volume.configure(key=[f"file:{volume.key}", f"file:{volume.folder}/gone"])
    assert f"there is no key from file:{volume.folder}/gone" in refused(volume)


def test_one_damaged_file_is_found(volume: CliVolume) -> None:
    """65: 4 KiB of ciphertext were overwritten in the middle of it. Whole files beside it are no reason to pass."""
    folder = source(volume)
    before = volume.image.read_bytes()
    at = place_of_content(volume, folder / "large")
    with volume.image.open("r+b") as image:
        image.seek(at)
        image.write(os.urandom(4096))
    assert before != volume.image.read_bytes()

    assert "large in the volume differs from" in refused(volume, "--source", f"{folder}:data/home")


def place_of_content(volume: CliVolume, source: Path) -> int:
    """Where in the image a part of the backed-up file *source* lies: where it changes if the file is written again."""
    before = volume.image.read_bytes()
    backed_up = volume.data / "home" / source.name
    kept = source.stat()
    volume.do("before-backup", NAME)
    with backed_up.open("r+b") as file:
        file.write(os.urandom(MIB))  # in place: the same blocks
    volume.do("after-backup", NAME)
    between = volume.image.read_bytes()
    volume.do("before-backup", NAME)
    with backed_up.open("r+b") as file:
        file.write(source.read_bytes())
    os.utime(backed_up, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    volume.do("after-backup", NAME)
    run = 64 * 1024
    changed = (at for at in range(0, len(before), run) if all_differ(before, between, at, run))
    return next(changed) + run // 2


def all_differ(one: bytes, other: bytes, at: int, length: int) -> bool:
    """Whether each 4 KiB of that part differ: so only a file's content does."""
    return all(one[i : i + 4096] != other[i : i + 4096] for i in range(at, at + length, 4096))


def test_a_rolled_back_image_is_found(volume: CliVolume) -> None:
    """65: later backups are not in it. The same file as a copy by name is only old."""
    backup(volume, "file", "content")
    old = snapshot(volume)
    backup(volume, "file", "more")
    shutil.copy(old, volume.image)

    assert "is older than when this host closed it last" in refused(volume)
    said = volume.do("drill", NAME, "--image", str(old))
    assert "older than at the last close" in said


def test_a_replica_that_stopped_is_found(volume: CliVolume) -> None:
    """65 where it was written too long ago by its own clock, which nobody without the key can set."""
    backup(volume, "file", "content")
    replica = snapshot(volume)
    volume.do("drill", NAME, "--image", str(replica), "--newer-than", "1d")
    later = f"{time.time() + 21 * 86400:.0f}"

    done = volume.start("drill", NAME, "--image", str(replica), "--newer-than", "7d", prepare=at_time(later)).wait()

    assert 65 == done.returncode, done.stderr
    assert "was last written" in done.stderr
    assert "too long ago" in done.stderr


def at_time(seconds: str) -> Callable[[], None]:
    """As the `prepare` of a lukshook: its clock shows that time."""

    def prepare() -> None:
        setattr(time, "time", lambda: float(seconds))  # noqa: B010 - mypy has no other way to say it

    return prepare


def test_an_image_without_its_header_passes(volume: CliVolume) -> None:
    """The header backup is what is tried."""
    source(volume)
    with volume.image.open("r+b") as image:
        image.write(bytes(64 * 1024))
    volume.do("drill", NAME)


def test_a_header_backup_from_before_a_key_was_changed_is_found(volume: CliVolume) -> None:
    """65: it would accept the removed key again, and not the new one."""
    backup(volume, "file", "content")
    shutil.copy(volume.state_folder / f"{NAME}.header", old := volume.folder / "old")
    volume.do("key", "rotate", NAME)

    assert "is not the last known header" in refused(volume, "--header", str(old))
    volume.do("drill", NAME)


def test_an_open_volume_is_drilled_by_a_copy(volume: CliVolume) -> None:
    """69, or 75 on request, for its own image; a backup that runs does not notice a drill of a snapshot."""
    backup(volume, "file", "content")
    copy = snapshot(volume)
    volume.do("before-backup", NAME)
    assert "is open" in volume.refusal(69, "drill", NAME)
    assert 75 == volume.lukshook("drill", NAME, "--soft").returncode

    with_drill(volume, f'image = "{copy}"')
    volume.do("drill", NAME)
    assert volume.is_open()
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)

    assert "passed" == status(volume)["drill_result"]
    assert "done" == status(volume)["last_result"]


def test_the_configured_check_decides(volume: CliVolume) -> None:
    """It gets the folder; its exit status is the outcome; no key is in its environment."""
    source(volume)
    text = volume.key.read_text().strip()
    seen = volume.folder / "seen"
    check = f'["sh", "-c", "env >{seen}; ls $1/data/home >>{seen}; exec test -f $1/data/home/large", "sh", "{{}}"]'
    with_drill(volume, f"check = {check}", key="env:KEY_TEXT")

    volume.do("drill", NAME, KEY_TEXT=text)
    assert "large" in seen.read_text().split()
    assert text not in seen.read_text()
    assert "KEY_TEXT" not in seen.read_text()

    with_drill(volume, 'check = ["test", "-f"]')  # the folder is added
    assert "the check test exited with 1" in refused(volume)


def test_files_that_changed_since_are_no_fault(volume: CliVolume) -> None:
    """They are not compared; if none is left to compare, nothing is proven."""
    folder = source(volume)
    (folder / "large").write_bytes(b"new")
    said = volume.do("drill", NAME, "--source", f"{folder}:data/home")
    assert "5 of them are as in their source" in said

    (empty := volume.folder / "empty").mkdir()
    assert "nothing can be compared" in refused(volume, "--source", f"{empty}:data/home")
    assert "there is no folder data/gone in the volume" in refused(volume, "--source", f"{folder}:data/gone")


def test_a_place_behind_a_link_is_not_compared(volume: CliVolume) -> None:
    """The sources would be compared with themselves."""
    folder = source(volume)
    volume.do("before-backup", NAME)
    (volume.data / "link").symlink_to(folder)
    volume.do("after-backup", NAME)
    assert "leads elsewhere through a link" in refused(volume, "--source", f"{folder}:data/link")


def test_a_backup_goes_before_a_drill(volume: CliVolume) -> None:
    """It ends a drill of the same image, which leaves nothing, and notes nothing."""
    began = volume.folder / "began"
    with_drill(volume, f'check = ["sh", "-c", "touch {began}; exec sleep 1000", "sh"]')
    drill = volume.start("drill", NAME)
    assert kernel.wait_until(began.exists, 60.0)

    done = volume.lukshook("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)

    assert 0 == done.returncode, done.stderr
    assert "ending lukshook drill" in done.stderr
    assert 143 == drill.wait().returncode
    assert (None, "done") == (status(volume)["drill_result"], status(volume)["last_result"])
    assert [] == volume.standing()


def test_a_drill_that_was_killed_is_in_nobodys_way(volume: CliVolume) -> None:
    """The next backup closes what it left, and removes its folder."""
    began = volume.folder / "began"
    with_drill(volume, f'check = ["sh", "-c", "cd $1; echo $$ >{began}; exec sleep 1000", "sh"]')
    drill = volume.start("drill", NAME)
    assert kernel.wait_until(lambda: began.exists() and began.read_text().endswith("\n"), 60.0)
    drill.signal(signal.SIGKILL)
    assert -9 == drill.wait().returncode
    assert [] != volume.standing()

    backup(volume, "file", "content")  # which ends the check that still works in there

    assert kernel.started(int(began.read_text())) is None
    assert [] == volume.standing()
    assert [] == status(volume)["open_copies"]
    assert [] == list(volume.run_folder.glob("*.drill"))


def test_a_dry_run_of_a_drill_changes_nothing(volume: CliVolume) -> None:
    """It says what it would do."""
    said = volume.do("--dry-run", "drill", NAME, "--files", "7")
    assert re.search("# reads 7 files of", said)
    assert None is status(volume)["drill_result"]
    assert [] == volume.standing()


@pytest.mark.parametrize(
    "options",
    [
        *(("--source", "home"), ("--source", "/home:../x"), ("--newer-than", "x"), ("--key", "nothing")),
        *(("--source", "/not/there:data"), ("--source", "/etc/passwd:data"), ("--files", "0")),
        *(("--header", "/not/there"), ("--header", "/etc"), ("--image", "/not/there"), ("--key", "file:/not/there")),
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_refused(volume: CliVolume, options: tuple[str, ...]) -> None:
    """A mistake in the command line shows nothing of the volume: it is no drill, in no state and no metric."""
    metrics = volume.folder / "lukshook.prom"
    volume.config.write_text(f'metrics = "{metrics}"\n{volume.config.read_text()}')
    backup(volume, "file", "content")

    assert volume.lukshook("drill", NAME, *options).returncode in (64, 69, 78)

    assert [] == volume.standing()
    assert None is status(volume)["drill_result"]
    assert "drill" not in metrics.read_text()


def test_a_configured_source_that_is_gone_is_no_drill(volume: CliVolume) -> None:
    """78: the configuration is wrong, or a disk is not mounted."""
    backup(volume, "file", "content")
    with_drill(volume, 'sources = ["/not/there:data"]')
    assert "there is no folder /not/there on this machine" in volume.refusal(78, "drill", NAME)
    assert None is status(volume)["drill_result"]


def test_a_volume_without_content_proves_nothing(volume: CliVolume) -> None:
    """65: a restore that gives nothing back is none, whatever header and keys are."""
    assert "nothing shows that volume" in refused(volume)
    backup(volume, "empty", "")
    assert "no file in the volume has any content" in refused(volume)
    (folder := volume.folder / "home").mkdir()
    shutil.copy2(volume.config, folder / "empty")
    (folder / "empty").write_text("")
    assert "nothing can be compared" in refused(volume, "--source", f"{folder}:data")
    assert ("failed", None) == (status(volume)["drill_result"], status(volume)["last_drill"])

    backup(volume, "file", "content")
    assert "1 of 1 read" in volume.do("drill", NAME)


def test_an_image_by_another_name_is_still_the_image(volume: CliVolume) -> None:
    """65 where it was rolled back, through links, `.` and `..`, a bind mount, an overlay, a loop device."""
    backup(volume, "file", "content")
    old = snapshot(volume)
    backup(volume, "file", "more")
    shutil.copy(old, volume.image)
    folder, name = volume.image.parent, volume.image.name
    (link := volume.folder / "link").symlink_to(folder)
    (hard := folder / "hard.img").hardlink_to(volume.image)

    for path in (link / name, f"{folder}/./../{folder.name}/{name}", hard):
        assert "is older than when this host closed it last" in refused(volume, "--image", str(path))
    if os.geteuid() == 0:
        for mounting in (["--bind", str(folder)], overlay(volume)):
            with mounted(volume, mounting) as bound:
                check_old(volume, bound / name)
    if volume.engine == "kernel":  # the other does not open devices
        with looped(volume.image) as node:
            check_old(volume, Path(node))


def check_old(volume: CliVolume, image: Path) -> None:
    """The drill of *image* says that it is old."""
    done = volume.lukshook("drill", NAME, "--image", str(image))
    assert (65, True) == (done.returncode, "is older than when" in done.stderr), (image, done)


def test_a_copy_in_an_overlay_is_a_copy(volume: CliVolume) -> None:
    """What was written there is not in the volume's own image: it may be old."""
    if os.geteuid() != 0:
        return
    backup(volume, "file", "content")
    old = snapshot(volume)
    with mounted(volume, overlay(volume)) as place:
        backup(volume, "file", "more")
        shutil.copy(old, place / volume.image.name)
        assert "1 of 1 read" in volume.do("drill", NAME, "--image", str(place / volume.image.name))


def overlay(volume: CliVolume) -> list[str]:
    """How an overlay is mounted that shows the folder of the image."""
    upper, work = volume.folder / "upper layer", volume.folder / "work"
    for one in (upper, work):
        one.mkdir(exist_ok=True)
    options = f"lowerdir={volume.image.parent},upperdir={upper},workdir={work}"
    return ["-t", "overlay", "-o", options, "overlay"]


@contextmanager
def mounted(volume: CliVolume, how: list[str]) -> Iterator[Path]:
    """A folder at which that is mounted."""
    (at := volume.folder / "bound").mkdir(exist_ok=True)
    subprocess.run(["mount", *how, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@contextmanager
def looped(image: Path) -> Iterator[str]:
    """A loop device on *image*."""
    command = ["losetup", "--find", "--show", "--read-only", str(image)]
    node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield node
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)


def test_a_drill_leaves_the_line_of_the_last_backup(volume: CliVolume) -> None:
    """The metrics have both."""
    metrics = volume.folder / "lukshook.prom"
    volume.config.write_text(f'metrics = "{metrics}"\n{volume.config.read_text()}')
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME, "--failed")

    volume.do("drill", NAME)

    text = metrics.read_text()
    assert f'lukshook_last_failed{{volume="{NAME}"}} 1' in text
    assert f'lukshook_last_drill_failed{{volume="{NAME}"}} 0' in text
    assert "lukshook_last_drill_timestamp_seconds" in text


def test_an_image_that_a_person_looks_at_is_not_drilled(volume: CliVolume) -> None:
    """69: it is open already."""
    backup(volume, "file", "content")
    volume.do("open", NAME, "--at", str(place(volume)))
    volume.refusal(69, "drill", NAME)
    volume.do("close", NAME, "--at", str(place(volume)))
    volume.do("drill", NAME)

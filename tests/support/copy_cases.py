"""Another copy of a volume opened beside it: a snapshot, a replica, a restored file. Read-only, nothing is noted.

For any engine: a test file imports from here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.command_faults import KILLS, Fault
from support.volume import NAME, CliVolume


def backup(volume: CliVolume, name: str, content: str) -> None:
    """A backup of one file."""
    volume.do("before-backup", NAME)
    (volume.data / name).write_text(content)
    volume.do("after-backup", NAME)


def snapshot(volume: CliVolume, name: str = "snapshot.img") -> Path:
    """A copy of the image as it is now."""
    copy = volume.image.with_name(name)
    subprocess.run(["cp", "--sparse=always", volume.image, copy], check=True)
    return copy


def place(volume: CliVolume, name: str = "restore") -> Path:
    return volume.folder / name


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def kept(volume: CliVolume) -> dict[str, bytes]:
    """All that this host keeps of the volume."""
    return {file.name: file.read_bytes() for file in volume.state_folder.iterdir()}


def status(volume: CliVolume) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(volume.do("status", NAME, "--json"))
    return found[0]


def test_an_older_copy_is_shown_and_nothing_changes(volume: CliVolume) -> None:
    """Its files are as they were then, it says how much older it is, and neither it nor what is known changes."""
    backup(volume, "file", "old")
    copy = snapshot(volume)
    backup(volume, "file", "new")
    before, known = digest(copy), kept(volume)

    said = volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)))
    content = (place(volume) / "data/file").read_text()
    with pytest.raises(OSError, match=r"Read-only|denied"):
        (place(volume) / "data/file").write_text("changed")
    volume.do("close", NAME, "--at", str(place(volume)))

    assert "old" == content
    assert "older than at the last close" in said
    assert (before, known) == (digest(copy), kept(volume))
    assert [] == volume.standing()
    place(volume).rmdir()  # no guard keeps it


def test_a_copy_is_open_beside_the_volume(volume: CliVolume) -> None:
    """While a backup runs; `status` shows both, and closing one leaves the other."""
    copy = snapshot(volume)
    volume.do("before-backup", NAME)

    volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)))
    both = status(volume)
    volume.do("after-backup", NAME)
    one = status(volume)
    volume.do("close", NAME, "--at", str(place(volume)))

    assert ("open", "closed") == (both["state"], one["state"])
    shown = [(found["state"], found["image"], found["mountpoint"]) for found in both["open_copies"]]
    assert [("open read-only", str(copy), str(place(volume)))] == shown
    assert both["open_copies"] == one["open_copies"]
    assert [] == status(volume)["open_copies"]
    assert [] == volume.standing()


def test_two_copies_are_open_at_once(volume: CliVolume) -> None:
    """Each at its own folder; a folder takes one."""
    first, second = snapshot(volume, "one.img"), snapshot(volume, "two.img")
    volume.do("open", NAME, "--image", str(first), "--at", str(place(volume, "one")))
    volume.do("open", NAME, "--image", str(second), "--at", str(place(volume, "two")))

    refused = volume.refusal(69, "open", NAME, "--image", str(second), "--at", str(place(volume, "one")))
    assert f"is open read-only as a copy of volume {NAME}, at {place(volume, 'one')}" in refused

    for name in ("one", "two"):
        volume.do("close", NAME, "--at", str(place(volume, name)))
    assert [] == volume.standing()


def test_an_image_in_use_is_not_opened_twice(volume: CliVolume) -> None:
    """69 either way: by the volume, or by a copy of it that a person has open."""
    volume.do("before-backup", NAME)
    assert "is open, and so is its image" in volume.refusal(69, "open", NAME, "--at", str(place(volume)))
    volume.do("after-backup", NAME)

    volume.do("open", NAME, "--at", str(place(volume)))
    assert "is open read-only as a copy" in volume.refusal(69, "before-backup", NAME)
    volume.do("after-backup", NAME)  # which closes nothing of ours
    assert (place(volume) / "data").is_dir()
    volume.do("close", NAME, "--at", str(place(volume)))
    backup(volume, "file", "content")


def test_another_volume_is_no_copy(volume: CliVolume, template: CliVolume, tmp_path: Path) -> None:
    """65, before the key is read."""
    other = CliVolume(tmp_path / "other", volume.engine)
    other.prepare()
    other.do("create", NAME)
    shutil.copy(other.image, copy := volume.image.with_name("other.img"))
    volume.key.unlink()

    said = volume.refusal(65, "open", NAME, "--image", str(copy), "--at", str(place(volume)))

    assert "is not a copy of volume" in said
    assert [] == volume.standing()
    other.remove()


def test_a_copy_from_before_a_key_was_changed_opens(volume: CliVolume) -> None:
    """Its header has another key slot, for the same volume key."""
    copy, old = snapshot(volume), volume.key.read_bytes()
    volume.do("key", "rotate", NAME)
    new = volume.key.read_bytes()
    volume.key.write_bytes(old)

    volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)))
    volume.do("close", NAME, "--at", str(place(volume)))

    assert old != new


def test_a_copy_without_its_header_opens_with_the_backup(volume: CliVolume) -> None:
    """The header backup is used in its place, and the copy stays as it is."""
    backup(volume, "file", "content")
    copy = snapshot(volume)
    with copy.open("r+b") as file:
        file.write(bytes(1 << 20))
    before = digest(copy)
    header = volume.state_folder / f"{NAME}.header"

    assert "LUKS" in volume.refusal(65, "open", NAME, "--image", str(copy), "--at", str(place(volume)))
    volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)), "--header", str(header))
    content = (place(volume) / "data/file").read_text()
    volume.do("close", NAME, "--at", str(place(volume)))

    assert "content" == content
    assert before == digest(copy)


def test_a_wrong_key_leaves_nothing_open(volume: CliVolume) -> None:
    """77, with the image's own header and with the backup."""
    copy = snapshot(volume)
    volume.set_key(os.urandom(32))

    for header in ((), ("--header", str(volume.state_folder / f"{NAME}.header"))):
        volume.refusal(77, "open", NAME, "--image", str(copy), "--at", str(place(volume)), *header)
        assert [] == volume.standing()
        assert [] == status(volume)["open_copies"]


def test_a_copy_of_an_open_volume_warns(volume: CliVolume) -> None:
    """A snapshot that was made while the volume was open may show less than was written."""
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    subprocess.run(["sync", "-f", volume.data], check=True)
    copy = snapshot(volume)
    volume.do("after-backup", NAME)

    done = volume.lukshook("open", NAME, "--image", str(copy), "--at", str(place(volume)))
    volume.do("close", NAME, "--at", str(place(volume)))

    assert 0 == done.returncode, done.stderr
    assert "may be missing the most recent writes" in done.stderr


def test_an_image_of_a_link_or_folder_is_refused(volume: CliVolume) -> None:
    """As the volume's own."""
    link = volume.image.with_name("link")
    link.symlink_to(snapshot(volume))
    for path in (link, volume.folder):
        volume.refusal(78, "open", NAME, "--image", str(path), "--at", str(place(volume)))


def test_a_folder_with_files_is_refused(volume: CliVolume) -> None:
    """78: nothing is hidden below a mount."""
    place(volume).mkdir()
    (place(volume) / "file").touch()
    assert "is not empty" in volume.refusal(78, "open", NAME, "--at", str(place(volume)))


def test_a_copy_does_not_take_the_mount_point(volume: CliVolume) -> None:
    """64: no backup could be made meanwhile."""
    for folder in (volume.mountpoint, volume.mountpoint / "old"):
        volume.refusal(64, "open", NAME, "--image", str(snapshot(volume)), "--at", str(folder))


def test_options_of_a_copy_need_a_folder(volume: CliVolume) -> None:
    """64, instead of opening the volume itself."""
    done = volume.lukshook("open", NAME, "--image", str(volume.image))
    assert (64, []) == (done.returncode, volume.standing())


def test_closing_what_is_not_open_is_fine(volume: CliVolume) -> None:
    """Any number of times, as for the volume itself."""
    for _ in range(2):
        volume.do("close", NAME, "--at", str(place(volume)))


@pytest.mark.parametrize("left", ["nothing", "another image", "a folder"])
def test_a_copy_that_was_removed_meanwhile_closes(volume: CliVolume, left: str) -> None:
    """0: nothing was written, so nothing is lost. Others prune versions: a provider, a command of the user."""
    backup(volume, "file", "content")
    copy = snapshot(volume)
    volume.do("open", NAME, "--image", str(copy), "--at", str(place(volume)))
    copy.unlink()
    if left == "another image":
        snapshot(volume)
    elif left == "a folder":
        copy.mkdir()
    assert "content" == (place(volume) / "data/file").read_text()

    done = volume.lukshook("close", NAME, "--at", str(place(volume)))

    assert 0 == done.returncode, done.stderr
    assert f"warning: the image {copy} " in done.stderr
    assert [] == volume.standing()
    assert [] == status(volume)["open_copies"]


def test_a_volume_whose_image_is_gone_closes_where_it_was_only_read(volume: CliVolume) -> None:
    """0 as well; one that was written is 74."""
    backup(volume, "file", "content")
    volume.do("open", NAME, "--read-only")
    kept = volume.image.rename(volume.folder / "kept.img")
    done = volume.lukshook("close", NAME)
    assert 0 == done.returncode, done.stderr
    assert [] == volume.standing()
    kept.rename(volume.image)

    volume.do("before-backup", NAME)
    volume.image.rename(kept)
    volume.refusal(74, "after-backup", NAME)
    assert [] == volume.standing()
    kept.rename(volume.image)


def test_a_dry_run_opens_nothing(volume: CliVolume) -> None:
    """It prints the commands."""
    copy = snapshot(volume)
    said = volume.do("--dry-run", "open", NAME, "--image", str(copy), "--at", str(place(volume)))
    assert str(copy) in said
    assert not place(volume).exists()
    assert [] == volume.standing()


def test_a_copy_that_was_left_by_a_kill_is_not_in_the_way(volume: CliVolume) -> None:
    """Of the volume's own image: the next backup closes it."""
    died = volume.start("open", NAME, "--at", str(place(volume)), prepare=Fault(volume.folder / "steps", KILLS[0], 2))
    assert -9 == died.wait().returncode
    assert ["half open"] == [copy["state"] for copy in status(volume)["open_copies"]]

    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)

    assert [] == status(volume)["open_copies"]
    assert [] == volume.standing()


def test_a_header_of_the_same_uuid_with_another_volume_key_is_refused(volume: CliVolume) -> None:
    """65: whoever made it does not have the volume key; the key is not read for it."""
    copy = snapshot(volume)
    uuid = subprocess.run(["cryptsetup", "luksUUID", copy], check=True, capture_output=True, text=True).stdout.strip()
    kind = "luks2" if volume.engine == "kernel" else "luks1"
    options = ("--batch-mode", "--type", kind, "--uuid", uuid, "--pbkdf-force-iterations", "1000")
    pbkdf = ("--pbkdf", "pbkdf2") if kind == "luks2" else ()
    key = base64.b64decode(volume.key.read_text())
    line = ["cryptsetup", "luksFormat", *options, *pbkdf, "--sector-size=4096" if pbkdf else "--batch-mode"]
    subprocess.run([*line, "--key-file=-", str(copy)], check=True, input=key)
    volume.key.unlink()

    said = volume.refusal(65, "open", NAME, "--image", str(copy), "--at", str(place(volume)))

    assert "nothing shows that the header of" in said
    assert [] == volume.standing()

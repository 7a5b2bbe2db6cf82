"""What `key rekey` refuses before it begins."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import NotSafe, Refused, Unavailable, Usage
from lukshook.layers import loop_device
from lukshook.luks import header_file, luks2, reencryption
from lukshook.luks.reencryption import Progress
from lukshook.resize import job
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system import files, loops
from lukshook.system.secret import Secret
from lukshook.volume import rekey
from lukshook.volume.work import work_on
from support.direct_volume import parsed, site_in


@pytest.mark.parametrize("source", ["stdin", "fd:3"])
def test_a_key_that_can_be_read_only_once_is_refused(source: str, tmp_path: Path) -> None:
    """The second reading found nothing, and said that this is no key."""
    site = site_in(tmp_path, lambda volume: Secret(b""), print)
    asked = rekey.Asked(keep_key=True, drop_other_keys=False, verify=print, progress=lambda done, total: None)

    with pytest.raises(Usage, match="is read once, and key rekey reads it twice"):
        rekey.rekey(parsed(tmp_path, key=source), site, asked)


@pytest.mark.parametrize(
    ("shown", "expected", "taken"),
    [
        ({"b"}, {"b"}, True),
        ({"a", "b"}, {"a", "b"}, True),  # killed while the next header was written
        (set(), {"b"}, True),  # damaged: it is written again
        ({"a"}, {"b"}, False),
        ({"a", "b"}, {"b"}, False),
        ({"a"}, set(), False),
    ],
)
def test_an_image_of_another_moment_is_not_spoilt(
    shown: set[str], expected: set[str], taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each whole header on the image is one that this replacement has written last."""
    site, volume = site_in(tmp_path, lambda volume: Secret(b""), print), parsed(tmp_path)
    volume.image.image.write_bytes(bytes(4096))
    monkeypatch.setattr(reencryption, "progress", lambda file: Progress("u", running=True, torn=False, done=0))
    monkeypatch.setattr(header_file, "heads", lambda read: frozenset(shown))

    with work_on(volume, site) as work, open_image(volume.image.image, writable=True) as image:
        rekey._expect(work.state, frozenset(expected))
        work.state.rekeying.write_bytes(bytes(4096))
        with nullcontext() if taken else pytest.raises(Refused, match="left it: one of the image and"):
            rekey._check_begun(work, image)


@pytest.mark.needs("cryptsetup")
@pytest.mark.parametrize("running", [True, False])
def test_an_older_file_with_the_progress_is_not_followed(
    running: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back alone, without what else is known: what has the new volume key already would be encrypted twice."""
    site, volume = site_in(tmp_path, lambda volume: Secret(b""), print), parsed(tmp_path)
    image = volume.image.image
    image.write_bytes(bytes(32 << 20))
    make = ("cryptsetup", "luksFormat", "-q", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000")
    subprocess.run([*make, image], input=b"key", check=True)

    with work_on(volume, site) as work, open_image(image, writable=True) as there:
        (uuid,) = header_file.uuids(there.descriptor)
        monkeypatch.setattr(reencryption, "progress", lambda file: Progress(uuid, running=running, torn=False, done=0))
        work.state.make_folder()
        work.state.rekeying.write_bytes(image.read_bytes()[: 16 << 20])
        rekey._expect(work.state, rekey._heads(there))
        rekey._check_begun(work, there)
        subprocess.run(["cryptsetup", "config", "--label", "newer", image], check=True)
        rekey._expect(work.state, rekey._heads(there))
        with pytest.raises(Refused, match="left it: one of the image and"):
            rekey._check_begun(work, there)
        header_file.write(header_file.load(image), work.state.header_next)  # as `_finish` leaves it, killed at its end
        with pytest.raises(Refused, match="left it: one of the image and") if running else nullcontext():
            rekey._check_begun(work, there)


@pytest.mark.needs("cryptsetup")
@pytest.mark.parametrize("place", [0, 1 << 14])
@pytest.mark.parametrize("whole", [True, False])
def test_a_kill_between_the_two_metadata_copies_is_made_good(place: int, whole: bool, tmp_path: Path) -> None:
    """The older or damaged one gets what the other says, so a kill in the next write leaves no older header."""
    file = tmp_path / "header"
    file.write_bytes(bytes(32 << 20))
    make = ("cryptsetup", "luksFormat", "-q", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000")
    subprocess.run([*make, file], input=b"key", check=True)
    older = file.read_bytes()[place : place + (1 << 14)]
    subprocess.run(["cryptsetup", "config", "--label=newer", file], check=True)
    with file.open("r+b") as header:
        header.seek(place)
        header.write(older if whole else bytes(8))

    reencryption.repair_copies(file)
    copies = luks2.find(lambda at, length: file.read_bytes()[at : at + length])
    assert ["newer", "newer"] == [copy.names[1] for copy in copies]
    assert 1 == len({copy.sequence for copy in copies})
    found = subprocess.run(["cryptsetup", "luksDump", "--debug", file], check=True, capture_output=True, text=True)
    assert "requires recovery" not in found.stdout


@pytest.mark.needs("cryptsetup")
def test_a_hot_zone_that_only_the_first_metadata_copy_has_did_not_begin(tmp_path: Path) -> None:
    """After a power cut its journal may be missing, and `repair` would write that over good data."""
    file = tmp_path / "header"
    file.write_bytes(bytes(32 << 20))
    make = ("cryptsetup", "luksFormat", "-q", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000")
    subprocess.run([*make, file], input=b"key", check=True)
    with file.open("r+b") as header:
        first = next(copy for copy in luks2.find(reencryption._reading(header.fileno())) if not copy.offset)
        hot = evolve(first, sequence=first.sequence + 1)
        reencryption._change(
            header.fileno(), hot, lambda value: value["segments"]["0"].update(flags=["in-reencryption"])
        )
    assert reencryption.progress(file).torn

    reencryption.repair_copies(file)
    assert not reencryption.progress(file).torn
    copies = luks2.find(lambda at, length: file.read_bytes()[at : at + length])
    assert [first.sequence] * 2 == [copy.sequence for copy in copies]


@pytest.mark.parametrize("stored", [True, False])
def test_a_repaired_zone_is_stored_before_its_journal_goes(
    stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in between would leave half of the zone, and no journal."""
    site, volume = site_in(tmp_path, lambda volume: Secret(b""), print), parsed(tmp_path)
    volume.image.image.write_bytes(bytes(4096))
    done: list[str] = []

    def sync(image: object) -> None:
        done.append("sync")
        if not stored:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(rekey, "_run", lambda *_: done.append("repair"))
    monkeypatch.setattr(ImageFile, "sync", sync)
    monkeypatch.setattr(files, "rename", lambda *_: done.append("rename"))
    with work_on(volume, site) as work, open_image(volume.image.image, writable=True) as image:
        work.state.make_folder()
        work.state.rekeying.write_bytes(b"journal")
        with nullcontext() if stored else pytest.raises(NotSafe, match="did not store"):
            rekey._repair(work, image, Secret(b""))
        assert b"journal" == work.state.rekeying.read_bytes()
    assert ["repair", "sync", *(["rename"] if stored else [])] == done


def test_an_image_on_a_device_that_says_nothing_is_not_changed_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user may not ask a loop device of root, and plain losetup(8) leaves no lock: sysfs has the name.

    It does not say who has attached it.
    """
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    monkeypatch.setattr(loop_device, "_NAMED_SECONDS", 0.0)
    monkeypatch.setattr(loops, "attached", lambda: {"/dev/loop-of-root": str(image)})

    with (
        open_image(image, writable=True) as there,
        pytest.raises(Unavailable, match=r"is already attached to /dev/loop-of-root$"),
    ):
        job.check_unused(there)

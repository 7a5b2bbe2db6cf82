"""Copies that are configured: brought up to date after each backup, and what a copy that fails means for it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.replica import held, notice
from lukshook.replica.place import neighbours
from lukshook.volume import known_state
from support.installed_plugins import code, install, on_path
from support.ledger_cases import earlier_state, open_past_the_sample
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "e2fsck")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume that was created with a ledger."""
    yield from created(tmp_path_factory.mktemp("template"), "userspace", ledger=True)


@pytest.fixture
def volume(template: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    for one in copied(template, tmp_path):
        (tmp_path / "disk").mkdir()
        yield one


def configure(volume: CliVolume, mode: str) -> Path:
    """One copy, which is returned."""
    copy = volume.folder / "disk/copy.img"
    volume.configure(ledger=True, copies={"disk": {"path": str(copy), "mode": mode}})
    return copy


def backup(volume: CliVolume, text: str) -> None:
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text(text)


def test_every_backup_is_copied(volume: CliVolume) -> None:
    copy = configure(volume, "hard")
    for text in ("one", "two"):
        backup(volume, text)
        volume.do("after-backup", NAME)
        assert copy.read_bytes() == volume.image.read_bytes()
    volume.do("run", NAME, "--", "touch", str(volume.data / "three"))
    assert copy.read_bytes() == volume.image.read_bytes()
    assert ["copy.img"] == [entry.name for entry in copy.parent.iterdir()]
    (fact,) = json.loads(volume.do("status", NAME, "--json"))
    (found,) = fact["copies"]
    assert (str(copy), 0, False) == (found["target"], found["behind"], found["changing"])
    assert found["sent"] > 0
    assert f"copy          {copy}: " in volume.do("status", NAME)


def test_a_soft_copy_that_fails_is_a_warning(volume: CliVolume) -> None:
    copy = configure(volume, "soft")
    copy.parent.rmdir()
    backup(volume, "one")
    done = volume.lukshook("after-backup", NAME)
    assert 0 == done.returncode
    assert f"warning: volume {NAME} is closed, but it is not copied to {copy}: " in done.stderr
    assert volume.is_bare()
    assert f"copy          {copy}: not made yet" in volume.do("status", NAME)


def test_a_hard_copy_that_fails_is_a_failed_backup(volume: CliVolume) -> None:
    copy = configure(volume, "hard")
    copy.parent.rmdir()
    backup(volume, "one")
    line = volume.refusal(74, "after-backup", NAME)
    assert line.startswith(f"volume {NAME} is closed, but it is not copied to {copy}: ")
    assert volume.is_bare()
    copy.parent.mkdir()
    volume.do("after-backup", NAME)
    assert copy.read_bytes() == volume.image.read_bytes()


def test_plugins_report_a_copy_that_failed(volume: CliVolume, tmp_path: Path) -> None:
    copy = configure(volume, "hard")
    copy.parent.rmdir()
    told = tmp_path / "told"
    install(
        tmp_path / "plugins", code(report=f"open({str(told)!r}, 'w').write(f'{{outcome.failed}} {{outcome.error}}')")
    )
    backup(volume, "one")
    assert 74 == volume.start("after-backup", NAME, prepare=on_path(tmp_path / "plugins")).wait().returncode
    assert told.read_text().startswith(f"True volume {NAME} is closed, but it is not copied")


def test_the_last_job_copies(volume: CliVolume) -> None:
    copy = configure(volume, "hard")
    volume.do("before-backup", NAME, LUKSHOOK_JOB="one")
    volume.do("before-backup", NAME, LUKSHOOK_JOB="two")
    volume.do("after-backup", NAME, LUKSHOOK_JOB="one")
    assert not copy.exists()
    volume.do("after-backup", NAME, LUKSHOOK_JOB="two")
    assert copy.read_bytes() == volume.image.read_bytes()


def test_a_copy_opens_without_lukshook_and_restores(volume: CliVolume) -> None:
    copy = configure(volume, "hard")
    backup(volume, "kept")
    volume.do("after-backup", NAME)
    subprocess.run(["cryptsetup", "luksDump", str(copy)], check=True, capture_output=True)
    volume.image.unlink()
    subprocess.run(["cp", "--sparse=always", copy, volume.image], check=True)
    volume.do("open", NAME, "--read-only")
    assert "kept" == (volume.data / "file").read_text()
    volume.do("close", NAME)


def test_the_commands_copy_and_heal(volume: CliVolume) -> None:
    copy = volume.folder / "disk/copy.img"
    assert f"{copy}: " in volume.do("copy", NAME, str(copy))
    good = volume.image.read_bytes()
    place = len(good) - 5000
    with volume.image.open("r+b") as file:
        file.seek(place)
        file.write(bytes(byte ^ 0x55 for byte in good[place : place + 4]))
    assert "is damaged" in volume.lukshook("verify", NAME).stderr
    assert "can be healed: 262144 bytes at " in volume.do("--dry-run", "heal", NAME, "--from", str(copy))
    assert "is damaged" in volume.lukshook("verify", NAME).stderr
    assert f"volume {NAME}: 1 piece healed\n" in volume.do("heal", NAME, "--from", str(copy))
    assert good == volume.image.read_bytes()
    volume.do("verify", NAME)
    assert f"volume {NAME}: nothing is damaged\n" == volume.do("heal", NAME, "--from", str(copy))


def test_a_copy_is_read_again_after_this_host_was_restored(volume: CliVolume) -> None:
    """An image that is newer than what this host knows: it does not know either what the copies have."""
    copy = volume.folder / "disk/copy.img"
    volume.do("copy", NAME, str(copy))
    with earlier_state(volume):
        volume.do("run", NAME, "--", "touch", str(volume.data / "later"))
    open_past_the_sample(volume)
    volume.do("after-backup", NAME)
    assert "was begun again" in volume.refusal(65, "copy", NAME, str(copy))
    volume.do("copy", NAME, str(copy), "--adopt")
    assert copy.read_bytes() == volume.image.read_bytes()


def test_healing_destroys_no_newer_backup(volume: CliVolume) -> None:
    """What was written after the state of this host was saved is no damage."""
    copy = volume.folder / "disk/copy.img"
    volume.do("copy", NAME, str(copy))
    with earlier_state(volume):
        volume.do("run", NAME, "--", "touch", str(volume.data / "later"))
    newer = volume.digest()
    done = volume.lukshook("verify", NAME)
    assert (65, True, False) == (done.returncode, "lukshook trust" in done.stderr, "heal" in done.stderr), done.stderr
    assert "is newer than what this host knows" in volume.refusal(65, "heal", NAME, "--from", str(copy))
    assert "super block" in volume.refusal(65, "copy", NAME, str(copy))
    assert newer == volume.digest()
    volume.do("trust", NAME)
    volume.do("verify", NAME)
    volume.do("open", NAME, "--read-only")
    assert (volume.data / "later").exists()
    volume.do("close", NAME)


def test_damage_beside_the_super_block_is_healed_with_the_key(volume: CliVolume) -> None:
    copy = volume.folder / "disk/copy.img"
    volume.do("copy", NAME, str(copy))
    good = volume.digest()
    place = offset(volume) + 200_000
    with volume.image.open("r+b") as file:
        file.seek(place)
        file.write(b"damaged")
    volume.do("heal", NAME, "--from", str(copy))
    assert good == volume.digest()
    with volume.image.open("r+b") as file:
        file.seek(offset(volume) + 1024)
        file.write(bytes(1024))
    assert "nobody can tell" in volume.refusal(65, "heal", NAME, "--from", str(copy))
    volume.do("heal", NAME, "--from", str(copy), "--even-newer")
    assert good == volume.digest()


def offset(volume: CliVolume) -> int:
    """Where the file system begins in the image."""
    pins = known_state.KnownState(volume.state_folder, NAME).known.pins
    assert pins is not None
    return int(pins["offset"])


def test_a_copy_that_may_be_mixed_is_not_opened(volume: CliVolume) -> None:
    """Whatever shows that a change of it was interrupted: a file beside it, or what this host knows."""
    copy, place = volume.folder / "disk/copy.img", volume.folder / "older"
    volume.do("run", NAME, "--", "cp", "/proc/version", str(volume.data / "something"))
    volume.do("copy", NAME, str(copy))
    (known,) = held.every(volume.state_folder / f"{NAME}.copies")
    opening = ("open", NAME, "--image", str(copy), "--at", str(place))
    for suffix in notice.UNFINISHED:
        assert f"copy.img{suffix}" in neighbours("copy.img")
        beside = copy.with_name(f"copy.img{suffix}")
        beside.touch()
        assert "was interrupted" in volume.refusal(65, *opening)
        beside.unlink()
    for changed in ({"step": "reading"}, {"step": "applying"}, {"step": "", "mixed": True}):
        known.save(**changed)
        assert "was interrupted" in volume.refusal(65, *opening)
    done = volume.lukshook("drill", NAME, "--image", str(copy))
    assert (65, True) == (done.returncode, "was interrupted" in done.stderr), done.stderr
    known.save(mixed=False)
    volume.do("drill", NAME, "--image", str(copy))
    volume.do(*opening)
    volume.do("close", NAME, "--at", str(place))


def test_a_forgotten_copy_is_in_no_report(volume: CliVolume) -> None:
    """`status` and the metrics follow a copy by hand, and its end, also with its disk gone."""
    metrics = volume.folder / "lukshook.prom"
    volume.config.write_text(f'metrics = "{metrics}"\n{volume.config.read_text()}')
    copy = volume.folder / "disk/copy.img"
    volume.do("copy", NAME, str(copy))
    assert f'lukshook_copies_behind{{volume="{NAME}"}} 0' in metrics.read_text()
    shutil.rmtree(copy.parent)

    for wrong in (("--adopt",), ("--new",), ("--image", "/x")):
        volume.refusal(64, "copy", NAME, str(copy), "--forget", *wrong)
    volume.refusal(64, "copy", NAME, "--forget")
    volume.refusal(64, "copy", NAME, f"{copy}x", "--forget")
    volume.do("--dry-run", "copy", NAME, str(copy), "--forget")
    assert str(copy) in volume.do("status", NAME)
    volume.do("copy", NAME, str(copy), "--forget")

    assert str(copy) not in volume.do("status", NAME)
    assert "copies_behind" not in metrics.read_text()
    assert not list(volume.state_folder.glob("*.copies"))


def test_what_cannot_be_healed_is_named(volume: CliVolume) -> None:
    copy = volume.folder / "disk/copy.img"
    volume.do("copy", NAME, str(copy))
    for file in (volume.image, copy):
        with file.open("r+b") as out:
            out.seek(4096)
            out.write(b"\0" * 100)
    done = volume.lukshook("heal", NAME, "--from", str(copy))
    assert (65, "lost: 262144 bytes at 0\n") == (done.returncode, done.stdout)


def test_an_open_volume_is_not_copied(volume: CliVolume) -> None:
    copy = volume.folder / "disk/copy.img"
    volume.do("before-backup", NAME)
    assert f"volume {NAME} is open" == volume.refusal(69, "copy", NAME, str(copy))
    assert f"volume {NAME} is open" == volume.refusal(69, "heal", NAME, "--from", str(copy))
    volume.do("after-backup", NAME)
    shutil.rmtree(copy.parent)
    assert "is not there" in volume.refusal(69, "copy", NAME, str(copy))
    volume.refusal(64, "copy", NAME)
    volume.refusal(64, "copy", NAME, str(copy), "--new", "--adopt")


@pytest.mark.parametrize("cut", [False, True], ids=["header", "end"])
def test_a_refused_opening_hides_no_damage(volume: CliVolume, *, cut: bool) -> None:
    """What a backup refuses is found by `verify` afterwards, not copied, and healed."""
    copy = configure(volume, "hard")
    backup(volume, "one")
    volume.do("after-backup", NAME)
    whole = volume.image.read_bytes()
    with volume.image.open("r+b") as image:
        image.truncate(len(whole) - 1_000_000) if cut else image.write(b"\0" * 100)
    volume.refusal(65, "before-backup", NAME)
    assert 65 == volume.lukshook("verify", NAME).returncode
    volume.lukshook("copy", NAME)
    assert whole == copy.read_bytes()
    volume.do("heal", NAME, "--from", "disk")
    assert whole == volume.image.read_bytes()
    volume.do("verify", NAME)


def test_a_copy_that_fails_does_not_keep_the_next_from_being_made(volume: CliVolume) -> None:
    gone, copy = volume.folder / "gone/copy.img", volume.folder / "disk/copy.img"
    volume.configure(ledger=True, copies={name: {"path": str(path)} for name, path in (("one", gone), ("two", copy))})
    done = volume.lukshook("copy", NAME)
    assert (69, True) == (done.returncode, str(gone) in done.stderr)
    assert copy.read_bytes() == volume.image.read_bytes()


def test_a_copy_is_verified_by_its_name(volume: CliVolume) -> None:
    copy = configure(volume, "hard")
    backup(volume, "one")
    volume.do("after-backup", NAME)
    whole = f"{copy}: 64MiB compared, all intact; it has "
    assert f"{whole}the state of the last close\n" == volume.do("verify", NAME, "--copy", "disk")
    with copy.open("r+b") as image:
        image.seek(-1, 2)
        image.write(b"x")
    done = volume.lukshook("verify", NAME, "--copy", str(copy))
    assert (65, True) == (done.returncode, done.stdout.startswith("damaged: 262144 bytes at "))
    assert "1 piece is wrong" in done.stderr
    volume.do("copy", NAME, "--adopt")
    volume.do("verify", NAME, "--copy", "disk")


def test_a_copy_is_verified_as_a_whole(volume: CliVolume) -> None:
    volume.refusal(64, "verify", NAME, "--copy", "disk", "--part", "5%")
    volume.refusal(64, "verify", NAME, "--copy", "dsik")
    volume.refusal(64, "copy", NAME, "dsik")

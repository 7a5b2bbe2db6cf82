"""A store that lies, against real dm-crypt: headers exchanged, images put back, and honest life without alarms."""

from __future__ import annotations

import base64
import lzma
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import Denied, Refused, Unavailable
from lukshook.luks import cryptsetup, header_file
from lukshook.luks.header import find_macs, judge
from lukshook.system import kernel
from lukshook.volume import header_backup, key_slots, known_state, trust
from support import header_forgery, kernel_volume
from support.kernel_volume import Before, KernelVolume, change_header, tool
from support.killed_backups import honest_cycles
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")

HEADERS = Path(__file__).parents[1] / "files/headers"
TEXT = b"a backup in the clear " * 4096
NULL = header_forgery.put("segments.0.encryption", "cipher_null-ecb")


@pytest.fixture
def house(tmp_path: Path) -> KernelVolume:
    return kernel_volume.build(tmp_path)


def check_refused_unasked(house: KernelVolume, words: str) -> None:
    """Opening fails with exit status 65 before the key source is asked, and nothing is left open."""
    before = len(house.asked)
    with pytest.raises(Refused, match=words):
        house.open()
    assert before == len(house.asked)
    assert kernel.mapping("lukshook-house") is None


def test_a_header_exchanged_between_check_and_use_changes_nothing(house: KernelVolume) -> None:
    """The store puts a null cipher in after the header was judged: the judged copy is what is opened."""
    house.open(runner=Before("cryptsetup open", lambda: change_header(house.image, NULL)))
    assert "aes-xts-plain64" == tool("dmsetup", "table", "lukshook-house").split()[3]
    (house.volume.data / "file").write_bytes(TEXT)
    house.close()
    assert TEXT[:64] not in house.image.read_bytes()
    check_refused_unasked(house, "in the clear")
    header_backup.restore(house.volume, house.site, None)
    house.open()
    assert TEXT == (house.volume.data / "file").read_bytes()
    house.close()


def test_a_header_exchanged_before_the_check_is_refused(house: KernelVolume) -> None:
    """CVE-2025-59054: with cryptsetup alone the right key opens it and what is written goes out in the clear."""
    change_header(house.image, NULL)
    check_refused_unasked(house, "in the clear")


def test_the_live_mapping_is_compared_with_what_was_judged(house: KernelVolume) -> None:
    """Should cryptsetup make something else of the header than we did, nothing is mounted."""
    swapped = Before("dmsetup table", lambda: reload_with_null(house))
    with pytest.raises(Refused, match="the kernel maps lukshook-house with"):
        house.open(runner=swapped)
    assert swapped.done
    assert kernel.mapping("lukshook-house") is None


def reload_with_null(house: KernelVolume) -> None:
    fields = tool("dmsetup", "table", "lukshook-house").split()
    fields[3:5] = ["cipher_null-ecb", "-"]
    tool("dmsetup", "suspend", "lukshook-house")
    tool("dmsetup", "reload", "lukshook-house", "--table", " ".join(fields[:8]))
    tool("dmsetup", "resume", "lukshook-house")


def put_back(house: KernelVolume, copy: Path) -> None:
    """Exchange the content, as a store does; the file stays the same one."""
    with copy.open("rb") as old, house.image.open("r+b") as image:
        shutil.copyfileobj(old, image, 1 << 20)


def test_an_older_copy_of_the_image_is_refused_until_it_is_accepted(house: KernelVolume) -> None:
    """Refused by `open` and by `trust`; after `trust --rollback` it is the known one."""
    house.write("first", b"1")
    copy = house.folder / "copy"
    shutil.copyfile(house.image, copy)
    house.write("second", os.urandom(1 << 20))
    put_back(house, copy)
    with pytest.raises(Refused, match="is older than when this host closed it last") as caught:
        house.open()
    assert "trust --rollback house" in caught.value.hint
    with pytest.raises(Refused, match="is older"):
        trust.trust(house.volume, house.site)
    closed = house.known().last_close
    trusted = trust.trust(house.volume, house.site, rollback=True)
    assert trusted is not None
    assert closed == trusted.older
    house.open()
    assert ["first"] == [entry.name for entry in house.volume.data.iterdir()]
    house.close()


def test_half_a_header_is_repaired_by_trusting_it(house: KernelVolume) -> None:
    """Its backup would else be half a one from then on, with nothing to repair the other half from."""
    with house.image.open("r+b") as image:
        image.write(os.urandom(4096))
    assert trust.trust(house.volume, house.site) is not None
    kept = header_file.load(known_state.KnownState(house.site.state_folder, house.volume.name).header_backup)
    assert 2 == judge(kept, house.image.stat().st_size).copies
    assert 2 == header_backup.verify(house.volume, house.site).copies


def test_an_older_header_is_refused(house: KernelVolume) -> None:
    """The header from before a key change, put back alone: pins refuse it before the key is asked."""
    with house.image.open("rb") as image:
        old = image.read(kernel_volume.HEADER)
    key_slots.rotate(house.volume, house.site)
    change_header(house.image, lambda start: start.__setitem__(slice(None), old))
    check_refused_unasked(house, "key slot 0 of the header is new")
    header_backup.restore(house.volume, house.site, None)
    house.open()
    house.close()


def test_a_host_that_knows_nothing_but_the_key_tells_a_forged_header(house: KernelVolume) -> None:
    """By the key's mark in the header; a genuine one it takes without being told to."""
    stranger = evolve(house, site=evolve(house.site, state_folder=house.folder / "elsewhere"))
    stranger.open()
    stranger.close()
    shutil.rmtree(house.folder / "elsewhere")
    change_header(house.image, header_forgery.put("keyslots.0.priority", 2))
    with pytest.raises(Refused, match="was changed without the key"):
        stranger.open()


def test_another_file_system_is_refused_until_it_is_trusted(house: KernelVolume) -> None:
    """Made again inside: `trust` takes it, without --rollback."""
    key = bytes(house.key().reveal())
    tool("cryptsetup", "open", "--key-file=-", str(house.image), "another", given=key)
    tool("mkfs.ext4", "-q", "-F", "/dev/mapper/another")
    tool("cryptsetup", "close", "another")
    with pytest.raises(Refused, match="contains file system"):
        house.open()
    trust.trust(house.volume, house.site)
    house.open()
    assert [] == list(house.volume.data.iterdir())
    house.close()


def test_nothing_in_a_volume_is_a_device_gains_rights_or_runs(house: KernelVolume) -> None:
    """Whatever the file system holds, the mount options keep it from being used."""
    house.open()
    mount = kernel.mount_at(house.volume.mountpoint)
    assert mount is not None
    assert {"nodev", "nosuid", "noexec"} <= mount.options
    house.close()


def format_by_hand(house: KernelVolume, *options: str) -> None:
    """The tutorial's commands: a raw key, cryptsetup's own choice of everything else."""
    key = os.urandom(32)
    own = house.folder / "own.key"
    own.write_text(as_text(key))
    own.chmod(0o600)
    with house.image.open("xb") as file:
        file.truncate(80 << 20)
    tool("cryptsetup", "luksFormat", "--batch-mode", *options, str(house.image), "-", given=key)
    tool("cryptsetup", "luksOpen", "--key-file=-", str(house.image), "by_hand", given=key)
    tool("mkfs.ext4", "-q", "/dev/mapper/by_hand")
    tool("cryptsetup", "luksClose", "by_hand")


def as_text(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    "options",
    [
        ("--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4"),
        ("--type", "luks1", "--pbkdf-force-iterations", "1000"),
    ],
    ids=["argon2id", "luks1"],
)
def test_an_image_made_by_hand_opens_after_trust(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Before: exit status 65 and the command to use, without the key being asked for. After: like one of ours."""
    house = kernel_volume.empty(tmp_path)
    format_by_hand(house, *options)
    house.volume.mountpoint.mkdir()
    check_refused_unasked(house, "does not know the header")
    trusted = trust.trust(house.volume, house.site)
    assert trusted is not None
    assert (0,) == trusted.slots
    assert trusted.backup.exists()
    assert (trusted.kind == "luks2") == trusted.marked
    house.write("file", b"x")
    header_backup.verify(house.volume, house.site)
    if trusted.kind == "luks2":
        judged = cryptsetup.read_header(house.image)
        assert 1 == len(find_macs(judged))


@pytest.mark.parametrize(
    "name",
    [
        "2.0.2-luks2-cheap",
        "2.8.8-luks2-cheap",
        pytest.param("2.2.2-luks2-cheap", marks=pytest.mark.slow),
        pytest.param("2.0.2-luks1", marks=pytest.mark.slow),
    ],
)
def test_an_image_of_another_version_of_cryptsetup_opens_after_trust(tmp_path: Path, name: str) -> None:
    """The header as that version wrote it: refused, taken over with `trust`, then like one of ours."""
    house = kernel_volume.empty(tmp_path)
    house.image.write_bytes(lzma.decompress((HEADERS / f"{name}.xz").read_bytes()))
    os.truncate(house.image, 64 << 20)
    shutil.copy(HEADERS / "key", house.folder / "own.key")
    (house.folder / "own.key").chmod(0o600)
    key = base64.b64decode((HEADERS / "key").read_text())
    tool("cryptsetup", "open", "--key-file=-", str(house.image), "by_hand", given=key)
    tool("mkfs.ext4", "-q", "/dev/mapper/by_hand")
    tool("cryptsetup", "close", "by_hand")
    house.volume.mountpoint.mkdir()
    check_refused_unasked(house, "does not know the header")
    trust.trust(house.volume, house.site)
    house.write("file", b"x")
    header_backup.verify(house.volume, house.site)


def test_trust_takes_no_header_that_is_not_sane(house: KernelVolume) -> None:
    """Nor with the right key, nor while the volume is open; and no other key."""
    house.open()
    with pytest.raises(Unavailable, match="is open"):
        trust.trust(house.volume, house.site)
    house.close()
    change_header(house.image, NULL)
    before = len(house.asked)
    with pytest.raises(Refused, match="in the clear"):
        trust.trust(house.volume, house.site, rollback=True)
    assert before == len(house.asked)
    header_backup.restore(house.volume, house.site, None)
    (house.folder / "own.key").write_text(as_text(os.urandom(32)))
    known = house.known()
    with pytest.raises(Denied):
        trust.trust(house.volume, house.site)
    assert known == house.known()


def test_keys_can_be_changed_while_the_volume_is_open(house: KernelVolume) -> None:
    """The data goes on under the same volume key."""
    house.open()
    key_slots.rotate(house.volume, house.site)
    (house.volume.data / "file").write_bytes(TEXT)
    house.close()
    house.open()
    assert TEXT == (house.volume.data / "file").read_bytes()
    house.close()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume as a user has it."""
    made = CliVolume(tmp_path)
    made.prepare()
    made.do("create", NAME)
    yield from closing(made)


def test_an_honest_life_with_kills_raises_no_alarm(
    volume: CliVolume, rounds: Callable[[int, int], int], chance: random.Random
) -> None:
    """Fifteen backups (a thousand with --long), killed anywhere or not at all: none is refused."""
    count = rounds(15, 1000)
    print(f"{honest_cycles(volume, count, chance)} of {count} backups were killed")
    assert volume.is_bare()

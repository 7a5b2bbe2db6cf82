"""Headers that real versions of cryptsetup made, 2.0 to today's: refused while unknown, taken once trusted, opened."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.config import Volume
from lukshook.errors import Refused
from lukshook.luks.header import Header
from lukshook.system.secret import Secret
from lukshook.volume import key_slots, known_state
from lukshook.volume.judgement import Accepting, Pinned
from lukshook.volume.known_state import Known
from support import key_volume
from support.key_volume import KeyVolume, look

pytestmark = [pytest.mark.files, pytest.mark.needs("cryptsetup")]

FOLDER = Path(__file__).parent / "headers"
SIZE = 64 << 20
#: Type, bytes of the volume key, sector size, where data begins, key derivation: each version's own defaults.
LUKS1_OF_2_0 = ("luks1", 32, 512, 2 << 20, "pbkdf2")
LUKS1 = ("luks1", 64, 512, 2 << 20, "pbkdf2")
LUKS2_OF_2_0 = ("luks2", 32, 512, 4 << 20, "argon2i")
LUKS2_OF_2_1 = ("luks2", 64, 512, 16 << 20, "argon2i")
LUKS2 = ("luks2", 64, 4096, 16 << 20, "argon2id")
HEADERS = {
    "2.0.2-luks1": LUKS1_OF_2_0,
    "2.0.2-luks2": LUKS2_OF_2_0,
    "2.0.2-luks2-cheap": LUKS2_OF_2_0,
    "2.2.2-luks1": LUKS1,
    "2.2.2-luks2": LUKS2_OF_2_1,
    "2.2.2-luks2-cheap": LUKS2_OF_2_1,
    "2.3.7-luks1": LUKS1,
    "2.3.7-luks2": LUKS2_OF_2_1,
    "2.4.3-luks1": LUKS1,
    "2.4.3-luks2": LUKS2,
    "2.7.5-luks1": LUKS1,
    "2.7.5-luks2": LUKS2,
    "2.8.8-luks1": LUKS1,
    "2.8.8-luks2": LUKS2,
    "2.8.8-luks2-cheap": LUKS2,
}
#: Those whose key slot is kept.
WHOLE = ("2.0.2-luks1", "2.0.2-luks2-cheap", "2.2.2-luks2-cheap", "2.8.8-luks2-cheap")


def test_each_file_is_used() -> None:
    """A header that is added needs a line above."""
    assert set(HEADERS) == {file.stem for file in FOLDER.glob("*.xz")}


@pytest.fixture
def house(tmp_path: Path) -> KeyVolume:
    """A volume whose key is that of the headers, and which this host does not know."""
    house = key_volume.empty(tmp_path)
    (tmp_path / "own.key").write_bytes((FOLDER / "key").read_bytes())
    (tmp_path / "own.key").chmod(0o600)
    return house


def lay(house: KeyVolume, name: str) -> None:
    """Put a header at the begin of an image as long as the one it was made on."""
    house.image.write_bytes(lzma.decompress((FOLDER / f"{name}.xz").read_bytes()))
    os.truncate(house.image, SIZE)


def trust(house: KeyVolume) -> Header:
    """Take the header for ours, as `create` and `trust` do; the walk through an open volume is the kernel tier's."""
    accepting = Accepting("house", Known())
    found = look(house.image, accepting).header
    known_state.KnownState(house.site.state_folder, "house").save(accepting.known)
    return found


def never(volume: Volume) -> Secret:
    """The key source of a test in which it must not be asked."""
    raise AssertionError(f"the key of {volume.name} was asked for")


@pytest.mark.parametrize("name", HEADERS)
def test_header_is_refused_until_it_is_trusted(house: KeyVolume, name: str) -> None:
    """Exit status 65 with the command to use, before the key is asked for; afterwards it is the known one."""
    lay(house, name)
    with pytest.raises(Refused, match="does not know the header") as caught:
        key_slots.add(house.volume, evolve(house.site, ask=never), house.source("second"))
    assert (65, True) == (caught.value.exit_code, caught.value.hint.endswith("lukshook trust house"))
    found = trust(house)
    assert HEADERS[name] == (found.type, found.key_bytes, found.sector_size, found.offset, found.slots[0].kdf)
    look(house.image, Pinned("house", house.known()))


@pytest.mark.parametrize("name", WHOLE)
def test_header_opens(house: KeyVolume, name: str) -> None:
    """Once trusted, with the key it was made with."""
    lay(house, name)
    trust(house)
    assert (0,) == key_slots.test(house.volume, house.site)


@pytest.mark.parametrize("name", [name for name in WHOLE if name.endswith("cheap")])
def test_header_takes_a_second_key(house: KeyVolume, name: str) -> None:
    """Added to the header as the old version made it; then each key opens it for cryptsetup alone, and no other."""
    lay(house, name)
    trust(house)
    second = house.new_key("second")
    assert not key_volume.opens(house.image, second)
    assert (1,) == key_slots.add(house.volume, house.site, house.source("second"))
    assert key_volume.opens(house.image, second)
    assert key_volume.opens(house.image, house.key("own"))
    assert house.known().pins == house.pins()

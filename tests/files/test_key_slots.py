"""Keys of real LUKS headers: added, removed and rotated, never without one that opens."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from attrs import astuple, evolve

from lukshook.errors import Denied, Exists, Refused, Usage
from lukshook.luks import allowlist, cryptsetup, header, header_file
from lukshook.system.secret import Secret
from lukshook.volume import key_slots, known_state
from lukshook.volume.judgement import Accepting, Pinned
from lukshook.volume.known_state import Known
from support import key_volume
from support.key_volume import KeyVolume, look, opens

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


@pytest.fixture(params=["luks2", "luks1"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> KeyVolume:
    return key_volume.build(tmp_path, request.param)


@pytest.fixture
def luks2(tmp_path: Path) -> KeyVolume:
    return key_volume.build(tmp_path)


def settled(house: KeyVolume) -> bool:
    """Image, pins and header backup say the same, and nothing waits."""
    folder = house.site.state_folder
    backed_up = header.pins(header.judge(header_file.load(house.backup()), 64 * key_volume.MIB))
    waiting = known_state.KnownState(folder, house.volume.name).header_next.exists()
    return house.known().pins == house.pins() == backed_up and not waiting and house.known().leaving == ()


def test_a_key_is_said_to_open_its_slots(house: KeyVolume) -> None:
    """The slots are those of the raw key, and in LUKS1 of its text as well."""
    expected = {"luks2": (0,), "luks1": (0, 1)}[cryptsetup.read_header(house.image).type]
    assert expected == key_slots.test(house.volume, house.site)


def test_a_key_that_opens_nothing_is_told_apart(house: KeyVolume) -> None:
    """Exit status 77, and the source is named."""
    house.new_key("stranger")
    with pytest.raises(Denied, match=r"stranger\.key opens no key slot"):
        key_slots.test(evolve(house.volume, key=(house.source("stranger"),)), house.site)


def test_the_key_that_cannot_be_removed_is_the_one_that_is_named(house: KeyVolume) -> None:
    """Not the volume's own, which opens it."""
    house.new_key("stranger")
    with pytest.raises(Denied, match=r"stranger\.key opens no key slot"):
        key_slots.remove(house.volume, house.site, source=house.source("stranger"))


def test_a_second_key_opens_as_well(house: KeyVolume) -> None:
    """After `key add` both keys open image and header backup, by cryptsetup's own word."""
    key_slots.add(house.volume, house.site, house.source("second"))
    for name in ("own", "second"):
        assert opens(house.image, house.key(name))
        assert opens(house.backup(), house.key(name))
    assert settled(house)


def test_a_second_key_is_marked(luks2: KeyVolume) -> None:
    """A host that knows nothing but the second key can tell that the header is genuine."""
    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    judged = cryptsetup.read_header(luks2.image)
    assert header.verify_mac(judged, luks2.key("second")) is True
    assert header.verify_mac(judged, luks2.key("own")) is True


def test_an_existing_key_is_added_as_it_is(luks2: KeyVolume) -> None:
    """A source that has a key keeps it."""
    second = luks2.new_key("second")
    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    assert second.reveal() == luks2.key("second").reveal()
    assert opens(luks2.image, second)


def test_a_key_that_opens_already_is_not_added(house: KeyVolume) -> None:
    """Exit status 73."""
    with pytest.raises(Exists):
        key_slots.add(house.volume, house.site, house.source("own"))


def test_no_key_slot_free_is_said(tmp_path: Path) -> None:
    """LUKS1 has eight slots, and a key takes two of them."""
    house = key_volume.build(tmp_path, "luks1")
    for name in ("second", "third", "fourth"):
        key_slots.add(house.volume, house.site, house.source(name))
    with pytest.raises(Usage, match="no free key slot"):
        key_slots.add(house.volume, house.site, house.source("fifth"))


def test_a_removed_key_opens_neither_image_nor_backup(house: KeyVolume) -> None:
    """After `key remove` only the own key opens, and the removed slot's bytes are nowhere in the image."""
    key_slots.add(house.volume, house.site, house.source("second"))
    second, before = house.key("second"), cryptsetup.read_header(house.image)
    gone = key_slots.remove(house.volume, house.site, source=house.source("second"))
    assert not opens(house.image, second)
    assert not opens(house.backup(), second)
    assert opens(house.image, house.key("own"))
    content = house.image.read_bytes()
    for slot in before.slots:
        material = content[slot.area_offset : slot.area_offset + slot.material_bytes]
        assert (slot.number in gone) == (slot.material != digest(material))
    assert settled(house)


def digest(material: bytes) -> str:
    return hashlib.sha256(material).hexdigest()


def test_a_removed_keys_mark_goes_too(luks2: KeyVolume) -> None:
    """The own key's mark stays."""
    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    second = luks2.key("second")
    key_slots.remove(luks2.volume, luks2.site, source=luks2.source("second"))
    marks = header.find_macs(cryptsetup.read_header(luks2.image))
    assert [header.key_id(luks2.key("own"))] == list(marks)
    assert header.key_id(second) not in marks


def test_a_slot_whose_key_is_lost_is_removed_by_number(luks2: KeyVolume) -> None:
    """`key remove --slot`."""
    (slot,) = key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    assert (slot,) == key_slots.remove(luks2.volume, luks2.site, slot=slot)
    assert not opens(luks2.image, luks2.key("second"))


def test_half_a_key_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    """In LUKS1 a key has two slots: whoever empties one by its number hears of the other, until that is empty too."""
    heard: list[str] = []
    made = key_volume.build(tmp_path, "luks1")
    site = evolve(made.site, warn=heard.append)
    first, second = key_slots.add(made.volume, site, made.source("second"))

    key_slots.remove(made.volume, site, slot=second)
    (line,) = heard
    assert f"the key of key slot {second} may still open the volume" in line
    assert line.endswith(f"left are key slot {first}")
    assert opens(made.image, made.key("second"))

    key_slots.remove(made.volume, site, slot=first)
    assert [line] == heard
    assert not opens(made.image, made.key("second"))


def test_the_last_key_that_works_is_never_removed(house: KeyVolume) -> None:
    """Neither by source nor by slot, also when there are slots that another key opens."""
    key_slots.add(house.volume, house.site, house.source("second"))
    content = house.image.read_bytes()
    with pytest.raises(Usage, match="without it, no configured key would open"):
        key_slots.remove(house.volume, house.site, source=house.source("own"))
    with pytest.raises(Usage, match="without it, no configured key would open"):
        key_slots.remove(house.volume, house.site, slot=0)
    assert content == house.image.read_bytes()


def test_a_slot_that_is_not_there_is_not_removed(luks2: KeyVolume) -> None:
    """Exit status 64, and the slots in use are named."""
    with pytest.raises(Usage) as caught:
        key_slots.remove(luks2.volume, luks2.site, slot=7)
    assert "in use: key slot 0" == caught.value.hint


def test_rotation_puts_a_new_key_in_the_place_of_the_old(house: KeyVolume) -> None:
    """The source holds another key, which opens; the old one opens neither image nor backup."""
    old = house.key("own")
    done = key_slots.rotate(house.volume, house.site)
    assert old.reveal() != house.key("own").reveal()
    for file in (house.image, house.backup()):
        assert opens(file, house.key("own"))
        assert not opens(file, old)
    assert done.removed and done.added
    assert settled(house)


def test_rotation_leaves_other_keys_alone(house: KeyVolume) -> None:
    """A second person's key opens after it as before."""
    key_slots.add(house.volume, house.site, house.source("second"))
    key_slots.rotate(house.volume, house.site)
    assert opens(house.image, house.key("second"))


def test_rotation_to_another_source_waits_for_the_configuration(luks2: KeyVolume) -> None:
    """Both keys open until the configuration names the new source; the next run removes the old one."""
    old, source = luks2.key("own"), luks2.source("next")
    assert source == key_slots.rotate(luks2.volume, luks2.site, source).waiting
    assert source == key_slots.rotate(luks2.volume, luks2.site, source).waiting
    assert opens(luks2.image, old)
    assert opens(luks2.image, luks2.key("next"))
    done = key_slots.rotate(evolve(luks2.volume, key=(source,)), luks2.site, source)
    assert ((0,), "") == (done.removed, done.waiting)
    assert not opens(luks2.image, old)
    assert opens(luks2.image, luks2.key("next"))
    assert settled(luks2)


def with_key(house: KeyVolume, name: str) -> KeyVolume:
    """The configuration names another key from now on."""
    return evolve(house, volume=evolve(house.volume, key=(house.source(name),)))


def test_a_removed_keys_slot_that_was_given_to_another_stays(luks2: KeyVolume) -> None:
    """The old key was removed by hand and its slot given away: the next rotation is one, and leaves that slot alone."""
    key_slots.rotate(luks2.volume, luks2.site, luks2.source("next"))
    now = with_key(luks2, "next")
    key_slots.remove(now.volume, now.site, source=now.source("own"))
    assert (0,) == key_slots.add(now.volume, now.site, now.source("friend"))
    before = now.key("next")
    key_slots.rotate(now.volume, now.site)
    assert opens(now.image, now.key("friend"))
    assert opens(now.image, now.key("next"))
    assert not opens(now.image, before)
    assert settled(now)


def test_a_rotation_whose_old_key_was_removed_by_hand_is_over(luks2: KeyVolume) -> None:
    """The next one makes a new key, and does not say that it has while nothing was done."""
    key_slots.rotate(luks2.volume, luks2.site, luks2.source("next"))
    now = with_key(luks2, "next")
    key_slots.remove(now.volume, now.site, source=now.source("own"))
    before = now.key("next")
    key_slots.rotate(now.volume, now.site)
    assert not opens(now.image, before)
    assert opens(now.image, now.key("next"))


def test_a_rotation_that_was_done_is_done(luks2: KeyVolume) -> None:
    """Cut off before that was written down: the same command ends well, and no key is changed."""
    key_slots.rotate(luks2.volume, luks2.site, luks2.source("next"))
    now, waiting = with_key(luks2, "next"), luks2.known()
    key_slots.rotate(now.volume, now.site, now.source("next"))
    done = evolve(now.known(), leaving=waiting.leaving, leaving_mark=waiting.leaving_mark, coming=waiting.coming)
    known_state.KnownState(now.site.state_folder, now.volume.name).save(done)
    assert ((), ()) == astuple(key_slots.rotate(now.volume, now.site, now.source("next")))[:2]
    assert opens(now.image, now.key("next"))
    assert settled(now)


def test_a_rotation_that_was_given_up_removes_nothing_later(luks2: KeyVolume) -> None:
    """Its new key was removed, a third one took over: the first is somebody's key as any other then."""
    key_slots.rotate(luks2.volume, luks2.site, luks2.source("next"))
    key_slots.remove(luks2.volume, luks2.site, source=luks2.source("next"))
    key_slots.add(luks2.volume, luks2.site, luks2.source("third"))
    now = with_key(luks2, "third")
    before = now.key("third")
    key_slots.rotate(now.volume, now.site)
    assert opens(now.image, now.key("own"))
    assert opens(now.image, now.key("third"))
    assert not opens(now.image, before)


def test_a_waiting_key_that_opens_nothing_takes_no_place(luks2: KeyVolume) -> None:
    """Left over from long ago beside the new source: the new key stays where it is, and opens."""
    luks2.new_key("stranger")
    key_slots.rotate(luks2.volume, luks2.site, luks2.source("next"))
    (luks2.folder / "stranger.key").rename(luks2.folder / "next.key.new")
    now = with_key(luks2, "next")
    assert (0,) == key_slots.rotate(now.volume, now.site).removed
    assert opens(now.image, now.key("next"))


def test_a_rotation_that_found_no_room_is_not_gone_on_with(tmp_path: Path) -> None:
    """Another host made room and rotated; its key, brought here, is not replaced by the one that never got a slot."""
    here = key_volume.build(tmp_path, "luks1")
    for name in ("second", "third", "fourth"):
        key_slots.add(here.volume, here.site, here.source(name))
    with pytest.raises(Usage, match="no free key slot"):
        key_slots.rotate(here.volume, here.site)
    assert () == here.known().leaving
    shutil.copy(tmp_path / "own.key", tmp_path / "there.key")
    there = with_key(evolve(here, site=evolve(here.site, state_folder=tmp_path / "elsewhere")), "there")
    accept(there)
    key_slots.remove(there.volume, there.site, source=there.source("second"))
    key_slots.rotate(there.volume, there.site)
    shutil.copy(tmp_path / "there.key", tmp_path / "own.key")
    accept(here)
    key_slots.rotate(here.volume, here.site)
    assert opens(here.image, here.key("own"))
    assert not opens(here.image, here.key("there"))


def accept(house: KeyVolume) -> None:
    """As `lukshook trust` does, without opening the volume."""
    accepting = Accepting(house.volume.name, house.known())
    look(house.image, accepting)
    known_state.KnownState(house.site.state_folder, house.volume.name).save(accepting.known)


def test_a_source_that_cannot_take_a_key_is_not_rotated(luks2: KeyVolume) -> None:
    """Exit status 64, and what to do."""
    content = luks2.image.read_bytes()
    with pytest.raises(Usage, match="cannot store a new key"):
        key_slots.rotate(evolve(luks2.volume, key=(f"command:cat {luks2.folder}/own.key",)), luks2.site)
    assert content == luks2.image.read_bytes()


def test_a_rotation_to_the_same_key_is_refused(luks2: KeyVolume) -> None:
    """Nothing is changed, so that nothing is removed."""
    shutil.copy(luks2.folder / "own.key", luks2.folder / "same.key")
    with pytest.raises(Exists):
        key_slots.rotate(luks2.volume, luks2.site, luks2.source("same"))
    assert () == luks2.known().leaving


def test_a_slot_that_the_store_added_is_refused(luks2: KeyVolume) -> None:
    """Before the key is asked, by every key command."""
    own = luks2.key("own")
    both = bytes(own.reveal()) + os.urandom(32)
    key_volume.cryptsetup("luksAddKey", "--key-file=-", "--keyfile-size=32", str(luks2.image), "-", given=both)
    asked = evolve(luks2.site, ask=never)
    for attempt in (
        lambda: key_slots.test(luks2.volume, asked),
        lambda: key_slots.add(luks2.volume, asked, luks2.source("second")),
        lambda: key_slots.remove(luks2.volume, asked, slot=1),
        lambda: key_slots.rotate(luks2.volume, asked),
    ):
        with pytest.raises(Refused, match="key slot 1 of the header is new"):
            attempt()


def never(volume: object) -> Secret:
    raise AssertionError("the key was asked for")


def test_a_header_without_pins_or_mark_is_not_changed(luks2: KeyVolume) -> None:
    """An image that nobody trusted yet: exit status 65 and the way to trust it."""
    key_volume.cryptsetup("token", "remove", "--token-id=0", str(luks2.image))
    known_state.KnownState(luks2.site.state_folder, luks2.volume.name).save(Known())
    with pytest.raises(Refused, match="does not know the header") as caught:
        key_slots.rotate(luks2.volume, evolve(luks2.site, ask=never))
    assert "lukshook trust house" in caught.value.hint


def test_the_store_cannot_exchange_the_header_under_cryptsetup(luks2: KeyVolume) -> None:
    """What changes the header works on a private copy: no command ever names the image."""
    lines: list[str] = []

    class Watching:
        dry = False

        def run(self, command):  # type: ignore[no-untyped-def]
            lines.append(str(command))
            return luks2.site.runner.run(command)

        def note(self, line: str) -> None:
            lines.append(line)

    key_slots.rotate(luks2.volume, evolve(luks2.site, runner=Watching()))
    assert lines
    assert [] == [line for line in lines if str(luks2.image) in line]


def test_several_steps_are_one_on_the_store(luks2: KeyVolume) -> None:
    """Sequence numbers rise by one, so that another host knows a cut-off write for what it is."""
    before = sequence_on(luks2.image)
    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    assert before + 1 == sequence_on(luks2.image)
    assert 2 == cryptsetup.read_header(luks2.image).copies


@pytest.mark.parametrize("number", [2**64 - 1, 2**64 - 2, 2**63, allowlist.MAX_SEQUENCE + 1, allowlist.MAX_SEQUENCE])
def test_a_sequence_number_at_its_end_is_refused(luks2: KeyVolume, number: int) -> None:
    """Before a key is changed, and before anything is written: at the last one there is no next."""
    set_sequence(luks2, number)
    before = luks2.image.read_bytes()

    with pytest.raises(Refused, match="sequence number is"):
        key_slots.add(luks2.volume, luks2.site, luks2.source("second"))

    assert before == luks2.image.read_bytes()
    assert not known_state.KnownState(luks2.site.state_folder, luks2.volume.name).header_next.exists()


def test_a_high_sequence_number_goes_on(luks2: KeyVolume) -> None:
    """As high as no image has it."""
    set_sequence(luks2, allowlist.MAX_SEQUENCE - 100)

    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))

    assert allowlist.MAX_SEQUENCE - 99 == sequence_on(luks2.image)


def set_sequence(house: KeyVolume, number: int) -> None:
    seen = look(house.image, Accepting("", Known()))
    with house.image.open("r+b") as image:
        header_file.install(header_file.renumber(seen.copy, seen.header, number), seen.header, image.fileno())


def sequence_on(image: Path) -> int:
    return header_file.sequence(header_file.load(image))


def test_pins_follow_each_change(luks2: KeyVolume) -> None:
    """What this host knows fits what lies on the store after every command."""
    key_slots.add(luks2.volume, luks2.site, luks2.source("second"))
    look(luks2.image, Pinned(luks2.volume.name, luks2.known()))
    key_slots.rotate(luks2.volume, luks2.site)
    look(luks2.image, Pinned(luks2.volume.name, luks2.known()))
    key_slots.remove(luks2.volume, luks2.site, source=luks2.source("second"))
    look(luks2.image, Pinned(luks2.volume.name, luks2.known()))

"""Every change of a header, killed at each of its steps: before each command, inside each write, at each rename."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lukshook.errors import Denied, Exists, Refused, Unavailable
from lukshook.luks import cryptsetup, header, header_file
from lukshook.store.image_file import open_image
from lukshook.system.command import Command, Result
from lukshook.volume import header_backup, header_change, key_slots, known_state, rekey
from lukshook.volume.context import Site
from lukshook.volume.judgement import Pinned
from support import key_volume, kill_inside
from support.key_volume import KeyVolume, look, opens

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


class Steps:
    """Counts what changes anything, and kills this process inside step number *last*."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0

    def reached(self) -> bool:
        self.count += 1
        return self.count == self.last


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


class Killing:
    """A runner that is killed before a command that changes something."""

    dry = False

    def __init__(self, site: Site, steps: Steps) -> None:
        self.site = site
        self.steps = steps

    def run(self, command: Command) -> Result:
        if "CHANGE" == command.effect.name and self.steps.reached():
            die()
        return self.site.runner.run(command)

    def note(self, line: str) -> None:
        self.site.runner.note(line)


class KillingInside(Killing):
    """A runner whose cryptsetup is killed when it is about to write or flush for the *last* time of *steps*.

    Of its commands, that holds for those which work on the data.
    """

    def run(self, command: Command) -> Result:
        if not {"--resume-only", "repair"} & set(command.argv):
            return self.site.runner.run(command)
        at = command.argv.index("cryptsetup")
        killer = (sys.executable, kill_inside.__file__, str(self.steps.last))
        return self.site.runner.run(evolve(command, argv=(*command.argv[:at], *killer, *command.argv[at:])))


def arm(steps: Steps) -> None:
    """Kill inside calls of the kernel too: a write is cut in half, a flush or rename does not happen."""
    for owner, name, half in (
        (os, "pwrite", True),
        (os, "fsync", False),
        (os, "link", False),
        (os, "replace", False),
        (os, "unlink", False),
    ):
        setattr(owner, name, cut(getattr(owner, name), steps, half=half))


def cut(call: Callable[..., Any], steps: Steps, *, half: bool) -> Callable[..., Any]:
    def armed(*arguments: Any, **options: Any) -> Any:
        if steps.reached():
            if half:
                target, data, offset = arguments
                call(target, data[: len(data) // 2], offset)
            die()
        return call(*arguments, **options)

    return armed


def killed_at(step: int, house: KeyVolume, work: Callable[[KeyVolume], object]) -> bool:
    """Run *work* in a child that is killed inside that step; False when it came to its end before."""
    child = os.fork()
    if not child:
        steps = Steps(step)
        arm(steps)
        try:
            work(evolve(house, site=evolve(house.site, runner=Killing(house.site, steps))))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def copies(house: KeyVolume, folder: Path, stride: int) -> Iterator[tuple[int, KeyVolume]]:
    """A fresh copy of the house for each step."""
    for step in itertools.count(1, stride):
        place = folder / str(step)
        shutil.copytree(house.folder, place)
        yield step, moved(house, place)
        shutil.rmtree(place)


def moved(house: KeyVolume, place: Path) -> KeyVolume:
    volume = evolve(
        house.volume,
        image=evolve(house.volume.image, image=place / "image"),
        key=(f"file:{place / 'own.key'}",),
    )
    site = evolve(house.site, run_folder=place / "run", state_folder=place / "state", warn=only_of_an_interruption)
    return KeyVolume(place, volume, site)


def only_of_an_interruption(message: str) -> None:
    """The one warning that there may be: an earlier command was killed."""
    assert "was interrupted; it is complete now: key slot" in message


def add(house: KeyVolume) -> None:
    key_slots.add(house.volume, house.site, house.source("second"))


def remove(house: KeyVolume) -> None:
    key_slots.remove(house.volume, house.site, source=house.source("second"))


def rotate(house: KeyVolume) -> None:
    key_slots.rotate(house.volume, house.site)


def restore(house: KeyVolume) -> None:
    header_backup.restore(house.volume, house.site, None)


def key_of(house: KeyVolume, name: str) -> bool:
    return opens(house.image, house.key(name))


def check_settled(house: KeyVolume) -> None:
    """The next command has completed whatever was interrupted."""
    look(house.image, Pinned(house.volume.name, house.known()))
    backup = header.judge(header_file.load(house.backup()), 64 * key_volume.MIB)
    assert house.pins() == header.pins(backup)
    assert not known_state.KnownState(house.site.state_folder, house.volume.name).header_next.exists()
    assert [] == list(house.site.state_folder.glob("*.part"))
    assert 2 == cryptsetup.read_header(house.image).copies or "luks1" == cryptsetup.read_header(house.image).type


KINDS = pytest.mark.parametrize("kind", ["luks2", pytest.param("luks1", marks=pytest.mark.slow)])


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """Each step in the long version, else every fifth."""
    return 1 if request.config.getoption("--long") else 5


@pytest.fixture
def house(tmp_path: Path, kind: str) -> KeyVolume:
    (tmp_path / "first").mkdir()
    return key_volume.build(tmp_path / "first", kind)


@KINDS
def test_key_add_killed_anywhere(house: KeyVolume, tmp_path: Path, stride: int) -> None:
    """The own key opens at every moment; run again, the second one does too."""
    for step, cut_off in copies(house, tmp_path, stride):
        killed = killed_at(step, cut_off, add)
        assert key_of(cut_off, "own")
        try:
            add(cut_off)
        except Exists:
            assert key_of(cut_off, "second")
        assert key_of(cut_off, "own") and key_of(cut_off, "second")
        check_settled(cut_off)
        if not killed:
            break
    assert step > 15


@KINDS
def test_key_remove_killed_anywhere(house: KeyVolume, tmp_path: Path, stride: int) -> None:
    """The own key opens at every moment; run again, the removed one does not, and its slot is overwritten."""
    add(house)
    for step, cut_off in copies(house, tmp_path, stride):
        before = cryptsetup.read_header(cut_off.image)
        killed = killed_at(step, cut_off, remove)
        assert key_of(cut_off, "own")
        try:
            remove(cut_off)
        except Denied:
            assert not key_of(cut_off, "second")
        assert key_of(cut_off, "own") and not key_of(cut_off, "second")
        check_overwritten(cut_off.image, before, cryptsetup.read_header(cut_off.image))
        check_settled(cut_off)
        if not killed:
            break
    assert step > 15


def check_overwritten(image: Path, before: header.Header, after: header.Header) -> None:
    content = image.read_bytes()
    left = {slot.number for slot in after.slots}
    gone = [slot for slot in before.slots if slot.number not in left]
    assert gone
    for slot in gone:
        material = content[slot.area_offset : slot.area_offset + slot.material_bytes]
        assert slot.material != hashlib.sha256(material).hexdigest()


@KINDS
def test_key_rotate_killed_anywhere(house: KeyVolume, tmp_path: Path, stride: int) -> None:
    """What the key source holds opens at every moment; run again, a new key does and the old one does not.

    Meanwhile a read-only opening here, and a host that knows nothing but the key, take the header as it is.
    """
    old = house.key("own")
    for step, cut_off in copies(house, tmp_path, max(1, stride - 1)):  # it is all of the others
        killed = killed_at(step, cut_off, rotate)
        assert key_of(cut_off, "own")
        check_taken_as_it_is(cut_off)
        if killed or cut_off.key("own").reveal() == old.reveal():
            rotate(cut_off)
        assert key_of(cut_off, "own")
        assert not opens(cut_off.image, old) and not opens(cut_off.backup(), old)
        known = cut_off.known()
        assert ((), "", "") == (known.leaving, known.leaving_mark, known.coming)
        check_settled(cut_off)
        if not killed:
            break
    assert step > 30


@pytest.mark.parametrize("kind", ["luks2"])
def test_the_end_of_a_rotation_to_another_source_killed_anywhere(house: KeyVolume, tmp_path: Path, stride: int) -> None:
    """Run again, it ends well with no third key, or says that there is nothing left to do (73)."""
    key_slots.rotate(house.volume, house.site, house.source("next"))
    old, new = house.key("own"), house.key("next")
    for step, cut_off in copies(house, tmp_path, stride):
        killed = killed_at(step, cut_off, rotate_to_next)
        try:
            rotate_to_next(cut_off)
        except Exists:
            assert () == cut_off.known().leaving
        assert opens(cut_off.image, new) and not opens(cut_off.image, old) and not opens(cut_off.backup(), old)
        check_settled(cut_off)
        if not killed:
            break
    assert step > 15


def rotate_to_next(house: KeyVolume) -> None:
    source = house.source("next")
    key_slots.rotate(evolve(house.volume, key=(source,)), house.site, source)


def check_taken_as_it_is(house: KeyVolume) -> None:
    """Judged without writing, by pins here and by the key's mark elsewhere; LUKS1 has no marks."""
    folder, name = house.site.state_folder, house.volume.name
    before = house.image.read_bytes()
    judged = look(
        house.image, Pinned(name, house.known(), header_change.pending(known_state.KnownState(folder, name)))
    ).header
    if judged.type == "luks2":
        elsewhere = Pinned("elsewhere", known_state.Known())
        elsewhere.vouch(look(house.image, elsewhere).header, house.key("own"))
    assert before == house.image.read_bytes()


@KINDS
def test_header_restore_killed_anywhere(house: KeyVolume, tmp_path: Path, stride: int) -> None:
    """Run again, the header is whole and opens."""
    with house.image.open("r+b") as image:
        image.write(os.urandom(64 * 1024))
    for step, cut_off in copies(house, tmp_path, stride):
        killed = killed_at(step, cut_off, restore)
        restore(cut_off)
        assert key_of(cut_off, "own")
        check_settled(cut_off)
        if not killed:
            break
    assert step > 5


def replace_volume_key(house: KeyVolume) -> None:
    asked = rekey.Asked(keep_key=True, drop_other_keys=False, verify=nothing, progress=lambda done, total: None)
    rekey.rekey(house.volume, house.site, asked)


def nothing() -> None:
    """No ledger, nothing to verify."""


def plaintext(house: KeyVolume, folder: Path) -> str:
    """A digest of the data in a volume, decrypted without lukshook and dm-crypt."""
    file = folder / "volume key"
    file.unlink(missing_ok=True)
    words = ("luksDump", "--dump-volume-key", f"--volume-key-file={file}", "--key-file=-", str(house.image))
    key_volume.cryptsetup(*words, given=bytes(house.key("own").reveal()))
    judged, content = cryptsetup.read_header(house.image), house.image.read_bytes()
    digest, size = hashlib.sha256(), judged.sector_size
    key = file.read_bytes()
    for at in range(judged.offset, len(content), size):
        number = (at - judged.offset) // 512  # plain64 counts sectors of 512 bytes, however large these are
        cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little")))
        digest.update(cipher.decryptor().update(content[at : at + size]))
    return digest.hexdigest()


@KINDS
def test_key_rekey_killed_anywhere(house: KeyVolume, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Run again, the data are as before, under a new volume key; also where each of three runs was killed."""
    (tmp_path / "look").mkdir()
    before, digest = plaintext(house, tmp_path / "look"), house.pins()["digest"]
    for step, cut_off in copies(house, tmp_path, 7 if request.config.getoption("--long") else 60):
        killed = [killed_at(number, cut_off, replace_volume_key) for number in (step, 40, 90)]
        state = known_state.KnownState(cut_off.site.state_folder, cut_off.volume.name)
        if state.rekeying.exists() or digest == cut_off.pins()["digest"]:
            replace_volume_key(cut_off)
        assert before == plaintext(cut_off, tmp_path / "look")
        assert digest != cut_off.pins()["digest"]
        check_settled(cut_off)
        assert () == cut_off.known().rekey_heads
        if not killed[0]:
            break
    assert step > 100


@KINDS
def test_key_rekey_whose_cryptsetup_is_killed_anywhere(
    house: KeyVolume, tmp_path: Path, stride: int, kind: str
) -> None:
    """Run again, the data are as before, under a new volume key; also if that is killed once more, perhaps repairing.

    When all data has the new volume key, cryptsetup removes the old one in several steps, and does not continue there.
    """
    (tmp_path / "look").mkdir()
    before, digest = plaintext(house, tmp_path / "look"), house.pins()["digest"]
    for step, cut_off in copies(house, tmp_path, stride if kind == "luks2" else 3 * stride):  # LUKS1 has more steps
        killed = [killed_inside(number, cut_off) for number in (step, 4)]
        replace_volume_key(cut_off) if killed[-1] else None
        assert before == plaintext(cut_off, tmp_path / "look")
        assert digest != cut_off.pins()["digest"]
        check_settled(cut_off)
        assert () == cut_off.known().rekey_heads
        if not killed[0]:
            break
    assert step > 30


def killed_inside(step: int, house: KeyVolume) -> bool:
    """Replace the volume key, or complete that, with a cryptsetup that is killed; False if it came to its end."""
    killing = KillingInside(house.site, Steps(step))
    try:
        replace_volume_key(evolve(house, site=evolve(house.site, runner=killing)))
    except Unavailable as error:
        assert f"exit status {kill_inside.KILLED}" in str(error)
        return True
    return False


@KINDS
def test_the_new_header_of_a_rekey_is_made_once(house: KeyVolume, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed may have begun to write it: another one would not be known to be ours."""

    def stop(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as first:
        first.setattr(header_change, "carry_over", stop)
        with pytest.raises(InterruptedError):
            replace_volume_key(house)
    monkeypatch.setattr(rekey, "_make_new", stop)
    replace_volume_key(house)
    check_settled(house)


@pytest.mark.parametrize("kind", ["luks2"])
def test_the_next_opening_finishes_a_change(house: KeyVolume, tmp_path: Path) -> None:
    """What `open` does first carries the change over, also when the store spoilt the header meanwhile."""
    folder = house.site.state_folder
    seen = look(house.image, Pinned(house.volume.name, house.known()))
    changed = header_file.renumber(seen.copy, seen.header, header_file.sequence(seen.copy) + 1)
    header_file.write(changed, known_state.KnownState(folder, house.volume.name).header_next)
    with house.image.open("r+b") as image:
        image.seek(4096)
        image.write(bytes(2048))
    with open_image(house.image, writable=True) as image_file:
        assert header_change.finish(image_file, known_state.KnownState(folder, house.volume.name))
        check_settled(house)
        assert not header_change.finish(image_file, known_state.KnownState(folder, house.volume.name))


@pytest.mark.parametrize("kind", ["luks2"])
def test_a_change_is_not_carried_over_to_another_image(house: KeyVolume, tmp_path: Path) -> None:
    """Where the image was exchanged meanwhile it is left as it is, with exit status 65."""
    folder = house.site.state_folder
    shutil.copy(house.backup(), known_state.KnownState(folder, house.volume.name).header_next)
    (tmp_path / "other").mkdir()
    other = key_volume.build(tmp_path / "other")
    before = other.image.read_bytes()
    with (
        open_image(other.image, writable=True) as image,
        pytest.raises(Refused, match="is not the image whose header change was interrupted"),
    ):
        header_change.finish(image, known_state.KnownState(folder, house.volume.name))
    assert before == other.image.read_bytes()

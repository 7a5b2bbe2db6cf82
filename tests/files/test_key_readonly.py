"""A store that cannot be written: a change of keys is refused before anything is written down."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import LukshookError
from lukshook.luks import header_file
from lukshook.resize import compact
from lukshook.resize.resizing import Interaction, resize
from lukshook.volume import header_backup, key_slots, known_state, opening, trust, users
from lukshook.volume.judgement import Pinned
from support import key_volume
from support.key_volume import KeyVolume, look

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]

CHANGES = {
    "key add": ("key", "add", "house", "--key", "file:{folder}/second.key"),
    "key add of a new key": ("key", "add", "house", "--key", "file:{folder}/new.key"),
    "key remove": ("key", "remove", "house", "--slot", "1"),
    "key rotate": ("key", "rotate", "house"),
    "key rotate to another source": ("key", "rotate", "house", "--key", "file:{folder}/new.key"),
    "header restore": ("header", "restore", "house"),
}


@pytest.fixture
def house(tmp_path: Path) -> KeyVolume:
    """With its image on a "store" of its own, a second key in use, and a third that is not."""
    (tmp_path / "store").mkdir()
    made = key_volume.build(tmp_path)
    key_slots.add(made.volume, made.site, made.source("other"))
    made.new_key("second")
    image = made.image.rename(tmp_path / "store/image")
    volume = evolve(made.volume, image=evolve(made.volume.image, image=image))
    (tmp_path / "config.toml").write_text(
        f'[volumes.house]\nimage = "{image}"\nmountpoint = "{tmp_path}/mnt"\n'
        f'key = "file:{tmp_path}/own.key"\nengine = "kernel"\n'
    )
    return evolve(made, volume=volume)


#: Root that has to keep to modes, as on a store that squashes root (capabilities(7)).
POWERLESS = ("setpriv", "--bounding-set=-dac_override")


def lukshook(house: KeyVolume, *words: str, through: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command, which is started *through* another one."""
    environment = {
        **os.environ,
        "LUKSHOOK_CONFIG": str(house.folder / "config.toml"),
        "LUKSHOOK_RUN_DIR": str(house.site.run_folder),
        "LUKSHOOK_STATE_DIR": str(house.site.state_folder),
    }
    argv = [sys.executable, "-m", "lukshook", *(word.format(folder=house.folder) for word in words)]
    done = subprocess.run([*through, *argv], capture_output=True, text=True, env=environment, timeout=120, check=False)
    quiet = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("warning: swap")]
    return done.returncode, done.stdout, "".join(quiet)


def everything(house: KeyVolume) -> Mapping[str, bytes]:
    """All files of the house, but for locks, which say nothing."""
    found = (file for file in house.folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(house.folder)): file.read_bytes() for file in found}


@pytest.mark.roots
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_left_by_a_change_on_a_read_only_store(house: KeyVolume, change: str) -> None:
    """Exit status 69; no key, no draft, no pending header; and a later command has nothing to complete."""
    store = shlex.quote(str(house.image.parent))
    lines = f'mount --bind {store} {store}; mount -o remount,bind,ro {store}; exec "$@"'
    read_only = ("unshare", "--mount", "--propagation=slave", "sh", "-ec", lines, "sh")
    before = everything(house)

    status, out, error = lukshook(house, *CHANGES[change], through=read_only)

    assert (69, "") == (status, out)
    assert "Read-only file system" in error
    assert before == everything(house)
    assert 0 == lukshook(house, "key", "test", "house")[0]
    assert before["store/image"] == everything(house)["store/image"]


@pytest.fixture
def flagged(house: KeyVolume) -> Iterator[KeyVolume]:
    yield house
    subprocess.run(["chattr", "-i", "-a", str(house.image)], check=False, capture_output=True)


@pytest.mark.roots
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("flag", "said"), [("i", "is immutable"), ("a", "is append-only")])
def test_nothing_is_left_by_a_change_of_a_flagged_image(flagged: KeyVolume, change: str, flag: str, said: str) -> None:
    """Exit status 77: root is told what keeps it out, not to become root."""
    if subprocess.run(["chattr", f"+{flag}", str(flagged.image)], check=False, capture_output=True).returncode:
        pytest.skip("no flags here")
    before = everything(flagged)

    status, out, error = lukshook(flagged, *CHANGES[change])

    assert (77, "") == (status, out)
    assert f"lukshook: the image {flagged.image} {said}\n  hint: chattr -{flag} {flagged.image}\n" == error
    assert before == everything(flagged)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_left_by_a_change_that_the_mode_forbids(house: KeyVolume, change: str) -> None:
    """Exit status 77; root without the capability to ignore modes is not told to become root."""
    house.image.chmod(0o400)
    before = everything(house)

    status, out, error = lukshook(house, *CHANGES[change], through=() if os.geteuid() else POWERLESS)

    assert (77, "") == (status, out)
    assert "permission denied" in error
    assert bool(os.geteuid()) == ("run as root" in error)
    assert before == everything(house)


# A change that was interrupted


@pytest.fixture
def interrupted(house: KeyVolume) -> KeyVolume:
    """A new header was written down, and nothing of it reached the image."""
    seen = look(house.image, Pinned(house.volume.name, house.known()))
    changed = header_file.renumber(seen.copy, seen.header, header_file.sequence(seen.copy) + 1)
    header_file.write(changed, known_state.KnownState(house.site.state_folder, house.volume.name).header_next)
    return house


COMPLETE = "an earlier change of the header of volume house was interrupted; it is complete now: key slots 0, 1 in use"


def test_who_completes_a_change_of_keys_reports_it(interrupted: KeyVolume) -> None:
    """In a line on standard error, once."""
    error = lukshook(interrupted, "key", "add", "house", "--key", "file:{folder}/second.key")[2]
    again = lukshook(interrupted, "key", "remove", "house", "--slot", "2")

    assert f"warning: {COMPLETE}\n" == error
    assert (0, "") == again[::2]


@pytest.mark.parametrize("command", ["open", "trust", "resize", "compact", "key add", "key rotate", "key remove"])
def test_every_command_that_completes_a_change_reports_it(
    interrupted: KeyVolume, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of the command itself."""
    said: list[str] = []
    house = evolve(interrupted, site=evolve(interrupted.site, warn=said.append))
    (house.folder / "mnt").mkdir()
    monkeypatch.setattr("lukshook.layers.mount_point.secure", lambda wanted, runner: None)
    monkeypatch.setattr("lukshook.layers.mount_point.prepare", lambda wanted, runner: None)
    talk = Interaction(lambda done, total: None, lambda question: True, print)
    work: dict[str, Callable[[], object]] = {
        "open": lambda: opening.open_volume(house.volume, users.by_hand(), house.site),
        "trust": lambda: trust.trust(house.volume, house.site),
        "resize": lambda: resize(house.volume, "+8MiB", house.site, talk),
        "compact": lambda: compact.compact(house.volume, house.site, talk.consent),
        "key add": lambda: key_slots.add(house.volume, house.site, house.source("second")),
        "key rotate": lambda: key_slots.rotate(house.volume, house.site),
        "key remove": lambda: key_slots.remove(house.volume, house.site, slot=1),
    }

    with suppress(LukshookError):  # there is no file system in this house, and perhaps no device-mapper
        work[command]()

    assert [COMPLETE] == [line for line in said if "interrupted" in line]


def test_a_restored_header_is_no_interrupted_change(house: KeyVolume) -> None:
    """Nor is any change that a command makes itself."""
    header_backup.restore(house.volume, house.site, None)  # each warning is an error
    key_slots.rotate(house.volume, house.site)


@pytest.mark.parametrize(("kind", "said"), [("luks1", "key slots 0, 1"), ("luks2", "key slot 0")])
def test_key_slots_are_named_in_the_right_number(tmp_path: Path, kind: str, said: str) -> None:
    """A LUKS1 header has two for each key."""
    house = key_volume.build(tmp_path, kind)
    (tmp_path / "config.toml").write_text(
        f'[volumes.house]\nimage = "{house.image}"\nmountpoint = "{tmp_path}/mnt"\nkey = "{house.source("own")}"\n'
    )

    for words, told in (
        (("header", "restore", "house"), f"the header of volume house is restored; your key opens {said}\n"),
        (("header", "verify", "house"), f"the header of volume house is in order ({kind.upper()}, in use: {said})\n"),
        (("key", "test", "house"), f"the key from {house.source('own')} opens {said} of volume house\n"),
    ):
        assert (0, told, "") == lukshook(house, *words)

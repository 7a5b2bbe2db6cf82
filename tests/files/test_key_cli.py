"""The commands key and header as a user sees them: their words and exit statuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lukshook.luks import cryptsetup
from lukshook.system.secret import decode_key
from support import key_volume
from support.key_volume import KeyVolume, configure, lukshook, opens

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


def test_the_life_of_a_key(house: KeyVolume) -> None:
    """Each command says in a line what is true now, and nothing on standard error."""
    second = house.source("second")
    told = "the key from file:{}/{}.key opens key slot {} of volume house\n"
    assert (0, told.format(house.folder, "own", 0), "") == lukshook(house, "key", "test", "house")
    assert (0, told.format(house.folder, "second", 1), "") == lukshook(house, "key", "add", "house", "--key", second)
    assert (0, told.format(house.folder, "second", 1), "") == lukshook(house, "key", "test", "house", "--key", second)
    status, out, error = lukshook(house, "key", "remove", "house", "--key", second)
    assert (0, "") == (status, error)
    assert "key slot 1 of volume house is empty" in out
    status, out, error = lukshook(house, "key", "rotate", "house")
    assert (0, "") == (status, error)
    assert "volume house has a new key" in out
    assert "a copy of the old header still opens with it" in out
    assert (0, "") == lukshook(house, "header", "verify", "house")[::2]


def test_each_refusal_has_its_exit_status(house: KeyVolume) -> None:
    """One line and a hint, never a traceback."""
    house.new_key("stranger")
    stranger = house.source("stranger")
    expected = {
        ("key", "test", "house", "--key", stranger): 77,
        ("key", "add", "house", "--key", house.source("own")): 73,
        ("key", "add", "house", "--key", "env:NOT_SET"): 69,
        ("key", "add", "house", "--key", "nothing:at-all"): 78,
        ("key", "remove", "house"): 64,
        ("key", "remove", "house", "--slot", "0"): 64,
        ("key", "remove", "house", "--slot", "9"): 64,
        ("key", "test", "absent"): 66,
        ("key", "new", "house"): 73,
        ("header", "backup", "house", "--to", str(house.image)): 73,
    }
    found = {words: lukshook(house, *words) for words in expected}
    assert expected == {words: status for words, (status, _, _) in found.items()}
    assert [] == [error for _, _, error in found.values() if not re.fullmatch(r"lukshook: .+\n(  hint: .+\n)?", error)]


def test_a_tampered_header_is_refused_by_each_command(house: KeyVolume) -> None:
    """Exit status 65."""
    own = bytes(house.key("own").reveal())
    key_volume.cryptsetup(
        "luksAddKey", "--key-file=-", "--keyfile-size=32", str(house.image), "-", given=own + bytes(32)
    )
    for words in ("key test", "key rotate", "header verify", "header backup"):
        status, _, error = lukshook(house, *words.split(), "house")
        assert (words, 65) == (words, status)
        assert "key slot 1 of the header is new" in error


def test_a_broken_header_is_mended_in_one_command(house: KeyVolume) -> None:
    """Exit status 65 before, 0 after."""
    with house.image.open("r+b") as image:
        image.write(bytes(1 << 20))
    assert 65 == lukshook(house, "key", "test", "house")[0]
    status, out, _ = lukshook(house, "header", "restore", "house")
    assert (0, "the header of volume house is restored; your key opens key slot 0\n") == (status, out)
    assert 0 == lukshook(house, "key", "test", "house")[0]


def test_a_dry_run_changes_nothing_and_asks_for_no_key(house: KeyVolume) -> None:
    """It shows what would be run."""
    before = {file: file.read_bytes() for file in house.folder.rglob("*") if file.is_file()}
    for words in (
        "key add house --key env:NOT_SET",
        "key rotate house",
        "key rekey house",
        "key remove house --slot 0",
        "trust house",
    ):
        status, out, _ = lukshook(house, "--dry-run", *words.split())
        assert (words, 0) == (words, status)
        assert str(house.image) in out
    assert before.items() <= {file: file.read_bytes() for file in house.folder.rglob("*") if file.is_file()}.items()


def test_key_new_prints_a_key_for_a_password_manager(house: KeyVolume) -> None:
    """One line, another one each time."""
    first, second = (lukshook(house, "key", "new")[1] for _ in range(2))
    assert first != second
    assert 32 == len(decode_key(first.encode(), "stdout"))


def test_key_new_keeps_the_key_and_prints_the_sheet(house: KeyVolume) -> None:
    """The key itself is on it only on a terminal or when it is asked for."""
    status, sheet, _ = lukshook(house, "key", "new", "fresh")
    kept = (house.folder / "fresh.key").read_text().strip()
    assert 0 == status
    assert "Recovery sheet of volume fresh" in sheet
    assert kept not in sheet
    assert 73 == lukshook(house, "key", "new", "fresh")[0]
    (house.folder / "fresh.key").unlink()
    sheet = lukshook(house, "key", "new", "fresh", "--show-key")[1]
    assert (house.folder / "fresh.key").read_text().strip() in sheet


def test_key_new_shows_a_picture(house: KeyVolume) -> None:
    """A QR code drawn in block characters, beside the text."""
    pytest.importorskip("segno")
    status, out, _ = lukshook(house, "key", "new", "--qr")
    assert 0 == status
    assert any(block in out for block in "█▀▄")


def test_the_key_on_the_sheet_opens_the_image_with_the_tutorials_commands(house: KeyVolume) -> None:
    """`base64 --decode | cryptsetup luksOpen --key-file=-`."""
    text = (house.folder / "own.key").read_text()
    assert opens(house.image, decode_key(text.encode(), "file"))
    line = f"base64 --decode {house.folder}/own.key | cryptsetup luksOpen --test-passphrase --key-file=- {house.image}"
    assert 0 == subprocess.run(["sh", "-c", line], check=False).returncode


def script_of(house: KeyVolume, *words: str) -> str:
    """What a dry run prints, without the line that needs device-mapper."""
    status, out, error = lukshook(house, "--dry-run", *words)
    assert (0, "") == (status, error)
    lines = out.splitlines()
    assert lines.pop() == "lukshook trust house"
    return "\n".join(lines)


def paste(script: str) -> None:
    done = subprocess.run(["sh", "-e"], input=script, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("kind", ["luks2", "luks1"])
def test_a_dry_run_is_a_script_that_does_it(tmp_path: Path, kind: str) -> None:
    """Pasted whole into a shell: a key is added, the own one rotated, and the first removed; names have blanks."""
    folder = tmp_path / "a b"
    folder.mkdir()
    house = key_volume.build(folder, kind)
    configure(house)
    second = house.source("second")
    paste(script_of(house, "key", "add", "house", "--key", second))
    assert opens(house.image, house.key("second"))
    first = house.key("own")
    paste(script_of(house, "key", "rotate", "house"))
    assert not opens(house.image, first)
    assert opens(house.image, house.key("own"))
    paste(script_of(house, "key", "remove", "house", "--key", second))
    assert not opens(house.image, house.key("second"))
    assert opens(house.image, house.key("own"))
    assert {"luks2": 1, "luks1": 2}[kind] == len(cryptsetup.read_header(house.image).slots)
    assert {"image", "own.key", "second.key", "config.toml"} <= {file.name for file in folder.iterdir()}
    assert [] == list(folder.glob("*.old")) + list(folder.glob("*.new")) + list(house.site.state_folder.glob("*hand"))


def test_a_dry_run_of_rekey_is_a_script_that_does_it(tmp_path: Path) -> None:
    """Pasted whole into a shell: the volume key is another one, and the old key opens nothing."""
    house = key_volume.build(tmp_path)
    configure(house)
    before, first = house.pins(), house.key("own")

    script = script_of(house, "key", "rekey", "house")
    paste("\n".join(line for line in script.splitlines() if line != "lukshook trust house"))

    assert before["digest"] != house.pins()["digest"]
    assert opens(house.image, house.key("own"))
    assert not opens(house.image, first)
    assert [] == list(house.site.state_folder.glob("*hand"))


def test_a_dry_run_of_header_commands_is_a_script_that_does_it(tmp_path: Path) -> None:
    """A backup replaces an older one in its usual place, and a broken header comes back from there."""
    folder = tmp_path / "a b"
    folder.mkdir()
    house = key_volume.build(folder)
    configure(house)
    house.backup().write_bytes(b"an old one")

    paste(pasted(house, "header", "backup", "house"))

    assert 0 == lukshook(house, "header", "verify", "house")[0]
    assert [] == list(house.site.state_folder.glob("*.new"))
    with house.image.open("r+b") as image:
        image.write(bytes(4096))
    paste(pasted(house, "header", "restore", "house"))
    assert opens(house.image, house.key("own"))
    assert 2 == cryptsetup.read_header(house.image).copies


def pasted(house: KeyVolume, *words: str) -> str:
    """What a dry run prints; it changes nothing."""
    before = house.image.read_bytes()
    status, out, error = lukshook(house, "--dry-run", *words)
    assert (0, "") == (status, error)
    assert before == house.image.read_bytes()
    return out

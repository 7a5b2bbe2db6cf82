"""The recovery sheet, printed again: what stands on it, and whether it would work."""

from __future__ import annotations

import os
import shutil
import stat

import pytest

from lukshook.system.secret import Secret
from support.key_volume import KeyVolume, lukshook

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


def key_of(house: KeyVolume) -> str:
    return (house.folder / "own.key").read_text().strip()


def test_a_sheet_without_the_key_says_so_and_how_to_get_it(house: KeyVolume) -> None:
    """Whoever prints it into a pipe finds out before the fire, not after."""
    status, sheet, error = lukshook(house, "sheet", "house")

    assert (0, "") == (status, error)
    assert key_of(house) not in sheet
    assert "THE KEY IS NOT ON THIS SHEET" in sheet
    assert "    lukshook sheet house --show-key\n" in sheet
    assert f"    cat {house.folder}/own.key\n" in sheet


def test_the_key_is_on_the_sheet_if_it_is_asked_for(house: KeyVolume) -> None:
    """With everything that has to be typed, and no word of a missing key. The store is not looked at."""
    pins = house.site.state(house.volume).known.pins
    assert pins is not None
    house.image.unlink()

    status, sheet, error = lukshook(house, "sheet", "house", "--show-key")

    assert (0, "") == (status, error)
    assert f'    echo "{key_of(house)}" | base64 --decode | cryptsetup luksOpen --key-file=- {house.image} ' in sheet
    assert "THE KEY IS NOT" not in sheet
    assert f"LUKS UUID:     {pins['uuid']}\n" in sheet
    assert (
        f"    cryptsetup luksHeaderRestore --batch-mode --header-backup-file={house.backup()} -- {house.image}\n"
        in sheet
    )


def test_a_key_that_opens_nothing_is_not_printed(house: KeyVolume) -> None:
    """77: a sheet with a wrong key would be found out too late."""
    wrong = Secret(os.urandom(32)).text().reveal().decode()
    (house.folder / "own.key").write_text(wrong)

    status, sheet, error = lukshook(house, "sheet", "house", "--show-key")

    assert (77, "") == (status, sheet)
    assert "does not open its header backup" in error
    assert wrong not in error


def test_a_key_is_not_printed_unproven(house: KeyVolume) -> None:
    """69 without a header backup, which is lost as well then; the sheet without the key is printed all the same."""
    house.backup().unlink()

    assert 69 == lukshook(house, "sheet", "house", "--show-key")[0]
    assert 0 == lukshook(house, "sheet", "house")[0]


def test_a_volume_that_is_not_known_here_has_no_sheet(house: KeyVolume) -> None:
    """The hint names both ways to know it."""
    status, sheet, error = lukshook(house, "sheet", "fresh")

    assert (69, "") == (status, sheet)
    assert "lukshook create fresh, or for an image made elsewhere: lukshook trust fresh" in error


@pytest.mark.parametrize("words", [["sheet", "house"], ["key", "new", "fresh"]], ids=" ".join)
def test_a_file_with_the_key_is_closed_to_others(house: KeyVolume, words: list[str]) -> None:
    """`> FILE` makes one that everybody may read."""
    file = house.folder / "out"
    with file.open("w") as out:
        os.fchmod(out.fileno(), 0o644)
        status, _, error = lukshook(house, *words, "--show-key", stdout=out.fileno())

    assert (0, 0o600) == (status, stat.S_IMODE(file.stat().st_mode))
    assert "Recovery sheet" in file.read_text()
    assert "mode 0600 now" in error


def test_a_typed_key_has_no_command_that_prints_it(house: KeyVolume) -> None:
    """There is a line to write it on."""
    config = house.folder / "config.toml"
    config.write_text(config.read_text().replace(f"file:{house.folder}/own.key", "prompt"))

    sheet = lukshook(house, "sheet", "house")[1]

    assert "which this command prints" not in sheet
    assert f"    {'_' * 44}\n" in sheet

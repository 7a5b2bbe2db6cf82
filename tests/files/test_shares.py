"""Shares of a key: any two of three open the volume, one opens nothing, and what is typed wrong is found."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from lukshook.errors import Denied
from lukshook.keys import key_sources, shares
from lukshook.luks import cryptsetup
from lukshook.system.secret import Secret, decode_key
from support import terminal
from support.key_volume import KeyVolume, lukshook, opens

pytest.importorskip("shamir_mnemonic")
pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


@pytest.fixture
def paper(house: KeyVolume) -> Path:
    """A folder that is not the image's, nor open to others."""
    folder = house.folder / "paper"
    folder.mkdir(mode=0o700)
    return folder


def split(house: KeyVolume, file: Path) -> list[Path]:
    """The three sheets."""
    status, _, error = lukshook(house, "key", "split", "house", "2/3", "--output", str(file))
    assert (0, "") == (status, error)
    return [file.with_name(f"{file.stem}-{number}{file.suffix}") for number in (1, 2, 3)]


def words_on(sheet: str) -> str:
    """The share as a person types it: the words of the numbered lines."""
    return " ".join(re.sub(r"\d+", "", line) for line in re.findall(r"^    ( ?\d+ [a-z ]+)$", sheet, re.MULTILINE))


def slots(house: KeyVolume) -> list[int]:
    return [slot.number for slot in cryptsetup.read_header(house.image).slots]


def test_any_two_of_three_sheets_open_the_volume(house: KeyVolume, paper: Path) -> None:
    """Each pair, in each order; one alone does not, and none of them is the volume's own key."""
    sheets = split(house, paper / "offsite.txt")
    assert [0, 1] == slots(house)
    assert {0o600} == {stat.S_IMODE(sheet.stat().st_mode) for sheet in sheets}

    for pair in (*combinations(sheets, 2), sheets[::-1]):
        source = f"shares:{' '.join(map(str, pair))}"
        status, out, _ = lukshook(house, "key", "test", "house", "--key", source)
        assert (0, "opens key slot 1 of volume house\n") == (status, out[-len("opens key slot 1 of volume house\n") :])
    status, _, error = lukshook(house, "key", "test", "house", "--key", f"shares:{sheets[0]} {sheets[0]}")
    assert 77 == status
    assert "1 of 2" in error
    own = (house.folder / "own.key").read_text().strip()
    assert own not in "".join(sheet.read_text() for sheet in sheets)


def test_a_sheet_says_what_its_owner_has_to_know(house: KeyVolume) -> None:
    """How many are needed, of which volume, its UUID, the date, and how it is revoked; each begins a page."""
    status, out, error = lukshook(house, "key", "split", "house", "3/5")
    sheets = out.split("\f")

    assert (0, "", 5) == (status, error, len(sheets))
    uuid = cryptsetup.read_header(house.image).uuid
    for number, sheet in enumerate(sheets, 1):
        assert sheet.startswith(f"Share {number} of 5 of a key of volume house")
        assert "any 3 of the 5 sheets" in sheet
        assert f"LUKS UUID:     {uuid}\n" in sheet
        assert re.search(r"Printed:       \d{4}-\d\d-\d\d by lukshook", sheet)
        assert "lukshook key remove house --slot 1\n" in sheet
        assert 33 == len(words_on(sheet).split())


def test_removing_the_slot_revokes_all_shares(house: KeyVolume, paper: Path) -> None:
    """The volume's own key still opens it."""
    sheets = split(house, paper / "offsite.txt")
    assert 0 == lukshook(house, "key", "remove", "house", "--slot", "1")[0]
    assert 77 == lukshook(house, "key", "test", "house", "--key", f"shares:{sheets[0]} {sheets[1]}")[0]
    assert 0 == lukshook(house, "key", "test", "house")[0]


def test_the_standard_tool_combines_what_is_typed(house: KeyVolume) -> None:
    """The words of two sheets, and the line of the sheet that gives the key to cryptsetup; lukshook takes no part."""
    sheets = lukshook(house, "key", "split", "house", "2/3")[1].split("\f")
    tool, line = re.findall(r"^    (python3 -m shamir.*|echo KEY .*)$", sheets[0], re.MULTILINE)
    typed = f"{words_on(sheets[2])}\n{words_on(sheets[0])}\n"

    argv = [sys.executable, *tool.split()[1:]]
    said = subprocess.run(argv, input=typed, capture_output=True, text=True, check=True).stdout
    (key,) = re.findall("[0-9a-f]{64}", said)
    command = line.replace("KEY", key).replace("luksOpen", "luksOpen --test-passphrase").removesuffix("backup_crypt")

    assert 0 == subprocess.run(["sh", "-c", command], check=False).returncode
    assert opens(house.image, Secret(bytes.fromhex(key)))


@pytest.mark.parametrize("parts", ["3/2", "1/3", "2/17", "2", "0/0", "two/three"])
def test_a_number_of_shares_that_makes_no_sense(house: KeyVolume, parts: str) -> None:
    """64, and nothing is changed."""
    assert (64, "") == lukshook(house, "key", "split", "house", parts)[:2]
    assert [0] == slots(house)


def test_a_sheet_that_cannot_be_written_is_found_before_the_key_is_made(house: KeyVolume, paper: Path) -> None:
    """A name that is taken, one that is no page, a folder that is not there, and the store of the image."""
    (paper / "offsite-2.txt").touch()
    places = {"offsite.txt": 73, "offsite.doc": 64, "none/offsite.txt": 69}
    found = {name: lukshook(house, "key", "split", "house", "2/3", "--output", f"{paper}/{name}")[0] for name in places}
    assert places == found
    assert [0] == slots(house)
    assert ["offsite-2.txt"] == os.listdir(paper)


@pytest.mark.needs("zbarimg", "pdftoppm")
def test_a_camera_reads_the_share(house: KeyVolume, paper: Path) -> None:
    """What a shop prints and a telephone reads goes into `key combine` as it is."""
    pytest.importorskip("segno")
    pytest.importorskip("pydyf")
    sheets = split(house, paper / "offsite.pdf")
    read = ""
    for sheet in sheets[1:]:
        subprocess.run(["pdftoppm", "-r", "120", "-png", "-singlefile", sheet, sheet], check=True)
        argv = ["zbarimg", "--raw", "-q", f"{sheet}.png"]
        read += subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    combined = combine(house, read)

    assert 0 == combined.returncode
    assert opens(house.image, decode_key(combined.stdout.encode(), "combine"))


def combine(house: KeyVolume, given: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LUKSHOOK_CONFIG": str(house.folder / "config.toml")}
    argv = [sys.executable, "-m", "lukshook", "key", "combine", *options]
    return subprocess.run(argv, input=given, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_whole_sheets_are_combined_from_standard_input(house: KeyVolume) -> None:
    """Printed into the pipe, or stored; never over a key that is there."""
    out = lukshook(house, "key", "split", "house", "2/3")[1]
    stored = house.folder / "again.key"

    assert opens(house.image, decode_key(combine(house, out).stdout.encode(), "combine"))
    done = combine(house, out, "--key", f"file:{stored}")
    assert (0, f"stored in file:{stored}\n", "") == (done.returncode, done.stdout, done.stderr)
    assert opens(house.image, decode_key(stored.read_bytes(), "file"))
    assert 73 == combine(house, out, "--key", f"file:{stored}").returncode


KEY = Secret(bytes(range(32)))


def test_what_is_wrong_with_a_share_is_said_without_its_words() -> None:
    """A wrong word, two that are swapped, one that is missing, a share of another key, too few, and none."""
    first, second, third = shares.made(KEY, 2, 3)
    words = second.split()
    swapped = " ".join([*words[:8], words[9], words[8], *words[10:]])
    foreign = shares.made(KEY, 2, 3)[0]
    cases = {
        f"{first}\n{swapped}": "share 2 from here is not usable: a word is wrong or missing, or two are swapped",
        f"{first}\n\n{' '.join(words[:-1])}": "share 2 from here is not usable: a word is wrong",
        f"{first}\n\n{foreign}": "share 2 from here is not usable: it is a share of a different key",
        f"{first}\n{first}": "not enough shares from here: 1 of 2",
        "nothing\nof use": "not enough shares from here: 0 of 2 or more",
    }
    for text, message in cases.items():
        with pytest.raises(Denied, match=re.escape(message)) as caught:
            shares.combined(text, "here")
        said = caught.value.message + caught.value.hint
        assert [] == [word for word in words[4:] if word in re.findall("[a-z]+", said)]
    assert KEY.text().reveal() == shares.combined(f"{third}\n\n{second}\n", "here")


def test_shares_are_typed_on_the_terminal(house: KeyVolume, paper: Path) -> None:
    """Line by line as they stand on the sheet; a word that is in no share, and a wrong share, are asked for again."""
    sheets = split(house, paper / "offsite.txt")
    lines = [re.findall(r"^    ( ?\d+ [a-z ]+)$", sheet.read_text(), re.MULTILINE) for sheet in sheets]
    mistyped = lines[0][1].replace(lines[0][1].split()[2], "luxhook", 1)
    rest = f"{lines[0][1].split()[2]} {lines[0][1].split()[3]}"
    answers = [lines[0][0], mistyped, rest, *lines[0][2:]]
    wrong = [*lines[2][:-1], " ".join(reversed(lines[2][-1].split()[1:]))]
    answers += [*wrong, *lines[2]]

    session = terminal.answered(AtTheTerminal(house), ["key", "test", "house", "--key", "shares"], answers)

    assert 0 == session.returncode, session.seen
    assert "word 5 is in no share. Go on from it:" in session.seen
    assert "a word is wrong or missing, or two are swapped. Once more" in session.seen
    assert "Share 2 of 2 of volume house [from word 1 of 33]: " in session.seen
    assert "opens key slot 1 of volume house\n" in session.seen
    assert lines[0][4].split()[1] not in session.seen


class AtTheTerminal:
    """What `terminal.answered` asks of a volume."""

    def __init__(self, house: KeyVolume) -> None:
        self.config = house.folder / "config.toml"
        self.environment = {
            "LUKSHOOK_RUN_DIR": str(house.site.run_folder),
            "LUKSHOOK_STATE_DIR": str(house.site.state_folder),
        }


def test_a_job_without_a_terminal_is_not_asked(house: KeyVolume) -> None:
    """77 at once, with the way to name files."""
    argv = [sys.executable, "-m", "lukshook", "key", "test", "house", "--key", "shares"]
    environment = {
        **os.environ,
        "LUKSHOOK_CONFIG": str(house.folder / "config.toml"),
        "LUKSHOOK_RUN_DIR": str(house.site.run_folder),
        "LUKSHOOK_STATE_DIR": str(house.site.state_folder),
    }
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert 77 == done.returncode
    assert "shares:FILE FILE" in done.stderr


def test_a_key_is_not_shown_on_a_terminal(house: KeyVolume) -> None:
    """64: the words on the sheets are enough to be careful with."""
    session = terminal.answered(AtTheTerminal(house), ["key", "combine"], [])
    assert 64 == session.returncode


@pytest.mark.parametrize("argument", ["relative", "/a 'b", "/a\nb"])
def test_files_have_whole_names(argument: str) -> None:
    """78 when the configuration is read."""
    with pytest.raises(Exception, match="cannot be used"):
        key_sources.parse(f"shares:{argument}")


def test_shares_that_nobody_got_are_named(house: KeyVolume) -> None:
    """The printer is not there: the key has its slot, and the line that removes it is in the warning."""
    read, write = os.pipe()
    os.close(read)
    status, _, error = lukshook(house, "key", "split", "house", "2/3", stdout=write)
    os.close(write)

    assert 0 != status
    assert "remove the key: lukshook key remove house --slot 1" in error
    assert 0 == lukshook(house, "key", "remove", "house", "--slot", "1")[0]

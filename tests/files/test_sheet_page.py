"""The recovery sheet as a page: what a camera reads on it, what a shell makes of its lines, who can read it."""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import stat
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import Usage
from lukshook.report import page, sheet
from lukshook.report.sheet import Sheet
from support.direct_volume import parsed
from support.key_volume import KeyVolume, lukshook

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]
KINDS = ["pdf", "svg", "txt"]
#: Makes a picture of a page in black and white, as a printer does.
PICTURES = {"pdf": "pdftoppm -r 120 -png -singlefile {0} {0}", "svg": "rsvg-convert --zoom 2 {0} --output {0}.png"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def shown(tmp_path: Path) -> Sheet:
    """A sheet of a volume whose paths have blanks and quotes."""
    folder = tmp_path / 'it\'s a "folder"'
    folder.mkdir()
    key = base64.b64encode(os.urandom(32)).decode()
    return Sheet(parsed(folder, size=None, fill=None), folder / "offsite.header", "0b6a3e0e-7c5d-4d0e-9f6a", key)


def folder_of(house: KeyVolume) -> Path:
    """One that is not the image's, nor open to others."""
    folder = house.folder / "paper"
    folder.mkdir(mode=0o700)
    return folder


def needed(kind: str) -> None:
    """Skip where the libraries or tools for *kind* are not there."""
    for library in {"pdf": ("segno", "pydyf"), "svg": ("segno",), "txt": ()}[kind]:
        pytest.importorskip(library)


@pytest.mark.needs("zbarimg", "pdftoppm", "rsvg-convert", "pdfinfo")
@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_a_camera_reads_the_key(house: KeyVolume, kind: str) -> None:
    """Nobody types 44 letters without a mistake."""
    needed(kind)
    file = folder_of(house) / f"sheet.{kind}"
    status, out, error = lukshook(house, "sheet", "house", "--output", str(file))
    assert (0, "") == (status, error)
    assert f"shred -u {file}" in out

    subprocess.run(PICTURES[kind].format(file).split(), check=True)
    read = subprocess.run(["zbarimg", "--raw", "-q", f"{file}.png"], capture_output=True, text=True, check=True)

    assert (house.folder / "own.key").read_text() == read.stdout
    if kind == "pdf":
        told = subprocess.run(["pdfinfo", file], capture_output=True, text=True, check=True)
        assert re.search(r"Pages: +1\n", told.stdout)


@pytest.mark.parametrize(
    "place", ["/b.img", "/a b's.img", f"/{'long/' * 60}b.img", "/" + "it's " * 50, "/" + "'" * 100]
)
def test_a_shell_makes_the_same_of_the_lines(shown: Sheet, place: str) -> None:
    """They are broken where a shell does not mind, also within a name, and each fits on the page."""
    needed("svg")
    image = evolve(shown.volume.image, image=Path(place))
    shown = evolve(shown, volume=evolve(shown.volume, image=image))
    texts = list(texts_of(page.made(shown, Path("x.svg"))))
    typed = "\n".join(text.text or "" for text in texts if float(text.get("x", 0)) == 56)

    ends = [float(text.get("x", 0)) + len(text.text or "") * 0.6 * float(text.get("font-size", 0)) for text in texts]

    assert max(ends) < 560
    wanted = [shlex.split(line) for _, lines in shown.parts() for line in lines]
    assert wanted == [shlex.split(line) for line in typed.replace("\\\n", "").split("\n")]
    assert typed.count("\\\n") > 1


@pytest.mark.needs("pdftotext")
def test_a_pdf_says_what_an_svg_says(shown: Sheet, tmp_path: Path) -> None:
    """The same page; letters of Western Europe are there too."""
    needed("pdf")
    shown = evolve(shown, volume=evolve(shown.volume, header_backup_at="bei Zoë, Straße 1"))
    (tmp_path / "x.pdf").write_bytes(page.made(shown, Path("x.pdf")))
    said = subprocess.run(["pdftotext", "-layout", tmp_path / "x.pdf", "-"], capture_output=True, text=True, check=True)

    words = "".join(text.text or "" for text in texts_of(page.made(shown, Path("x.svg"))))
    assert sorted(words.replace(" ", "")) == sorted("".join(said.stdout.split()))
    assert "bei Zoë, Straße 1" in said.stdout


def texts_of(svg: bytes) -> Iterator[ET.Element]:
    return ET.fromstring(svg.decode()).iter(f"{SVG}text")


def test_letters_that_a_pdf_has_not(shown: Sheet) -> None:
    """They are refused, not shown as something else; an SVG has them."""
    needed("pdf")
    shown = evolve(shown, volume=evolve(shown.volume, header_backup_at="при Зои"))
    with pytest.raises(Usage, match='no "п" in'):
        page.made(shown, Path("x.pdf"))
    assert "при Зои".encode() in page.made(shown, Path("x.svg"))


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_what_does_not_fit_is_refused(shown: Sheet, kind: str) -> None:
    """A line that runs off the page is worse than none; a text has room."""
    needed(kind)
    many = evolve(shown, volume=evolve(shown.volume, key=tuple(f"file:/{number}" for number in range(60))))
    with pytest.raises(Usage, match="does not fit"):
        page.made(many, Path(f"x.{kind}"))
    assert sheet.text(many).encode() == page.made(many, Path("x.txt"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_its_owners_alone(house: KeyVolume, kind: str) -> None:
    """Whatever the umask, and no file is ever written over."""
    needed(kind)
    file = folder_of(house) / f"Sheet.{kind.upper()}"
    old = os.umask(0)
    try:
        assert 0 == lukshook(house, "sheet", "house", "--output", str(file))[0]
    finally:
        os.umask(old)

    content = file.read_bytes()
    assert (0o600, 1) == (stat.S_IMODE(file.stat().st_mode), file.stat().st_nlink)
    assert 73 == lukshook(house, "sheet", "house", "--output", str(file))[0]
    assert content == file.read_bytes()


@pytest.mark.parametrize("words", [("sheet", "house", "--output"), ("create", "fresh", "--sheet")], ids=" ".join)
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("x.doc", 64, "ends in none of .pdf, .svg, .txt"),
        ("a\nb.txt", 64, "is not a path on one line"),
        ("there.txt", 73, "already exists"),
        ("link.txt", 73, "already exists"),
        ("none/x.txt", 69, "No such file or directory"),
        ("open/x.txt", 77, "would not be safe from other users"),
        ("x.txt", 77, "on the image's store"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_done(
    house: KeyVolume, words: tuple[str, ...], name: str, status: int, said: str
) -> None:
    """No volume is made whose sheet then fails; a link leads nowhere."""
    (house.folder / "there.txt").touch()
    (house.folder / "link.txt").symlink_to(house.folder / "target")
    (house.folder / "open").mkdir()
    (house.folder / "open").chmod(0o777)
    before = sorted(house.folder.iterdir())

    done = lukshook(house, *words, str(house.folder / name))

    assert (status, "") == done[:2]
    assert said in done[2]
    assert before == sorted(house.folder.iterdir())


def test_a_dry_run_writes_nothing(house: KeyVolume) -> None:
    file = folder_of(house) / "sheet.txt"
    status, out, _ = lukshook(house, "--dry-run", "sheet", "house", "--output", str(file))

    assert (0, f"# writes the recovery sheet with the key to {file}\n") == (status, out)
    assert [] == list(file.parent.iterdir())

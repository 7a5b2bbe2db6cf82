"""What `check` says of a ledger: what each close will cost, and what is known of the image."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.errors import Unavailable
from lukshook.layers import image, qemu
from lukshook.ledger import ledger
from lukshook.ledger.ledger import BAD
from lukshook.ledger.pieces import PIECE
from lukshook.report import check
from lukshook.report.check import Finding
from lukshook.system.command import Runner
from lukshook.system.secret import Secret
from lukshook.volume.context import Site
from support.fake_runner import FakeRunner

COUNT = 40
CLOSES, KNOWS = "each close reads", "the image was never verified as a whole"


def findings(folder: Path, *, kept: bool = True) -> list[Finding]:
    """All findings for a volume of the userspace engine."""
    table = {"image": str(folder / "v.img"), "mountpoint": str(folder / "mnt"), "key": "prompt"}
    options = {**table, "engine": "userspace", "ledger": kept}
    volume = config.parse({"volumes": {"v": options}}, folder / "c.toml").volumes["v"]
    site = Site(folder / "run", folder / "state", FakeRunner(), lambda volume: Secret(b""), print)
    return list(check.volume(volume, site, {}))


def about(words: str, found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.level, one.text, one.hint) for one in found if words in one.text]


def book_in(folder: Path) -> ledger.Ledger:
    (folder / "state").mkdir(mode=0o700)
    book = ledger.begin(folder / "state/v.ledger", COUNT * PIECE, "")
    book.mark(0, array("H", (ledger.today(),) * COUNT))
    book.save(book.state)
    return book


def test_an_engine_that_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu.Spec, "can_record", lambda spec, runner: True)
    found = about(CLOSES, findings(tmp_path))
    assert [("ok", "what is written is recorded, so each close reads only that again", "")] == found


def test_an_engine_that_cannot_say_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu.Spec, "can_record", lambda spec, runner: False)
    ((level, text, _),) = about(CLOSES, findings(tmp_path))
    assert "warning" == level
    assert text.startswith("each close reads the whole image: the ")


def test_a_tool_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that has it."""

    def lacks(spec: object, runner: Runner) -> bool:
        raise Unavailable("qemu-img is not installed", hint="apt-get install qemu-utils")

    monkeypatch.setattr(qemu.Spec, "can_record", lacks)
    found = about(CLOSES, findings(tmp_path))
    line = "each close reads the whole image: qemu-img is not installed"
    assert [("warning", line, "apt-get install qemu-utils")] == found


def test_any_layer_of_the_engine_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.Spec, "can_record", lambda spec, runner: True)
    assert ["ok"] == [level for level, _, _ in about(CLOSES, findings(tmp_path))]


def test_without_a_ledger_nothing_is_said(tmp_path: Path) -> None:
    assert [] == about("verified", findings(tmp_path, kept=False))
    assert [] == about(CLOSES, findings(tmp_path, kept=False))


def test_a_ledger_that_is_not_there_yet(tmp_path: Path) -> None:
    assert [("warning", "there is no ledger yet")] == [one[:2] for one in about("no ledger", findings(tmp_path))]


def test_an_image_that_was_never_verified(tmp_path: Path) -> None:
    """Unless all of it was read and found right lately, as after `create`, or in parts."""
    with book_in(tmp_path) as book:
        assert ["100 % of the image was verified within 30 days"] == [
            text for _, text, _ in about("verified", findings(tmp_path))
        ]
        book.mark(0, array("H", (0,) * 4))

    assert [("warning", KNOWS, "lukshook verify v")] == about("verified", findings(tmp_path))

    found = ledger.load(tmp_path / "state/v.ledger")
    assert found is not None
    with found:
        found.save(evolve(found.state, verified=1790000000.0))
    assert [("ok", "90 % of the image was verified within 30 days", "")] == about("verified", findings(tmp_path))


def test_known_damage(tmp_path: Path) -> None:
    """Also where the option was dropped since."""
    with book_in(tmp_path) as book:
        book.mark(0, array("H", (BAD, BAD)))
    found = about("damaged pieces", findings(tmp_path, kept=False))
    assert [("warning", "damaged pieces of the image: 2", "lukshook verify --name-files v")] == found


def test_a_damaged_ledger(tmp_path: Path) -> None:
    with book_in(tmp_path) as book:
        (book.folder / "ledger.json").write_text("[")
    ((level, text, hint),) = about("ledger is damaged", findings(tmp_path))
    assert ("warning", "lukshook verify v") == (level, hint)
    assert text.startswith("the ledger is damaged: ")

"""What `status` and the metrics say of a ledger: numbers, without the lock, and nothing is changed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.cli import status as status_command
from lukshook.config import Volume
from lukshook.ledger import changes, ledger, summary
from lukshook.ledger.columns import STEP
from lukshook.ledger.ledger import BAD, DAMAGED, INTACT, UNKNOWN, Ledger
from lukshook.ledger.pieces import PIECE
from lukshook.report import metrics, status
from lukshook.system import json_files
from lukshook.system.secret import Secret
from lukshook.volume.context import Site
from support.fake_runner import FakeRunner

COUNT = 100


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A volume whose image is there."""
    with (tmp_path / "v.img").open("wb") as image:
        image.truncate(COUNT * PIECE)
    paths = {"image": str(tmp_path / "v.img"), "mountpoint": str(tmp_path / "mnt")}
    table = {**paths, "key": "prompt", "engine": "kernel", "ledger": True}
    return config.parse({"volumes": {"v": table}}, tmp_path / "c.toml").volumes["v"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "state").mkdir(mode=0o700)
    return Site(tmp_path / "run", tmp_path / "state", FakeRunner(), lambda volume: Secret(b""), print)


def book_of(site: Site, count: int = COUNT) -> Ledger:
    """A new ledger in which every piece was read today."""
    book = ledger.begin(site.state_folder / "v.ledger", count * PIECE, "")
    book.mark(0, array("H", (ledger.today(),) * count))
    return book


@pytest.mark.parametrize("count", [1, COUNT, STEP, STEP + 1, 2 * STEP + 77])
def test_the_numbers_are_those_of_a_simple_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whatever the marks are, over the edges of what is read at once, and of a byte."""
    chance = random.Random(count)
    for today in (1, 20, 256, 270, 300, 5000):
        monkeypatch.setattr(ledger, "today", lambda today=today: today)
        days = [0, *range(max(today - 35, 1), today + 4)]
        with ledger.begin(tmp_path / f"{today}.ledger", count * PIECE, "") as book:
            marks = [chance.choice(days) | chance.choice((0, 0, 0, BAD, UNKNOWN, BAD | UNKNOWN)) for _ in range(count)]
            book.mark(0, array("H", marks))

        found = summary.of(tmp_path / f"{today}.ledger")

        assert found is not None
        assert count == found.count
        assert sum(max(today - 29, 1) <= mark <= today for mark in marks) == found.recent
        assert sum(bool(mark & BAD) for mark in marks) == found.bad
        assert sum(bool(mark & UNKNOWN) for mark in marks) == found.unknown


def test_a_new_ledger_is_all_unknown(tmp_path: Path) -> None:
    """Marks that are all alike are counted at once."""
    with ledger.begin(tmp_path / "v.ledger", 3 * STEP * PIECE, ""):
        pass
    found = summary.of(tmp_path / "v.ledger")
    assert found is not None
    assert (0, 0, 3 * STEP, 0.0) == (found.recent, found.bad, found.unknown, found.share)


def test_nothing_is_changed(site: Site) -> None:
    """Not even a change that is decided on: that needs the volume's lock."""
    with book_of(site) as book:
        entries = [(3, b"x" * 16)]
        changes.Changes.write(book.folder / "changes", entries, {"version": 1})
    before = {path.name: path.stat().st_mtime_ns for path in book.folder.iterdir()}

    summary.of(book.folder)

    assert before == {path.name: path.stat().st_mtime_ns for path in book.folder.iterdir()}


def test_there_may_be_no_ledger(tmp_path: Path) -> None:
    assert summary.of(tmp_path / "v.ledger") is None


def test_status_says_what_is_known(volume: Volume, site: Site) -> None:
    """Of a volume in good order."""
    with book_of(site) as book:
        book.save(evolve(book.state, verified=1790000000.0, result=INTACT))

    fact = status.of(volume, site)

    assert fact.problem is None
    assert ("up to date", 1790000000.0, "intact", 1.0, 0, 0) == (
        fact.ledger,
        fact.last_full_verify,
        fact.last_verify,
        fact.verified_share,
        fact.bad_pieces,
        fact.unknown_pieces,
    )
    (line,) = [line for line in status_command._paragraph(fact) if "verified" in line]
    assert line.endswith("; 100 % of it within 30 days")


def test_a_volume_without_a_ledger_has_no_such_facts(volume: Volume, site: Site) -> None:
    fact = status.of(volume, site)
    assert (None, None, None) == (fact.ledger, fact.verified_share, fact.bad_pieces)
    assert not [line for line in status_command._paragraph(fact) if "verified" in line]


def test_damage_is_a_problem_with_what_to_do(volume: Volume, site: Site) -> None:
    with book_of(site) as book:
        book.mark(7, array("H", (BAD | 3, UNKNOWN | BAD)))
        book.save(evolve(book.state, result=DAMAGED, writing=True))

    fact = status.of(volume, site)

    assert "2 pieces of the image are damaged; which files: lukshook verify --name-files v" == fact.problem
    assert ("writing", "damaged", 0.98, 2, 1) == (
        fact.ledger,
        fact.last_verify,
        fact.verified_share,
        fact.bad_pieces,
        fact.unknown_pieces,
    )
    (line,) = [line for line in status_command._paragraph(fact) if "verified" in line]
    assert line.endswith(
        "the whole image never; 98 % of it within 30 days; unknown pieces: 1; the last close was not clean"
    )


def test_another_length_is_a_problem_unless_it_may_change(volume: Volume, site: Site) -> None:
    """Seen without reading the image."""
    with book_of(site, COUNT + 1) as book:
        book.save(book.state)
        assert (status.of(volume, site).problem or "").startswith("the image is shorter than at its last close: ")
        book.save(evolve(book.state, writing=True))
        assert status.of(volume, site).problem is None


@pytest.mark.parametrize("damage", ["{", None])
def test_a_damaged_ledger_is_a_problem(volume: Volume, site: Site, damage: str | None) -> None:
    """And the rest is shown: of the volume, and of the others."""
    with book_of(site) as book:
        pass
    if damage is None:
        (book.folder / "read").unlink()
    else:
        (book.folder / "ledger.json").write_text(damage)

    fact = status.of(volume, site)

    how = "cannot be read" if damage is None else "is damaged"
    assert (fact.problem or "").startswith(f"the ledger of volume v {how}: ")
    assert ("damaged", None) == (fact.ledger, fact.bad_pieces)
    assert COUNT * PIECE == fact.size


def test_the_metrics_have_the_same_numbers(volume: Volume, site: Site, tmp_path: Path) -> None:
    with book_of(site) as book:
        book.mark(0, array("H", (BAD,)))
        book.save(evolve(book.state, verified=1790000000.0, result=DAMAGED))

    metrics.write(tmp_path / "m.prom", volume, site, failed=False)

    found = dict(line.rsplit(" ", 1) for line in (tmp_path / "m.prom").read_text().splitlines() if line[0] != "#")
    names = ("ledger_up_to_date", "last_full_verify_timestamp_seconds", "last_verify_failed", "verified_ratio")
    numbers = [found[f'lukshook_{name}{{volume="v"}}'] for name in (*names, "bad_pieces", "unknown_pieces")]
    assert ["1", "1790000000", "1", "0.99", "1", "0"] == numbers


def test_a_verification_does_not_say_how_the_backup_went(volume: Volume, site: Site, tmp_path: Path) -> None:
    """The line about the last backup stays as it is, and the others are new."""
    site = evolve(site, metrics=tmp_path / "m.prom")
    metrics.bring_up_to_date(volume, site, failed=True)
    with book_of(site):
        pass

    metrics.bring_up_to_date(volume, site)

    text = (tmp_path / "m.prom").read_text()
    assert 'lukshook_last_failed{volume="v"} 1' in text
    assert 'lukshook_bad_pieces{volume="v"} 0' in text


def test_status_reads_no_code_of_ledgers_without_one(tmp_path: Path) -> None:
    """Each start pays for what it imports."""
    code = (
        "import sys; from lukshook.cli import status; from lukshook.report import metrics; "
        "print([name for name in sys.modules if name.startswith('lukshook.ledger')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "[]\n" == found.stdout


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    """A newer lukshook's ledger."""
    with ledger.begin(tmp_path / "v.ledger", PIECE, "") as book:
        book.save(evolve(book.state, version=99))
    with pytest.raises(json_files.Damaged):
        summary.of(tmp_path / "v.ledger")

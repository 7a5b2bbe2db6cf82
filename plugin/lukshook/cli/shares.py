"""Shares of a key, for several people: `key split`, `key combine`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import click
from attrs import evolve

from lukshook.cli.logged import logged
from lukshook.cli.main import App, absolute, guarded, name_argument, pass_app, say, warn
from lukshook.cli.sheet import check_place, close_to_others, write_new
from lukshook.config import Volume
from lukshook.errors import Denied, LukshookError, Usage
from lukshook.keys import key_sources, shares
from lukshook.luks.header import slots_in_words
from lukshook.report import page, sheet
from lukshook.report.share_sheet import ShareSheet
from lukshook.system.secret import Secret, decode_key
from lukshook.volume import key_script, key_slots

#: Bytes of sheets that are read from a pipe.
_MOST = 1 << 20


@click.command("split")
@name_argument
@click.argument("parts", metavar="K/N")
@click.option(
    "--output",
    type=Path,
    metavar="FILE",
    help="Write one page for each share: with offsite.pdf, offsite-1.pdf and so on; .pdf, .svg or .txt.",
)
@pass_app
def split_command(app: App, name: str, parts: str, output: Path | None) -> int:
    """Make a new key for volume NAME, and print N sheets with a share each; any K of them open the image.

    The key has a key slot of its own, and is kept nowhere else. The volume's own key stays as it is. To revoke all
    shares, remove the key slot:

    \b
      lukshook key split offsite 2/3 --output /root/offsite.pdf
      lukshook key remove offsite --slot N
    """

    def work() -> int:
        volume = app.volume(name)
        needed, total = _numbers(parts)
        file = absolute(output) if output else None
        os.chdir("/")
        if app.runner.dry:
            for line in key_script.split(volume, app.site(), needed, total):
                app.runner.note(line)
            return 0
        _split(app, volume, needed, total, file)
        return 0

    return logged(app, name, work)


def _numbers(parts: str) -> tuple[int, int]:
    match = re.fullmatch("([0-9]{1,2})/([0-9]{1,2})", parts)
    needed, total = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 2 <= needed <= total <= shares.MOST_SHARES:
        raise Usage(
            f"{parts} is not a number of shares",
            hint=f"2/3 makes 3 shares of which any 2 open the image; at least 2, and at most {shares.MOST_SHARES}",
        )
    return needed, total


def _split(app: App, volume: Volume, needed: int, total: int, file: Path | None) -> None:
    """Refuse what can be refused, make the key and its shares, let it open the image, and only then print."""
    key = key_slots.new_key()
    try:
        texts = shares.made(key, needed, total)
        shown = sheet.of_known(volume, app.site())
        papers = [ShareSheet(shown, number, total, needed, text) for number, text in enumerate(texts, 1)]
        places = [_place(file, paper.number) for paper in papers] if file else []
        for place, paper in zip(places, papers, strict=False):
            page.made(evolve(paper, slots=(88, 88)), place)
            check_place(app, place, volume)
        if not file:
            close_to_others()
        slots = key_slots.add_new(volume, app.site(), key)
    finally:
        key.wipe()
    _print([evolve(paper, slots=slots) for paper in papers], places)


def _place(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-{number}{file.suffix}")


def _print(papers: list[ShareSheet], places: list[Path]) -> None:
    name, slots = papers[0].sheet.volume.name, papers[0].slots
    again = " && ".join(f"lukshook key remove {name} --slot {slot}" for slot in slots)
    try:
        for place, paper in zip(places, papers, strict=False):
            write_new(place, page.made(paper, place), f"{again}; then split again")
        if not places:
            end = "\n" if sys.stdout.isatty() else "\f"  # a printer begins a new sheet there
            click.echo(end.join(map(sheet.text, papers)), nl=False)
            sys.stdout.flush()
    except (LukshookError, OSError):
        warn(f"{slots_in_words(slots)} of volume {name}: its shares were not all written; remove the key: {again}")
        raise
    if not places:
        return
    say(f"the shares are in {', '.join(map(str, places))}: print each of them, then remove them:")
    say(f"  shred -u {shlex.join(map(str, places))}")
    say(f"any {papers[0].needed} of them open {slots_in_words(slots)} of volume {name}; to try it:")
    say(f"  lukshook drill {name} --key shares")
    say("a copy of the header backup that is older than this does not open with them: make a new one")


@click.command("combine")
@click.option("--key", "source", metavar="SOURCE", help="Store the key in this key source instead of printing it.")
@pass_app
def combine_command(app: App, source: str | None) -> int:
    """Put the shares of a key together: typed on the terminal, or from standard input.

    Prints the key in base64, into a pipe or a file only. Standard input may be the texts of whole sheets:

    \b
      lukshook key combine | base64 --decode | cryptsetup luksOpen --key-file=- IMAGE backup_crypt
      cat anna.txt carl.txt | lukshook key combine --key file:/root/offsite.key
    """
    return guarded(lambda: _combine(app, source))


def _combine(app: App, source: str | None) -> int:
    if source:
        key_sources.parse(source)
    elif sys.stdout.isatty():
        raise Usage(
            "the key is not shown on a terminal", hint="lukshook key combine | ..., or --key SOURCE to store it"
        )
    if app.runner.dry:
        app.runner.note(key_sources.making(source) if source else "python3 -m shamir_mnemonic.cli recover")
        return 0
    key = _combined()
    try:
        text = key.text().reveal().decode()
        if source:
            keep(source, text)
            say(f"stored in {key_sources.name_of(source)}")
        else:
            close_to_others()
            click.echo(text)
    finally:
        key.wipe()
    return 0


def _combined() -> Secret:
    if os.isatty(0):
        return key_sources.obtain(["shares"], key_sources.Asking(os.environ, "", warn))
    read = key_sources.drain(0, "standard input", _MOST)
    if not read:
        raise Denied("there is no share on standard input", hint="without a pipe, lukshook asks on the terminal")
    return decode_key(shares.combined(read.decode(errors="replace"), "standard input"), "the shares")


def keep(place: str, text: str) -> None:
    """Store a new key in the key source *place*. Raises `Usage` where that cannot store one."""
    source, argument = key_sources.parse(place)
    if source.store is None:
        raise Usage(
            f"lukshook cannot store a key in {key_sources.name_of(place)}",
            hint="print a key with `lukshook key new`, and store it there",
        )
    source.store(argument, text)

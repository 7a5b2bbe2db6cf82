"""Is what lies on the store what this host wrote: `verify`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, name_argument, pass_app, say, warn
from lukshook.cli.volume import progress_bar
from lukshook.config import Volume
from lukshook.errors import LukshookError, Refused, Usage
from lukshook.ledger import pieces
from lukshook.proof import verify
from lukshook.proof.verify import Asked, Damage, Verified
from lukshook.report import metrics

if TYPE_CHECKING:
    from lukshook.proof.names import Named


@click.command("verify")
@name_argument
@click.option("--part", metavar="SHARE", help="Read only a share, such as 5%: what was not read for the longest time.")
@click.option("--rate", metavar="SIZE", help="Read at most so much a second, such as 20MiB.")
@click.option("--restart", is_flag=True, help="Begin again where an earlier verification was interrupted.")
@click.option("--name-files", is_flag=True, help="Name the files in damaged pieces; this asks for the key.")
@click.option("--copy", "target", metavar="TARGET", help="Verify the copy at that path, or of that name, instead.")
@pass_app
def verify_command(
    app: App, name: str, part: str | None, rate: str | None, restart: bool, name_files: bool, target: str | None
) -> int:
    """Verify that the image of volume NAME is as this host wrote it.

    Reads the image on the store, without the key, and compares every piece with the ledger of this host. The volume
    may be open: what is written meanwhile is left out. An interrupted verification continues where it stopped. The exit
    status is 65 if a piece is damaged, and 69 if the store does not answer.
    """
    asked = Asked(_share(part), _rate(rate), restart)
    if target is None:
        return logged(app, name, lambda: _verify(app, name, asked, name_files=name_files))
    if asked != Asked() or name_files:
        raise Usage("a copy is always read as a whole", hint="use --copy without other options")
    return logged(app, name, lambda: _verify_copy(app, name, target))


def verify_whole(app: App, name: str) -> None:
    """All of the image has to be as this host wrote it. Raises `Refused`, and what `verify` raises."""
    _verify(app, name, Asked(), name_files=False)


def _verify(app: App, name: str, asked: Asked, *, name_files: bool) -> int:
    volume = app.volume(name)
    os.chdir("/")
    label = f"Reading {Path(volume.image.shown).name}"
    try:
        found = verify.verify(volume, app.site(), asked, progress_bar(label))
    finally:
        metrics.bring_up_to_date(volume, app.site())
    if found is None:
        return 0
    for line in _lines(found):
        say(line)
    if name_files and not app.runner.dry:
        _name_files(app, volume)
    count = found.count + found.earlier
    if count or found.length:
        wrong = f"{_pieces(count)} {'is' if count == 1 else 'are'} damaged" if count else ""
        raise Refused(
            f"the image of volume {name} is not as this host wrote it: "
            + "; ".join(filter(None, (wrong, found.length))),
            hint=_advice(name, found),
        )
    say(f"volume {name}: {size.show(found.compared)} compared with the ledger, all intact")
    return 0


def _advice(name: str, found: Verified) -> str:
    if found.newer:
        return (
            "was this host restored from a backup, or has another one written to the image? then it is newer than what "
            f"this host knows, and not damaged: lukshook trust {name} (docs/recovery.md); if not: docs/verify.md"
        )
    return f"repair it from a copy: lukshook heal {name} --from TARGET; without a copy: docs/verify.md"


def _verify_copy(app: App, name: str, target: str) -> int:
    from lukshook.cli.copy import target_path  # noqa: PLC0415 - only for a copy
    from lukshook.proof import verify_copy  # noqa: PLC0415 - only for a copy

    volume = app.configured(name)
    path = target_path(volume, target)
    os.chdir("/")
    found = verify_copy.verify_copy(volume, app.site(), path, progress_bar(f"Reading {path}"))
    for first, number in found.bad:
        say(f"damaged: {min(number * found.piece, found.size - first * found.piece)} bytes at {first * found.piece}")
    count = pieces.total(found.bad)
    wrong = f"{_pieces(count)} {'is' if count == 1 else 'are'} wrong" if count else ""
    interrupted = f"; a change of it was interrupted: lukshook copy {name} {path}" if found.changing else ""
    if wrong or found.length:
        raise Refused(
            f"the copy at {path} is not what was copied there: {'; '.join(filter(None, (wrong, found.length)))}",
            hint=f"to send what differs again: lukshook copy {name} {path} --adopt{interrupted}",
        )
    older = f"an older state: the image was closed {_times(found.behind)} since"
    state = older if found.behind else "the state of the last close"
    say(f"{path}: {size.show(found.size)} compared, all intact; it has {state}{interrupted}")
    return 0


def _name_files(app: App, volume: Volume) -> None:
    """One line for each file; where nobody can tell, a warning: what was found counts all the same."""
    from lukshook.proof import names  # noqa: PLC0415 - only for damage

    try:
        named = names.name(volume, app.site())
    except LukshookError as error:
        warn(f"the files cannot be named: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return
    for line in _parts(named, volume) if named is not None else ():
        say(line)


def _parts(named: Named, volume: Volume) -> Iterator[str]:
    if named.header:
        yield f"affected: the header (lukshook header restore {volume.name})"
    for path in named.owners.files:
        yield f"affected: {volume.mountpoint}{path}" if path.startswith("/") else f"affected: {path}"
    if named.owners.own:
        yield f"affected: {size.show(named.owners.own)} of the file system's own data"
    if named.owners.unused:
        yield f"no harm: {size.show(named.owners.unused)} of unused space"


def _lines(found: Verified) -> list[str]:
    lines = [f"damaged: {damage.length} bytes at {damage.offset} ({damage.how})" for damage in _merged(found.bad)]
    if found.count > len(found.bad):
        lines.append(f"damaged: {_pieces(found.count - len(found.bad))} more")
    if found.earlier:
        lines.append(f"damaged: {_pieces(found.earlier)} that an earlier verification found")
    if found.settled:
        lines.append(
            f"{_pieces(found.settled)} may have been written while nothing recorded it: what is there now counts"
        )
    if found.open:
        lines.append(f"{_pieces(found.open)} left out: they may have been written since the last clean close")
    return lines


def _pieces(number: int) -> str:
    return "1 piece" if number == 1 else f"{number} pieces"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _merged(bad: tuple[Damage, ...]) -> list[Damage]:
    """Damage of one sort in one place is one line."""
    joined: list[Damage] = []
    for damage in bad:
        last = joined[-1] if joined else None
        if last is not None and last.offset + last.length == damage.offset and last.how == damage.how:
            joined[-1] = Damage(last.offset, last.length + damage.length, last.how)
        else:
            joined.append(damage)
    return joined


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text)
    if not match or not 0 < float(match[1]) <= 100:
        raise Usage(f"{text!a} is not a share of the image", hint="for example: --part 5%")
    return float(match[1]) / 100


def _rate(text: str | None) -> int | None:
    if text is None:
        return None
    rate = size.parse(text)
    if not rate:
        raise Usage("a rate of nothing reads nothing", hint="for example: --rate 20MiB")
    return rate

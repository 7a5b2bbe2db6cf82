"""Is what lies on the store what this host wrote: `verify`."""

from __future__ import annotations

import os
import re

import click

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, name_argument, pass_app, say
from lukshook.cli.volume import progress_bar
from lukshook.errors import Refused, Usage
from lukshook.proof import verify
from lukshook.proof.verify import Asked, Damage, Verified
from lukshook.report import metrics


@click.command("verify")
@name_argument
@click.option("--part", metavar="SHARE", help="Read only a share, such as 5%: what was not read for the longest time.")
@click.option("--rate", metavar="SIZE", help="Read at most so much a second, such as 20MiB.")
@click.option("--restart", is_flag=True, help="Begin again where an earlier verification was interrupted.")
@pass_app
def verify_command(app: App, name: str, part: str | None, rate: str | None, restart: bool) -> int:
    """Verify that the image of volume NAME is as this host wrote it.

    Reads the image on the store, without the key, and compares every piece with the ledger of this host. The volume
    may be open: what is written meanwhile is left out. An interrupted verification continues where it stopped. The exit
    status is 65 if a piece is damaged, and 69 if the store does not answer.
    """
    return logged(app, name, lambda: _verify(app, name, Asked(_share(part), _rate(rate), restart)))


def _verify(app: App, name: str, asked: Asked) -> int:
    volume = app.volume(name)
    os.chdir("/")
    label = f"Reading {volume.image.image.name}"
    try:
        found = verify.verify(volume, app.site(), asked, progress_bar(label))
    finally:
        metrics.bring_up_to_date(volume, app.site())
    for line in _lines(found):
        say(line)
    if found.count or found.length:
        wrong = f"{found.count} {'piece is' if found.count == 1 else 'pieces are'} damaged" if found.count else ""
        raise Refused(
            f"the image of volume {name} is not as this host wrote it: "
            + "; ".join(filter(None, (wrong, found.length))),
            hint=f"from a replica: lukshook heal {name} --from TARGET; docs/verify.md",
        )
    say(f"volume {name}: {size.show(found.compared)} compared with the ledger, all intact")
    return 0


def _lines(found: Verified) -> list[str]:
    lines = [f"damaged: {damage.length} bytes at {damage.offset} ({damage.how})" for damage in _merged(found.bad)]
    if found.count > len(found.bad):
        lines.append(f"damaged: {found.count - len(found.bad)} more pieces")
    if found.settled:
        lines.append(
            f"{found.settled} pieces may have been written while nothing recorded it; they count as they are now"
        )
    if found.open:
        lines.append(f"{found.open} pieces left out: the open volume may have written them")
    return lines


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

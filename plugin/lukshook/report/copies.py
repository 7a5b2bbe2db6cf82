"""The copies of a volume's image elsewhere, as `status`, its JSON and the metrics show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import LukshookError
from lukshook.volume.known_state import KnownState

if TYPE_CHECKING:
    from lukshook.replica.held import Holding


@frozen(kw_only=True)
class CopyStatus:
    """A copy elsewhere. *target*: where; *last_copy*: when it was last brought up to date, *sent*: bytes then.

    *behind*: how many clean closes came after what it has. *changing*: a change of it was interrupted.
    """

    target: str
    last_copy: float | None
    sent: int | None
    behind: int | None
    changing: bool


def copies_of(volume: Volume, state: KnownState) -> tuple[tuple[CopyStatus, ...], str | None]:
    """The copies that are configured or were made; and what is wrong with what is known of them."""
    if not volume.copies and not state.copies.is_dir():
        return (), None
    from lukshook.ledger import ledger  # noqa: PLC0415 - few volumes are copied
    from lukshook.replica import held  # noqa: PLC0415

    try:
        found = {one.holding.target: one.holding for one in held.every(state.copies)}
        generation = ledger.generation(state.ledger)
    except LukshookError as error:
        return (), error.message
    except OSError as error:
        return (), f"what is known of the copies cannot be read: {error.strerror}"
    configured = [copy.path for copy in volume.copies]
    return tuple(_copy(target, found.get(target), generation) for target in dict.fromkeys((*configured, *found))), None


def _copy(target: str, holding: Holding | None, generation: int | None) -> CopyStatus:
    started = holding is not None and holding.state > 0
    return CopyStatus(
        target=target,
        last_copy=holding.last_copy if holding else None,
        sent=holding.sent if holding else None,
        behind=max(generation - holding.generation, 0) if holding and started and generation is not None else None,
        changing=bool(holding and holding.step),
    )

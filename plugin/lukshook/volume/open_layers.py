"""Which layers of a volume are open: those in the record, and those that only the kernel shows."""

from __future__ import annotations

from pathlib import Path

from lukshook.config import Volume
from lukshook.layers.base import LayerHandle, LayerSpec, Opening
from lukshook.volume import engine_choice, unrecorded
from lukshook.volume.records import Record
from lukshook.volume.work import Work


def spec_of(volume: Volume, layer: str) -> LayerSpec:
    """The part of the configuration that is a layer's own."""
    spec: LayerSpec = getattr(volume, layer)
    return spec


def stands(record: Record) -> bool:
    """Whether everything that *record* says is open is still as it says."""
    return all(handle.inspect() for _, handle in record.layers)


def leftovers(work: Work) -> tuple[tuple[str, LayerHandle], ...]:
    """The layers that stand: those written down, and those the kernel shows that are not in the record."""
    return standing_with(work)[1]


def standing_with(work: Work) -> tuple[str, tuple[tuple[str, LayerHandle], ...]]:
    """The engine and the layers of it that stand. Without a record it may be another engine than is configured now."""
    record = work.record.load()
    chosen = record.engine if record else engine_choice.choose(work.volume)
    left = _layers(work, chosen)
    if not left and record is None and unrecorded.of(work.volume) is not None:
        for other in engine_choice.others(chosen):
            left = _layers(work, other)
            if left:
                return other, left
    return chosen, left


def _layers(work: Work, chosen: str) -> tuple[tuple[str, LayerHandle], ...]:
    volume, record = work.volume, work.record.load()
    noted = dict(record.layers) if record else {}
    opening = work.opening(read_only=bool(record and record.read_only))
    found: list[tuple[str, LayerHandle]] = []
    below = ""
    for name in engine_choice.stack(chosen, volume):
        handle = noted.get(name)
        if handle is None and (below or name == "image"):
            handle = _find(volume, name, below, opening, anywhere=record is None)
        if handle is not None:
            found.append((name, handle))
        if handle is not None or not spec_of(volume, name).transparent:
            below = handle.path if handle is not None else ""
    return tuple(found) if any(name not in ("image", "filesystem") for name, _ in found) else ()


def _find(volume: Volume, name: str, below: str, opening: Opening, *, anywhere: bool) -> LayerHandle | None:
    """What the kernel shows of a layer. *anywhere*: the mount point may have been another when it was mounted."""
    spec = spec_of(volume, name)
    found = spec.find(below, opening)
    if found is None and anywhere:
        elsewhere = filter(None, map(spec.at, unrecorded.places_of(below) if spec.at(Path()) else ()))
        found = next(filter(None, (one.find(below, opening) for one in elsewhere)), None)
    return found

"""The stack of layers: pushed from the bottom up, taken down from the top. There is no other way to unwind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NotSafe, Unavailable
from lukshook.layers import filesystem
from lukshook.layers.base import LayerHandle, LayerSpec, Opening, private_place
from lukshook.store.image_file import open_image
from lukshook.system import clock, kernel, ownership, signals
from lukshook.system.command import Command, Effect, Runner, TimedOut
from lukshook.volume import engine, records, unrecorded
from lukshook.volume.records import Record, RecordFile, User
from lukshook.volume.waiting import patiently
from lukshook.volume.work import Work


def spec_of(volume: Volume, layer: str) -> LayerSpec:
    """The part of the configuration that is a layer's own."""
    spec: LayerSpec = getattr(volume, layer)
    return spec


def push_layers(work: Work, opening: Opening, user: User, *, layers: tuple[str, ...] | None = None) -> Record:
    """Open the layers from the bottom up, each written down as it stands. Leaves what stands when it raises.

    *layers*: open those for work of our own. The record does not call that open, so that what is left of a
    killed run is never taken for a volume in use.
    """
    volume = work.volume
    chosen = engine.choose(volume)
    began = clock.uptime()
    record = Record(
        volume.name,
        kernel.boot_id(),
        chosen,
        opening.read_only,
        records.now(),
        users=(evolve(user, since=began),),
        began=began,
    )
    ownership.private_folder(opening.run_folder)
    work.record.save(record)
    below = ""
    with opened(volume, opening) as ready:
        for name in layers or engine.stack_of(volume):
            signals.check()
            handle = spec_of(volume, name).open(below, ready)
            record = record.push(name, handle)
            work.record.save(record)
            below = handle.path
    _release(record, opening.runner)
    record = evolve(record, complete=layers is None)
    work.record.save(record)
    return record


@frozen
class Script:
    """The commands that open a volume as lukshook does, and the handles of its layers as they are expected."""

    opening: tuple[Command, ...]
    handles: tuple[tuple[str, LayerHandle], ...]

    @property
    def closing(self) -> tuple[Command, ...]:
        """The commands that close it again."""
        return closing_script(self.handles)


def opening_script(
    volume: Volume,
    opening: Opening,
    *,
    layers: tuple[str, ...] | None = None,
    make: Callable[[str], tuple[Command, ...]] | None = None,
) -> Script:
    """The script for *layers*, or for all of the volume; for dry runs.

    *make* gives the commands that make a file system instead of checking one.
    """
    handles: dict[str, LayerHandle] = {}
    below = ""
    commands = [private_place(opening)]
    for name in layers or engine.stack_of(volume):
        spec = spec_of(volume, name)
        handles[name] = spec.expect(below, opening)
        made = make(below) if make and name == "filesystem" else spec.open_commands(below, opening)
        commands += made
        below = handles[name].path
    for name in _released(tuple(handles)):
        commands += handles[name].release_commands()
    return Script(tuple(commands), tuple(handles.items()))


def closing_script(handles: Iterable[tuple[str, LayerHandle]]) -> tuple[Command, ...]:
    """The commands that close the layers in *handles*, which come from the bottom up; for dry runs.

    What was released at opening goes by itself.
    """
    layers = dict(handles)
    released = {name for name in _released(tuple(layers)) if layers[name].release_commands()}
    commands = (layers[name].close_commands() for name in reversed(layers) if name not in released)
    return tuple(command for group in commands for command in group if command.effect is Effect.CHANGE)


@contextmanager
def opened(volume: Volume, opening: Opening) -> Iterator[Opening]:
    """*opening* with the image open; one that has it open already stays as it is."""
    if opening.image is not None:
        yield opening
        return
    with open_image(volume.image.image, writable=not opening.read_only) as image:
        yield evolve(opening, image=image)


def _release(record: Record, runner: Runner) -> None:
    """Let go of what the device under the file system holds; that device itself is still needed after unmounting."""
    handles = dict(record.layers)
    for name in _released(tuple(handles)):
        handles[name].release(runner)


def _released(names: tuple[str, ...]) -> tuple[str, ...]:
    """The layers below the device that the file system lies in."""
    return names[: names.index("filesystem") - 1 if "filesystem" in names else len(names) - 1]


@contextmanager
def unwinding(work: Work) -> Iterator[None]:
    """Close again what was opened inside, when it fails or is interrupted."""
    try:
        yield
    except BaseException as error:
        signals.ignore()
        _unwind(work, error)
        raise


def _unwind(work: Work, cause: BaseException) -> None:
    try:
        take_down(work)
    except LukshookError as error:
        cause.add_note(error.message)
        work.site.warn(f"volume {work.name}: undoing the failed opening failed too: {error.message}")


def standing(work: Work) -> Record | None:
    """The record of a volume that is open and sound; else what an earlier run left is cleaned up first.

    Those who still use what is taken down are noted, and their own closing reports it. Raises `Unavailable`
    where it is in use under an earlier configuration.
    """
    warn_of_damage(work)
    record = work.record.load()
    moved = record is not None and _has_moved(work.volume, record)
    if record is not None and record.complete and stands(record):
        if not moved:
            return record
        _refuse_moved(work.volume, record)
    left = leftovers(work)
    if record is not None or left:
        _clean_up(work, record, left)
    return None


def stands(record: Record) -> bool:
    """Whether everything that *record* says is open is still as it says."""
    return all(handle.inspect() for name, handle in record.layers)


def _clean_up(work: Work, record: Record | None, left: tuple[tuple[str, LayerHandle], ...]) -> None:
    """Close what an interrupted run left open, *left*, and report it."""
    what = [name for name, handle in left if handle.inspect() and name not in ("image", "filesystem")]
    lost = ""
    try:
        take_down(work)
    except NotSafe as error:
        lost = error.message
        work.site.warn(f"volume {work.name}: what an earlier run wrote is not safely stored: {lost}")
    _keep_untold(work.record, record, lost)
    if what:
        parts = ", ".join(reversed(what))
        work.site.warn(
            f"volume {work.name}: an earlier run was interrupted; lukshook closed what it had left open ({parts})"
        )
        known = work.memory.known
        work.remember(evolve(known, unclean=known.unclean + 1))


def warn_of_damage(work: Work) -> None:
    """Say that the record cannot be read, so that users and losses of the volume until now are not known."""
    if work.record.damaged:
        work.site.warn(
            f"volume {work.name}: {work.record.damaged}; lukshook asks the kernel what is open, and keeps the record"
        )


def _has_moved(volume: Volume, record: Record) -> bool:
    """Whether the image or the mount point was another when it was opened than the configuration says now."""
    places = {"image": volume.image.image, "mount": volume.mountpoint, "fuse2fs": volume.mountpoint}
    return any(name in places and os.fspath(places[name]) != handle.path for name, handle in record.layers)


def _refuse_moved(volume: Volume, record: Record) -> None:
    """Check that it is no longer in use. Raises `Unavailable`."""
    users = ", ".join(user.who for user in record.users if user.alive())
    if users:
        where = f"{record.layers[0][1].path} at {record.layers[-1][1].path}"
        raise Unavailable(
            f"volume {volume.name} is still open for {users} with an earlier configuration, {where}",
            hint=f"close it first: lukshook close {volume.name}",
        )


def _keep_untold(file: RecordFile, record: Record | None, lost: str) -> None:
    """Note those who used a volume that had to be taken down: their own closing says what was lost."""
    if record is not None and (record.complete or record.lost):
        text = f"volume {record.volume} was broken and had to be closed while it was in use"
        file.keep_untold(record.users, lost or text)


def leftovers(work: Work) -> tuple[tuple[str, LayerHandle], ...]:
    """The layers that stand: those written down, and those the kernel shows that are not in the record."""
    return _standing_with(work)[1]


def _standing_with(work: Work) -> tuple[str, tuple[tuple[str, LayerHandle], ...]]:
    """The engine and the layers of it that stand. Without a record it may be another engine than is configured now."""
    record = work.record.load()
    chosen = record.engine if record else engine.choose(work.volume)
    left = _layers(work, chosen)
    if not left and record is None and unrecorded.of(work.volume) is not None:
        for other in engine.others(chosen):
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
    for name in engine.stack(chosen, volume):
        handle = noted.get(name)
        if handle is None and (below or name == "image"):
            handle = _find(volume, name, below, opening, anywhere=record is None)
        if handle is not None:
            found.append((name, handle))
        if handle is not None or name != "filesystem":  # which may be too damaged to be found, but still be mounted
            below = getattr(handle, "path", "")
    return tuple(found) if any(name not in ("image", "filesystem") for name, _ in found) else ()


def _find(volume: Volume, name: str, below: str, opening: Opening, *, anywhere: bool) -> LayerHandle | None:
    """What the kernel shows of a layer. *anywhere*: the mount point may have been another when it was mounted."""
    spec = spec_of(volume, name)
    found = spec.find(below, opening)
    if found is None and anywhere:
        elsewhere = filter(None, map(spec.at, unrecorded.places_of(below) if spec.at(Path()) else ()))
        found = next(filter(None, (one.find(below, opening) for one in elsewhere)), None)
    return found


def take_down(work: Work) -> int | None:
    """Close all layers that stand, from the top. Returns the file system's count of what was written, if it has one.

    Layers depend on each other, so closing stops at the first that is busy and leaves the rest written down; a
    layer that lost data is closed all the same and reported at the end. Raises `Busy`, `NotSafe`.
    """
    written: int | None = None
    record = _settle(_closing(work), work)
    while record.layers:
        handle = record.layers[-1][1]
        try:
            patiently(work.name, handle, work.site, lambda: handle.close(work.runner))  # noqa: B023
        except NotSafe as problem:
            record = evolve(record, lost=record.lost or problem.message)
        if isinstance(handle, filesystem.Handle) and handle.inspect():
            written = _written(handle)
        record = record.pop()
        save_on_closing(record, work.record)
    work.record.clear()
    if record.lost:
        raise not_safe(record.lost)
    return written


def save_on_closing(record: Record, file: RecordFile) -> None:
    """Save *record* where there is room for it: a full disk must not keep a volume open, and the kernel is asked too.

    Raises `NotSafe` for a loss that cannot be written down: the kernel does not report it again.
    """
    try:
        file.save(record)
    except OSError as error:
        if record.lost:
            raise not_safe(record.lost) from error


def _closing(work: Work) -> Record:
    """The record with all open layers in it, recorded or not."""
    record = work.record.load()
    chosen, left = _standing_with(work)
    if record is None:
        record = Record(work.name, kernel.boot_id(), chosen, False, records.now())
    return evolve(record, layers=left or record.layers)


def _settle(record: Record, work: Work) -> Record:
    """Have everything written out, once; what was lost is written down, because the kernel tells it only once."""
    for _, handle in reversed(() if record.settled else record.layers):
        lost = ""

        def settle() -> None:
            nonlocal lost
            try:
                lost = handle.settle(work.runner) or lost  # noqa: B023
            except (Busy, TimedOut) as error:
                lost = error.lost or lost
                raise

        try:
            patiently(work.name, handle, work.site, settle)
        finally:
            if lost:
                text = f"some of the data written to {handle.path} did not reach the store: {lost}"
                record = evolve(record, lost=record.lost or text)
                save_on_closing(record, work.record)
    if record.layers:
        record = evolve(record, settled=True, complete=False)
        save_on_closing(record, work.record)
    return record


def not_safe(lost: str) -> NotSafe:
    """What is raised when *lost* says what did not reach the store."""
    return NotSafe(lost, hint="the last backup is not safely stored; free space or repair the store and run it again")


def _written(handle: filesystem.Handle) -> int | None:
    facts = filesystem.facts(handle.kind, handle.path)
    return facts.written if facts else None

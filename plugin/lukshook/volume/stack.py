"""The stack of layers: pushed from the bottom up, taken down from the top. There is no other way to unwind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NotSafe
from lukshook.layers import filesystem
from lukshook.layers.base import LayerHandle, Opening, private_place
from lukshook.store.image_file import open_image
from lukshook.system import clock, kernel, ownership, signals
from lukshook.system.command import Command, Effect, Runner, TimedOut
from lukshook.volume import engine_choice, records
from lukshook.volume.open_layers import spec_of, standing_with
from lukshook.volume.records import Record, RecordFile, User
from lukshook.volume.waiting import patiently
from lukshook.volume.work import Work

if TYPE_CHECKING:
    from lukshook.volume.backup_end import Closed
    from lukshook.volume.ledger_keeping import Ending


def push_layers(work: Work, opening: Opening, user: User, *, layers: tuple[str, ...] | None = None) -> Record:
    """Open the layers from the bottom up, each written down as it stands. Leaves what stands when it raises.

    *layers*: open those for work of our own. The record does not call that open, so that what is left of a
    killed run is never taken for a volume in use.
    """
    volume = work.volume
    chosen = engine_choice.choose(volume)
    began = clock.uptime()
    record = Record(
        volume.label,
        kernel.boot_id(),
        chosen,
        opening.read_only,
        records.now(),
        users=(evolve(user, since=began),),
        began=began,
        place=os.fspath(volume.mountpoint),
    )
    ownership.private_folder(opening.run_folder)
    work.record.save(record)
    below = ""
    with opened(volume, opening) as asked:
        ready = _recording(work, asked, counts=layers is None or "filesystem" in layers)
        for name in layers or engine_choice.stack_of(volume):
            signals.check()
            handle = spec_of(volume, name).open(below, ready)
            if handle is None:
                continue
            record = record.push(name, handle)
            work.record.save(record)
            below = handle.path
    _release(record, opening.runner)
    record = evolve(record, complete=layers is None)
    work.record.save(record)
    return record


def _recording(work: Work, opening: Opening, *, counts: bool) -> Opening:
    """*opening* with what the ledger asks of it, once the ledger says that the image may change.

    *counts*: its layers tell the file system's count of what was written.
    """
    if not work.has_ledger:
        return opening
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    counted = partial(ledger_keeping.judge_count, work, read_only=opening.read_only)
    if opening.read_only:
        return evolve(opening, counted=counted)
    if not work.volume.ledger:
        ledger_keeping.abandon(work)
        return opening
    recording = ledger_keeping.begin(work, opening.the_image(), counts=counts)
    return evolve(opening, recording=recording, counted=counted)


@frozen(eq=False, repr=False)
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
    for name in layers or engine_choice.stack_of(volume):
        spec = spec_of(volume, name)
        expected = spec.expect(below, opening)
        if expected is None:
            continue
        handles[name] = expected
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
        take_down(work, failed=True)
    except LukshookError as error:
        cause.add_note(error.message)
        work.site.warn(f"volume {work.name}: undoing the failed opening failed too: {error.message}")


def take_down(work: Work, *, failed: bool = False, closed: Closed | None = None) -> int | None:
    """Close all layers that stand, from the top. Returns the file system's count of what was written, if it has one.

    *failed*: an opening has failed, and they are those that it came to. *closed*: what follows when all is closed.

    Layers depend on each other, so closing stops at the first that is busy and leaves the rest written down; a
    layer that lost data is closed all the same and reported at the end. The record of the image stays until the ledger
    is up to date and *closed* is done: where one of them fails, closing is not complete, and is tried again. Raises
    `Busy`, `NotSafe`, and what these raise.
    """
    sure = work.record.load() is not None
    record = _settle(_closing(work), work)
    ending = _ending(work, record, sure=sure and not failed)
    stood = bool(record.layers) and not record.read_only
    while record.layers:
        record = _close_top(work, record, ending)
    if stood:
        record = evolve(record, lost=record.lost or work.lost_at_store())
    try:
        if record.lost:
            raise not_safe(record.lost)
        if ending is not None:
            ending.finish(failed=failed, written=record.written)
    except NotSafe as loss:  # reported once, as what the kernel reports
        _follow(work, evolve(record, lost=record.lost or loss.message), closed, loss)
        raise
    return _follow(work, record, closed, None)


def _follow(work: Work, record: Record, closed: Closed | None, loss: NotSafe | None) -> int | None:
    """Do what follows when all is closed, then remove the record."""
    if closed is not None:
        again = record.settled and record.ended is not None
        if not again:
            record = evolve(record, ended=records.now(), settled=True)
            with suppress(NotSafe):  # *loss* is reported in any case, and is noted first
                save_on_closing(record, work.record)
        closed(record, loss, again=again)
    work.record.clear()
    if loss is not None:
        work.loss_is_reported()
    return record.written


def _close_top(work: Work, record: Record, ending: Ending | None) -> Record:
    """Close the topmost layer in *record*; the record without it, which is kept unless it was the last one."""
    handle = record.layers[-1][1]
    if ending is not None:
        noted = ending.look(handle, record)
        if noted is not record:
            save_on_closing(noted, work.record)
        record = noted
    try:
        patiently(work.name, handle, work.site, lambda: handle.close(work.runner))
    except NotSafe as problem:
        record = _with_loss(record, problem, work)
    if isinstance(handle, filesystem.Handle) and handle.inspect():
        record = evolve(record, written=_written(handle))
    record = record.pop()
    if record.layers or record.lost:
        save_on_closing(record, work.record)
    return record


def _with_loss(record: Record, problem: NotSafe, work: Work) -> Record:
    """*record* with what closing has lost. What was opened read-only can lose nothing, as when its image was pruned."""
    if not record.read_only:
        return evolve(record, lost=record.lost or problem.message)
    work.site.warn(problem.message)
    return record


def _ending(work: Work, record: Record, *, sure: bool) -> Ending | None:
    """What brings the ledger up to date when the layers in *record* are closed; None where there is nothing to do."""
    if record.read_only or not work.volume.ledger or not work.has_ledger:
        return None
    from lukshook.volume import ledger_keeping  # noqa: PLC0415 - only with a ledger

    return ledger_keeping.Ending(work, record, sure=sure)


def save_on_closing(record: Record, file: RecordFile) -> None:
    """Save *record* where there is room for it, else go on with it: a full disk must not keep a volume open.

    Raises `NotSafe` for a loss that cannot be written down: the kernel does not report it again.
    """
    try:
        file.save(record)
    except OSError as error:
        if record.lost:
            raise not_safe(record.lost) from error
        file.assume(record)


def _closing(work: Work) -> Record:
    """The record with all open layers in it, recorded or not."""
    record = work.record.load()
    chosen, left = standing_with(work)
    if record is None:
        record = Record(work.volume.label, kernel.boot_id(), chosen, False, records.now())
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
        record = evolve(record, settled=True, complete=False, stood=record.stood or record.complete)
        save_on_closing(record, work.record)
    return record


def not_safe(lost: str) -> NotSafe:
    """What is raised when *lost* says what did not reach the store."""
    return NotSafe(lost, hint="the last backup is not safely stored; free space or repair the store and run it again")


def _written(handle: filesystem.Handle) -> int | None:
    facts = filesystem.facts(handle.kind, handle.path)
    return facts.written if facts else None

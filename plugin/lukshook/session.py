"""Opening and closing: the only module that knows the order of layers and how to unwind them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from lukshook import engine, guard, holders, interrupt, journal, kernel, keys, state
from lukshook.command import Runner
from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NotSafe, Unavailable
from lukshook.journal import Book, Record, User
from lukshook.layers import ENGINES, LAYERS, Opening, Trust, filesystem, mount
from lukshook.secret import Secret
from lukshook.state import Known
from lukshook.trust import Pinned

_PAUSE_MOST = 2.0


@frozen
class Site:
    """Where and how we work: our folders, who carries out commands, who asks for keys, where warnings go.

    *patience*: seconds to wait for those who still use a volume that is to be closed; *kill_holders*: end them then.
    """

    run_folder: Path
    state_folder: Path
    runner: Runner
    ask: Callable[[Volume], Secret]
    warn: Callable[[str], None]
    patience: float = 30.0
    kill_holders: bool = False


def opening_of(volume: Volume, site: Site, trust: Trust, *, read_only: bool) -> Opening:
    """What one opening of *volume* is about, for the layers."""
    return Opening(
        volume=volume.name,
        runner=site.runner,
        run_folder=site.run_folder,
        key=lambda: site.ask(volume),
        key_from=keys.shown(volume.key),
        trust=trust,
        read_only=read_only,
    )


def open_volume(volume: Volume, user: User, site: Site, *, read_only: bool = False) -> None:
    """Open *volume* for *user*, or join those who have it open already.

    When it returns the volume is mounted and proven; when it raises nothing of it is left open. Raises any
    `LukshookError`.
    """
    read_only = read_only or volume.read_only
    if site.runner.dry:
        _rehearse(volume, site, read_only=read_only)
        return
    with journal.locked(site.run_folder, volume.name) as book:
        record = standing(volume, book, site)
        if record is not None:
            _join(record, user, book, read_only=read_only)
            return
        known = state.load(site.state_folder, volume.name)
        guard.check_bare(volume.mountpoint, site.runner)
        guard.put(volume.mountpoint, site.runner)
        trust = Pinned(volume.name, known)
        with unwinding(volume, book, site):
            record = push_layers(volume, book, opening_of(volume, site, trust, read_only=read_only), user)
            if volume.grow is not None and not read_only:
                from lukshook.resize import auto  # noqa: PLC0415 - few volumes grow by themselves

                auto.grow_if_due(volume, book, site)
        remember(volume, site, known, evolve(trust.known, last_open=record.since))


def _join(record: Record, user: User, book: Book, *, read_only: bool) -> None:
    if record.read_only and not read_only:
        users = ", ".join(u.who for u in record.users if u.alive())
        raise Unavailable(
            f"volume {record.volume} is open read-only for {users}",
            hint=f"close it first: lukshook close {record.volume}",
        )
    others = tuple(u for u in record.users if u != user and u.alive())
    book.save(evolve(record, users=(*others, user)))


def _rehearse(volume: Volume, site: Site, *, read_only: bool) -> None:
    """Show the commands of an opening."""
    opening = opening_of(volume, site, Pinned(volume.name, Known()), read_only=read_only)
    below = ""
    for name in ENGINES[engine.choose(volume)]:
        layer, spec = LAYERS[name], spec_of(volume, name)
        expected = layer.expect(spec, below, opening)
        for command in layer.open_commands(spec, below, opening):
            site.runner.run(command)
        below = expected


def spec_of(volume: Volume, layer: str) -> object:
    """The part of the configuration that is a layer's own."""
    return getattr(volume, layer)


def push_layers(
    volume: Volume, book: Book, opening: Opening, user: User, *, stack: tuple[str, ...] | None = None
) -> Record:
    """Open the layers from the bottom up, each written down as it stands. Leaves what stands when it raises.

    *stack*: open those layers for work of our own. The record does not call that open, so that what is left of a
    killed run is never taken for a volume somebody uses.
    """
    chosen = engine.choose(volume)
    record = Record(volume.name, kernel.boot_id(), chosen, opening.read_only, journal.now(), users=(user,))
    book.save(record)
    below = ""
    for name in stack or engine.stack(chosen, volume):
        interrupt.check()
        handle = LAYERS[name].open(spec_of(volume, name), below, opening)
        record = record.push(name, handle)
        book.save(record)
        below = handle.path
    for name, handle in record.layers:
        LAYERS[name].release(handle, opening.runner)
    record = evolve(record, complete=stack is None)
    book.save(record)
    interrupt.check()
    return record


@contextmanager
def unwinding(volume: Volume, book: Book, site: Site) -> Iterator[None]:
    """Close again what was opened inside, when it fails or is interrupted."""
    try:
        yield
    except BaseException as error:
        interrupt.ignore()
        _unwind(volume, book, site, error)
        raise


def _unwind(volume: Volume, book: Book, site: Site, cause: BaseException) -> None:
    try:
        take_down(volume, book, site)
    except LukshookError as error:
        cause.add_note(error.message)
        site.warn(f"volume {volume.name}: closing again after that failed: {error.message}")


def close_volume(
    volume: Volume, user: User | None, site: Site, *, failed: bool = False, backup: bool = True
) -> tuple[User, ...]:
    """*user* needs *volume* no more; the last one out closes it. None closes whoever uses it.

    Returns the users that are left, empty when it is closed. *backup*: a backup ends here, and *failed* says how.
    Raises `Busy` (still open; the next try goes on where this one stopped), `NotSafe` (closed, data lost).
    """
    with journal.locked(site.run_folder, volume.name) as book:
        record = book.load()
        left = _leave(record, user) if record else ()
        if record and left and user is not None:
            if not site.runner.dry:
                book.save(evolve(record, users=left))
            return left
        if site.runner.dry:
            _rehearse_close(record, site)
            return ()
        _close_last(volume, book, record, site, failed=failed, backup=backup)
        return ()


def _leave(record: Record, user: User | None) -> tuple[User, ...]:
    return tuple(other for other in record.users if other != user and other.alive())


def _rehearse_close(record: Record | None, site: Site) -> None:
    for name, handle in reversed(record.layers if record else ()):
        for command in LAYERS[name].close_commands(handle):
            site.runner.run(command)


def _close_last(volume: Volume, book: Book, record: Record | None, site: Site, *, failed: bool, backup: bool) -> None:
    known = state.load(site.state_folder, volume.name)
    something = bool(leftovers(volume, book, site))
    try:
        written = take_down(volume, book, site)
    except NotSafe:
        remember(volume, site, known, evolve(known, last_result="not safe", unclean=known.unclean + 1))
        raise
    if not something:
        return
    now = journal.now()
    fresh = evolve(known, last_close=now, written=written if written is not None else known.written)
    if backup and record and not record.read_only:
        fresh = evolve(
            fresh,
            last_result="failed" if failed else "done",
            duration=now - record.since,
            last_success=known.last_success if failed else now,
        )
    remember(volume, site, known, fresh)


@contextmanager
def held(volume: Volume) -> Iterator[None]:
    """While something writes to *volume*: nobody unmounts it, and no lost write goes unseen.

    A descriptor that was opened before the writing sees every error since, also those that somebody else's `sync`
    has already taken (syncfs(2)). Raises `NotSafe`.
    """
    descriptor = os.open(volume.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
        if os.stat(volume.mountpoint).st_dev != os.fstat(descriptor).st_dev:
            raise NotSafe(
                f"volume {volume.name} was unmounted while it was in use",
                hint="what was written after that did not go into the volume",
            )
        lost = mount.flush(descriptor)
        if lost:
            raise NotSafe(
                f"what was written to {volume.mountpoint} did not all reach the store: {lost}",
                hint="the last backup is not safely stored; free space or repair the store and run it again",
            )
    finally:
        os.close(descriptor)


def remember(volume: Volume, site: Site, before: Known, after: Known) -> None:
    """Keep what is known of *volume* where it has changed."""
    if after != before:
        state.save(site.state_folder, volume.name, after)


def standing(volume: Volume, book: Book, site: Site) -> Record | None:
    """The record of a volume that is open and sound; else whatever an earlier run left is put right first."""
    record = book.load()
    if record is not None and record.complete and all(LAYERS[n].inspect(h) for n, h in record.layers):
        return record
    left = leftovers(volume, book, site)
    what = [name for name, handle in left if LAYERS[name].inspect(handle) and name not in ("image", "filesystem")]
    take_down(volume, book, site)
    if what:
        parts = ", ".join(reversed(what))
        site.warn(f"volume {volume.name}: an earlier run was cut off; closed what it had left open ({parts})")
        known = state.load(site.state_folder, volume.name)
        remember(volume, site, known, evolve(known, unclean=known.unclean + 1))
    return None


def leftovers(volume: Volume, book: Book, site: Site) -> tuple[tuple[str, Any], ...]:
    """The layers that stand: those written down, and those the kernel shows although nobody wrote them down."""
    record = book.load()
    noted = dict(record.layers) if record else {}
    opening = opening_of(volume, site, Pinned(volume.name, Known()), read_only=bool(record and record.read_only))
    found: list[tuple[str, Any]] = []
    below = ""
    for name in engine.stack(record.engine if record else engine.choose(volume), volume):
        handle = noted.get(name)
        if handle is None and (below or name == "image"):
            handle = LAYERS[name].find(spec_of(volume, name), below, opening)
        if handle is not None:
            found.append((name, handle))
        below = getattr(handle, "path", "")
    return tuple(found) if any(name not in ("image", "filesystem") for name, _ in found) else ()


def take_down(volume: Volume, book: Book, site: Site) -> int | None:
    """Close all layers that stand, from the top. Returns the file system's count of what was written, if it has one.

    Layers depend on each other, so closing stops at the first that is busy and leaves the rest written down; a
    layer that lost data is closed all the same and reported at the end. Raises `Busy`, `NotSafe`.
    """
    problems: list[NotSafe] = []
    written: int | None = None
    record = book.load()
    left = list(leftovers(volume, book, site)) or (list(record.layers) if record else [])
    while left:
        name, handle = left.pop()
        try:
            _close_layer(name, handle, site)
        except NotSafe as problem:
            problems.append(problem)
        if name == "filesystem" and LAYERS[name].inspect(handle):
            written = _written(handle)
        if record is not None:
            record = evolve(record, layers=tuple(left), complete=False)
            book.save(record)
    book.clear()
    if problems:
        raise problems[0]
    return written


def _written(handle: filesystem.Handle) -> int | None:
    facts = filesystem.facts(handle.kind, handle.path)
    return facts.written if facts else None


def _close_layer(name: str, handle: Any, site: Site) -> None:
    """Close one layer, patiently: a host's dying children let go a moment later than the host."""
    end = time.monotonic() + site.patience
    pause = 0.05
    while True:
        try:
            LAYERS[name].close(handle, site.runner)
            return
        except Busy as busy:
            if time.monotonic() >= end:
                _give_up(handle, site, busy)
                return
        time.sleep(pause)
        pause = min(pause * 2, _PAUSE_MOST)


def _give_up(handle: Any, site: Site, busy: Busy) -> None:
    """Name who holds it, or end them where that was asked for, and try a last time."""
    who = holders.of(getattr(handle, "number", ""))
    if site.kill_holders and who:
        site.warn("ending " + ", ".join(map(str, who)))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for holder in who:
                _end(holder.pid, number)
            if kernel.wait_until(lambda: not holders.of(getattr(handle, "number", "")), 5.0):
                break
        return _close_layer(_name_of(handle), handle, evolve(site, kill_holders=False, patience=5.0))
    named = ", ".join(map(str, who)) or "nobody this user can see"
    raise Busy(
        f"{busy.message}, by {named}",
        hint="it stays open; close it when they are done with: lukshook close NAME",
    ) from busy


def _name_of(handle: Any) -> str:
    return type(handle).__module__.rpartition(".")[2]


def _end(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return

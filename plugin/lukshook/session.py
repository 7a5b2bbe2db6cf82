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

from lukshook import engine, fill, guard, interrupt, journal, kernel, keys, rewrite, size, state
from lukshook.command import Runner, TimedOut
from lukshook.config import Volume
from lukshook.errors import Busy, LukshookError, NoRoom, NotSafe, Refused, Unavailable
from lukshook.journal import Book, Record, User
from lukshook.layers import ENGINES, LAYERS, Opening, Trust, filesystem, image, mount
from lukshook.secret import Secret
from lukshook.state import Known
from lukshook.trust import Pinned

_PAUSE_MOST = 2.0


@frozen
class Site:
    """Where and how we work: our folders, who carries out commands, who asks for keys, where warnings go.

    *patience*: seconds to wait for those who still use a volume that is to be closed; *kill_holders*: end them then.
    *metrics*: a text file that is kept for a monitoring system, or None.
    """

    run_folder: Path
    state_folder: Path
    runner: Runner
    ask: Callable[[Volume], Secret]
    warn: Callable[[str], None]
    patience: float = 30.0
    kill_holders: bool = False
    metrics: Path | None = None


def opening_of(volume: Volume, site: Site, trust: Trust, *, read_only: bool) -> Opening:
    """What one opening of *volume* is about, for the layers."""
    return Opening(
        volume=volume.name,
        runner=site.runner,
        run_folder=site.run_folder,
        key=lambda: _ask(volume, site),
        key_from=keys.shown(volume.key),
        trust=trust,
        read_only=read_only,
    )


def _ask(volume: Volume, site: Site) -> Secret:
    with interrupt.allowed():
        return site.ask(volume)


def open_volume(volume: Volume, user: User, site: Site, *, read_only: bool = False) -> None:
    """Open *volume* for *user*, or join those who have it open already.

    When it returns the volume is mounted and proven; when it raises nothing of it is left open. Raises any
    `LukshookError`.
    """
    read_only = read_only or volume.read_only
    if site.runner.dry:
        _rehearse(volume, site, read_only=read_only)
        return
    image.probe(volume.image, site.runner)
    with journal.locked(site.run_folder, volume.name) as book:
        record = standing(volume, book, site)
        if record is not None:
            _join(record, user, book, site, read_only=read_only)
            return
        if not read_only:
            rewrite.finish(volume.image.image, site.state_folder, volume.name)
        known = state.load(site.state_folder, volume.name)
        guard.check_bare(volume.mountpoint, site.runner)
        guard.put(volume.mountpoint, site.runner)
        trust = Pinned(volume.name, known, rewrite.pending(site.state_folder, volume.name))
        if not read_only:
            _check_room(volume, site)
        with unwinding(volume, book, site):
            record = push_layers(volume, book, opening_of(volume, site, trust, read_only=read_only), user)
            check_data(volume)
            remember(volume, site, known, evolve(trust.known, last_open=record.since))
            interrupt.check()


def check_data(volume: Volume) -> None:
    """See that the folder backups are pointed to leads nowhere else. Raises `Refused`."""
    if volume.data.is_symlink():
        raise Refused(
            f"{volume.data} in volume {volume.name} is a symbolic link",
            hint="what is backed up there would go elsewhere, in the clear; open it by hand elsewhere and look",
        )


def _check_room(volume: Volume, site: Site) -> None:
    """See that a sparse image cannot outgrow its store: then the backup would be lost (`space`). Raises `NoRoom`."""
    try:
        holes = fill.holes(volume.image.image)
        free = fill.free_space(volume.image.image.parent)
    except OSError:
        return  # not there: the image's own layer tells it best
    if holes <= free:
        return
    message = (
        f"the image of volume {volume.name} may still grow by {size.show(holes)}, its store has {size.show(free)} free"
    )
    if volume.space == "refuse":
        hint = f'free space on the store, or shrink: lukshook resize {volume.name}; space = "warn" goes on all the same'
        raise NoRoom(message, hint=hint)
    site.warn(message)


def _join(record: Record, user: User, book: Book, site: Site, *, read_only: bool) -> None:
    if record.read_only and not read_only:
        users = ", ".join(u.who for u in record.users if u.alive())
        raise Unavailable(
            f"volume {record.volume} is open read-only for {users}",
            hint=f"close it first: lukshook close {record.volume}",
        )
    others = tuple(u for u in record.users if u != user and u.alive())
    if read_only and not record.read_only:
        writers = ", ".join(u.who for u in others) or "an earlier user"
        site.warn(f"volume {record.volume} is open for writing by {writers}, so it is not read-only for you either")
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
    _release(record, opening.runner)
    record = evolve(record, complete=stack is None)
    book.save(record)
    return record


def _release(record: Record, runner: Runner) -> None:
    """Let go of what the device under the file system holds; that device itself is still needed after unmounting."""
    names = [name for name, _ in record.layers]
    device = names.index("filesystem") - 1 if "filesystem" in names else len(names) - 1
    for name, handle in record.layers[:device]:
        LAYERS[name].release(handle, runner)


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
    Raises `Busy` (still open; the next try goes on where this one stopped), `NotSafe` (data lost; closed, or for those
    that are left still open).
    """
    if journal.peek(site.run_folder, volume.name) is not None:
        image.probe(volume.image, site.runner)
    with journal.locked(site.run_folder, volume.name) as book:
        record = book.load()
        left = _leave(record, user) if record else ()
        if record and left and user is not None:
            if not site.runner.dry:
                _part(volume, evolve(record, users=left), book, site, failed=failed and backup)
            return left
        if site.runner.dry:
            _rehearse_close(record, site)
            return ()
        if record is not None:
            # Whoever said that it is over is no user any more, also where closing has to be tried again.
            record = evolve(record, users=left, lost=record.lost or _vanished(volume, record))
            book.save(record)
        _close_last(volume, book, record, site, failed=failed, backup=backup)
        return ()


def _vanished(volume: Volume, record: Record) -> str:
    """What is to be said when somebody else has unmounted the volume: nobody saw whether all was written, or "".

    umount(8) exits 0 also where writing failed.
    """
    if not record.complete or record.read_only or not record.layers:
        return ""
    handle = record.layers[-1][1]
    found = kernel.mount_at(handle.path)
    if found is not None and (found.number == handle.number or kernel.lies_on(found, handle.number)):
        return ""
    return f"volume {volume.name} was unmounted by somebody else before it was closed"


def _leave(record: Record, user: User | None) -> tuple[User, ...]:
    return tuple(other for other in record.users if other != user and other.alive())


def _part(volume: Volume, record: Record, book: Book, site: Site, *, failed: bool) -> None:
    """Let a user go while others stay. Raises `NotSafe` when what it may have written is not on the store."""
    lost = "" if record.read_only or not record.complete else _write_out(record)
    if lost:
        text = f"what was written to {volume.mountpoint} did not all reach the store: {lost}"
        record = evolve(record, lost=record.lost or text)
    book.save(record)
    known = state.load(site.state_folder, volume.name)
    if record.lost:
        remember(volume, site, known, evolve(known, last_result="not safe", unclean=known.unclean + 1))
        raise _not_safe(record.lost)
    if failed and not record.read_only:
        remember(volume, site, known, evolve(known, last_result="failed"))


def _write_out(record: Record) -> str:
    """Write out an open volume; what was lost, in words, or "". The kernel tells it once, to whoever asks first."""
    name, handle = record.layers[-1]
    if not LAYERS[name].inspect(handle):
        return "it is not open any more as it was"
    try:
        descriptor = os.open(handle.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or "it cannot be opened"
    try:
        return mount.flush(descriptor)
    finally:
        os.close(descriptor)


def _not_safe(lost: str) -> NotSafe:
    return NotSafe(lost, hint="the last backup is not safely stored; free space or repair the store and run it again")


def _rehearse_close(record: Record | None, site: Site) -> None:
    for name, handle in reversed(record.layers if record else ()):
        for command in LAYERS[name].close_commands(handle):
            site.runner.run(command)


def _close_last(volume: Volume, book: Book, record: Record | None, site: Site, *, failed: bool, backup: bool) -> None:
    known = state.load(site.state_folder, volume.name)
    something = bool(leftovers(volume, book, site))
    if something:
        known = evolve(known, **_filled(volume, record))
    try:
        written = take_down(volume, book, site)
    except NotSafe:
        remember(volume, site, known, evolve(known, last_result="not safe", unclean=known.unclean + 1))
        raise
    if not something:
        return
    _prove_bare(volume, site)
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


def _filled(volume: Volume, record: Record | None) -> dict[str, Any]:
    """How full the volume is, for `status` while it is closed."""
    if record is None or not record.complete:
        return {}
    try:
        found = os.statvfs(volume.mountpoint)
    except OSError:  # the daemon behind it was killed
        return {}
    return {
        "capacity": found.f_blocks * found.f_frsize,
        "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
    }


def _prove_bare(volume: Volume, site: Site) -> None:
    """See that the bare mount point is empty and guarded again."""
    try:
        guard.check_bare(volume.mountpoint, site.runner)
        guard.put(volume.mountpoint, site.runner)
    except LukshookError as error:
        site.warn(f"volume {volume.name} is closed, but {error.message}; {error.hint}")


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
            raise _not_safe(f"what was written to {volume.mountpoint} did not all reach the store: {lost}")
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
    try:
        take_down(volume, book, site)
    except NotSafe as error:
        site.warn(f"volume {volume.name}: what an earlier run wrote is not safely stored: {error.message}")
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
    record = _closing(volume, book, site)
    written: int | None = None
    record = _settle(record, book, site)
    while record.layers:
        name, handle = record.layers[-1]
        try:
            _patiently(volume.name, handle, site, lambda: LAYERS[name].close(handle, site.runner))  # noqa: B023
        except NotSafe as problem:
            record = evolve(record, lost=record.lost or problem.message)
        if name == "filesystem" and LAYERS[name].inspect(handle):
            written = _written(handle)
        record = record.pop()
        book.save(record)
    book.clear()
    if record.lost:
        raise _not_safe(record.lost)
    return written


def _closing(volume: Volume, book: Book, site: Site) -> Record:
    """The record with all that stands in it, written down or not."""
    record = book.load()
    left = leftovers(volume, book, site)
    if record is None:
        record = Record(volume.name, kernel.boot_id(), engine.choose(volume), False, journal.now())
    return evolve(record, layers=left or record.layers)


def _settle(record: Record, book: Book, site: Site) -> Record:
    """Have everything written out, once; what was lost is written down, because the kernel tells it only once."""
    for name, handle in reversed(() if record.settled else record.layers):
        lost = ""

        def settle() -> None:
            nonlocal lost
            try:
                lost = LAYERS[name].settle(handle, site.runner) or lost  # noqa: B023
            except Busy as busy:
                lost = busy.lost or lost
                raise

        try:
            _patiently(record.volume, handle, site, settle)
        finally:
            if lost:
                text = f"what was written to {handle.path} did not all reach the store: {lost}"
                record = evolve(record, lost=record.lost or text)
                book.save(record)
    if record.layers:
        record = evolve(record, settled=True, complete=False)
        book.save(record)
    return record


def _written(handle: filesystem.Handle) -> int | None:
    facts = filesystem.facts(handle.kind, handle.path)
    return facts.written if facts else None


def _patiently(volume: str, handle: Any, site: Site, step: Callable[[], None]) -> None:
    """Try *step* until nobody is in its way: a host's dying children let go a moment later than the host."""
    end = time.monotonic() + site.patience
    pause = 0.05
    while True:
        try:
            step()
            return
        except TimedOut as error:
            raise Busy(f"volume {volume} cannot be closed: {error.message}", hint=error.hint) from error
        except Busy as busy:
            if time.monotonic() >= end:
                _give_up(volume, handle, site, busy)
                break
        time.sleep(pause)
        pause = min(pause * 2, _PAUSE_MOST)
    _patiently(volume, handle, evolve(site, kill_holders=False, patience=5.0), step)


def _give_up(volume: str, handle: Any, site: Site, busy: Busy) -> None:
    """Name who holds it, or end them where that was asked for."""
    from lukshook import holders  # noqa: PLC0415 - seldom

    device = _device(handle)
    who = holders.of(device)
    users = [holder for holder in who if holder.uses_it]
    if not site.kill_holders or not users:
        named = ", ".join(map(str, who)) or "nobody this user can see"
        raise Busy(
            f"volume {volume} could not be closed: {busy.message}, by {named}",
            hint=f"when they are done: lukshook close {volume} (with --kill-holders it ends them)",
            lost=busy.lost,
        ) from busy
    site.warn("ending " + ", ".join(map(str, users)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for holder in users:
            _end(holder.pid, number)
        if kernel.wait_until(lambda: not any(holder.uses_it for holder in holders.of(device)), 5.0):
            break


def _device(handle: Any) -> str:
    """The device number of a layer, as "major:minor", or "" for one that has none."""
    try:
        return str(getattr(handle, "number", "")) or kernel.number(handle.path)
    except OSError:
        return ""


def _end(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # another user's is named when closing has failed once more
        return

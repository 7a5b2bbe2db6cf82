"""A new volume: image, key slot, file system, header backup. Nothing gets its final name before it is whole."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from attrs import evolve, frozen

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, Exists, LukshookError, NotSafe, Refused, Unavailable
from lukshook.filesystems.kinds import KINDS
from lukshook.keys import key_sources
from lukshook.layers import filesystem, mount_point
from lukshook.luks import cryptsetup, header, header_file
from lukshook.luks.header import Header
from lukshook.store import allocation, image_file, room
from lukshook.store.allocation import Progress
from lukshook.store.image_file import ImageFile, new_image, open_image
from lukshook.store.room import Room
from lukshook.system import files
from lukshook.system.command import Command, CommandFailed, Runner, descriptor_path, find_tools
from lukshook.system.secret import KEY_BYTES, Secret
from lukshook.volume import engine_choice, ledger_keeping, records, remote, users
from lukshook.volume.context import Site, opening_of
from lukshook.volume.data_folder import DEFAULT_MODE, make_data
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known, KnownState
from lukshook.volume.recovery import recovered
from lukshook.volume.stack import opening_script, push_layers, take_down, unwinding
from lukshook.volume.work import Work, work_on


@frozen
class Created:
    """What `create` made: the header backup's place and the LUKS UUID."""

    header_backup: Path
    uuid: str


def create(volume: Volume, site: Site, progress: Progress) -> Created | None:
    """Make *volume* as configured; None in a dry run.

    Raises `Exists` (image, or a signature on a device), `BadConfiguration` (size, mount point), `Unavailable` (space,
    tools), `Denied` (key).
    """
    wanted = check(volume, site)
    if site.runner.dry:
        mount_point.prepare(volume.mount, site.runner)
        _rehearse(volume, wanted, site)
        return None
    find_tools(engine_choice.tools_of(volume))
    with work_on(volume, site, attach=volume.image.is_given) as work:
        there = work.attachment if volume.image.is_given else None
        if recovered(evolve(work, volume=_as_built(volume, wanted), attachment=there)) is not None:
            raise Exists(f"volume {volume.name} is open", hint=f"lukshook close {volume.name}")
        _refuse_existing(volume, site)  # again, now that it is locked
        check_unknown(work.name, work.state)
        mount_point.prepare(volume.mount, site.runner)
        return _make(work, wanted, progress)


def check(volume: Volume, site: Site) -> int:
    """Check image and size, before anything is made: the bytes of the new image. Raises what `create` does."""
    engine_choice.check_image(volume)
    wanted = _wanted_size(volume)
    _refuse_existing(volume, site)
    _check_space(volume, wanted, site)
    return wanted


def _wanted_size(volume: Volume) -> int:
    if engine_choice.is_device(volume) or volume.image.is_given:
        return 0
    if volume.image.size is None:
        raise BadConfiguration(f"volume {volume.name} has no size", hint='add for example: size = "500GiB"')
    wanted = size.parse(volume.image.size)
    least = _offset(volume) + KINDS[volume.filesystem.filesystem].least
    if wanted < least:
        raise BadConfiguration(
            f"{volume.image.size} is too small for volume {volume.name}",
            hint=f"a header and {volume.filesystem.filesystem} need at least {size.show(least)}",
        )
    return wanted


def _offset(volume: Volume) -> int:
    return cryptsetup.DATA_OFFSET if engine_choice.chosen(volume).header == "luks2" else cryptsetup.LUKS1_OFFSET


def _refuse_existing(volume: Volume, site: Site) -> None:
    path = volume.image.image
    if engine_choice.is_device(volume) or volume.image.is_given:
        with remote.at_hand(volume, site), open_image(path, writable=False) as image:
            _refuse_signatures(image, volume, site.runner)
        return
    found = remote.attachment(volume, site)
    if found is not None:
        if found.look().length is not None:
            raise _exists(volume.image.shown)
        return
    try:
        image_file.look(path)
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            missing = "is not a folder" if path.parent.exists() else "does not exist"
            raise Unavailable(f"{path.parent} {missing}", hint="is the store mounted?") from error
    else:
        raise _exists(os.fspath(path))


def _exists(shown: str) -> Exists:
    return Exists(f"the image {shown} already exists", hint="move it away, or name another; create never overwrites")


def _refuse_signatures(image: ImageFile, volume: Volume, runner: Runner) -> None:
    found = cryptsetup.signatures(image, runner)
    if found:
        raise Exists(
            f"{volume.image.shown} already contains {', '.join(found)}",
            hint=f"if it is not needed: wipefs --all {shlex.quote(os.fspath(image.path))}",
        )


def check_unknown(name: str, state: KnownState) -> None:
    """An image that is only away must not lose its pins and header backup to a new one of the same name.

    What an interrupted `create` left is marked here. The store says nothing of it that could be believed. Raises
    `Exists`.
    """
    backup = state.header_backup
    if state.creating.exists() or not backup.exists():
        return
    raise Exists(
        f"this host already has state for volume {name} (header backup: {backup})",
        hint=f"is the store mounted? before you create a new image, move {backup.with_suffix('.*')} away",
    )


def _check_space(volume: Volume, wanted: int, site: Site) -> None:
    room.check_limit(volume.image.image, wanted)
    if not wanted or (volume.image.fill == "sparse" and volume.space == "warn"):
        return
    found = remote.attachment(volume, site)
    if found is None:
        room.of_new(volume.image.image).check(wanted, sparse=False)
        return
    seen = found.look()
    if seen.free is not None:
        Room(0, 0, seen.free, seen.total).check(wanted, sparse=False)


def ready_key(volume: Volume, site: Site) -> Secret:
    """The volume's key; a new one where the first source can take it and has none yet."""
    source, argument = key_sources.parse(volume.key[0])
    try:
        return site.ask(volume)
    except LukshookError:
        if source.store is None or (source.by_hand is not None and not source.by_hand.is_missing(argument)):
            raise
    fresh = Secret(os.urandom(KEY_BYTES))
    source.store(argument, fresh.text().reveal().decode())
    return fresh


def partial(image: Path) -> Path:
    """The name an image has until it is whole."""
    return image.with_name(f".{image.name}.lukshook-new")


def _as_built(volume: Volume, wanted: int) -> Volume:
    """The volume while its image still has the other name; a remote one has that only at its place."""
    place = partial(volume.image.image) if wanted and volume.image.remote is None else volume.image.image
    return evolve(volume, image=evolve(volume.image, image=place), ledger=False)


def _rehearse(volume: Volume, wanted: int, site: Site) -> None:
    """Show a script that does the same; what no tool can do, the pins and the key's mark, `lukshook trust` does."""
    built = _as_built(volume, wanted)
    place, kind, key_from = built.image.image, engine_choice.chosen(volume).header, key_sources.shown(volume.key)
    run = site.runner.run
    if key_sources.is_to_be_made(volume.key[0]):
        site.runner.note(key_sources.making(volume.key[0]))
    if wanted:
        run(allocation.command(place, 0, wanted, volume.image.fill))
    run(cryptsetup.format_command(place, kind, None, key_from))
    if kind == "luks1":
        both = f"{{ {key_from}; {key_from} | base64 --wrap=0; }}"
        run(cryptsetup.add_key_command(place, both, KEY_BYTES, cryptsetup.TEXT_BYTES))
    opening = opening_of(built, site, read_only=False)
    script = opening_script(built, opening, make=lambda below: _make_commands(volume, below))
    for command in script.opening:
        run(command)
    mode = f"{volume.mount.mode or DEFAULT_MODE:o}"
    site.runner.note(f"mkdir --mode={mode} -- {shlex.quote(os.fspath(volume.data))}")
    for command in script.closing:
        run(command)
    if wanted:
        run(allocation.name(place, volume.image.image))
    site.runner.note(f"lukshook trust {volume.name}")


def _make(work: Work, wanted: int, progress: Progress) -> Created:
    key = ready_key(work.volume, work.site)
    try:
        asking = evolve(work, site=evolve(work.site, ask=lambda _: Secret(key.reveal())))
        with _place(work, wanted, progress) as image:
            return _finish(asking, wanted, image, key)
    finally:
        key.wipe()


@contextmanager
def _place(work: Work, wanted: int, progress: Progress) -> Iterator[ImageFile]:
    """The place for the image: a new file of its full length, or what is given. A new file goes when that fails.

    Its name may lead elsewhere at any moment, so all work is done through the descriptor.
    """
    volume = work.volume
    with _new_remote(work, wanted):
        if not wanted or work.attachment is not None:
            with open_image(volume.image.image, writable=True) as given:
                yield given
            return
    place = partial(volume.image.image)
    with _new_file(place) as image:
        try:
            allocation.extend(image, wanted, volume.image.fill, work.runner, progress)
            yield image
        except BaseException:
            image.remove(place.name)
            raise


def _new_remote(work: Work, wanted: int) -> AbstractContextManager[None]:
    """A new image at a remote place, where that is to be made."""
    if work.attachment is None or not wanted:
        return nullcontext()
    return work.attachment.new(wanted, work.volume.image.fill)


def _new_file(place: Path) -> ImageFile:
    """An empty image; one that a killed `create` left goes first, nothing uses it any more."""
    with suppress(OSError, LukshookError):
        image_file.remove(place)
    return new_image(place)


def _finish(work: Work, wanted: int, image: ImageFile, key: Secret) -> Created:
    """Fill the place for the image: header, file system, header backup, its name."""
    volume, state = work.volume, work.state
    try:
        judged = _write_header(work, image, key)
        known = _build(evolve(work, volume=_as_built(volume, wanted)), image)
        files.write_whole(state.creating, b"", durable=True)
        work.runner.note(cryptsetup.backup_line(image.path, state.header_backup))
        header_file.write(header.copy(image.descriptor), state.header_backup)
        state.save(evolve(known, fill=volume.image.fill))
        if volume.ledger:
            ledger_keeping.start(work, image)
        if wanted:
            _publish(work, image)
    except BaseException:
        if wanted:
            _forget(work, image)
        raise
    state.creating.unlink()
    return Created(state.header_backup, judged.uuid)


def _forget(work: Work, image: ImageFile) -> None:
    """Remove what is known of an image that was not finished; one that has its name already is known."""
    mark = work.state.creating
    if mark.exists() and not _is_published(work, image):
        work.state.header_backup.unlink(missing_ok=True)
        work.state.file.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def _is_published(work: Work, image: ImageFile) -> bool:
    if work.attachment is not None:
        return work.attachment.published
    return image.is_named(work.volume.image.image.name)


def _write_header(work: Work, image: ImageFile, key: Secret) -> Header:
    """Make the header in our own folder, judge it, and write it to *image*: cryptsetup formats nothing on the store."""
    volume = work.volume
    work.state.make_folder()
    draft = work.state.header_draft
    copy = cryptsetup.new_header(
        draft, engine_choice.chosen(volume).header, key, key_sources.shown(volume.key), work.runner
    )
    judged = header.judge(copy, image.size)
    if image.block:
        _refuse_in_use(image)
    if image.block or volume.image.is_given:
        _refuse_signatures(image, volume, work.runner)  # again, right before the first change
    header_file.install_first(copy, judged, image.descriptor)
    return judged


def _refuse_in_use(device: ImageFile) -> None:
    """Check that the block device is not mounted or mapped: O_EXCL fails then (open(2)). Raises `Unavailable`."""
    try:
        os.close(os.open(descriptor_path(device.descriptor), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise Unavailable(
            f"{device.path} is in use: {error.strerror}", hint="is it mounted, or part of a RAID?"
        ) from error


def _make_commands(volume: Volume, place: str) -> tuple[Command, ...]:
    return filesystem.make_commands(volume.filesystem, place, journaled=engine_choice.chosen(volume).journaled)


def _build(work: Work, image: ImageFile) -> Known:
    """The file system, and the folder for backups in it."""
    volume = work.volume
    trust = Accepting(volume.name, Known())
    opening = work.opening(trust, read_only=False, image=image)
    whole = engine_choice.stack_of(volume)
    us = users.ourselves("lukshook create")
    with unwinding(work):
        record = push_layers(work, opening, us, layers=whole[: whole.index("filesystem")])
        top = record.layers[-1][1].path
        for command in _make_commands(volume, top):
            work.runner.run(command)
        take_down(work)
        push_layers(work, opening, us, layers=whole)
        make_data(volume)
        written = take_down(work)
    return evolve(trust.known, written=written, last_close=records.now())


def _publish(work: Work, image: ImageFile) -> None:
    """Give the whole image its name, without ever replacing another file, so that it outlives a power cut."""
    image.sync()
    if work.attachment is not None:
        work.attachment.publish()
        return
    path, runner = work.volume.image.image, work.runner
    try:
        image.run_in_folder(lambda folder: allocation.name(folder / image.path.name, folder / path.name), runner)
    except CommandFailed:
        if not image.is_named(path.name):  # else it has its name, whatever mv said
            raise
    if image.is_named(path.name):
        _sync_name(image, path)
        return
    if image.is_named(image.path.name):
        raise Exists(f"the image {path} was created meanwhile by another process", hint="it was not changed")
    raise Refused(
        f"the image {path} was replaced while it was being created",
        hint="who else can write to its folder? remove what is there and create it again",
    )


def _sync_name(image: ImageFile, path: Path) -> None:
    try:
        image.sync_folder()
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):
            return  # a store without fsync for folders
        raise NotSafe(
            f"the image {path} is complete, but the store did not confirm its name: {error.strerror}",
            hint=f"after the store is mounted again, check that it is there: ls {path}",
        ) from error

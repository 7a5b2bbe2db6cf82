"""A new volume: image, key slot, file system, header backup. Nothing gets its final name before it is whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attrs import evolve, frozen

from lukshook import engine, fill, guard, journal, keys, luks, size, state, users
from lukshook.command import Command, CommandFailed
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, Exists, LukshookError, Unavailable
from lukshook.fill import Progress
from lukshook.journal import Book
from lukshook.layers import LAYERS, filesystem
from lukshook.layers.base import may_be_device
from lukshook.secret import KEY_BYTES, Secret
from lukshook.session import make_data
from lukshook.site import Site, opening_of
from lukshook.stack import push_layers, standing, take_down, unwinding
from lukshook.state import Known
from lukshook.trust import Accepting

#: Space that has to stay free on the store, in bytes: journals and metadata of the store's own file system.
RESERVE = 16 * 1024 * 1024


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
    wanted = _wanted_size(volume)
    _refuse_existing(volume, site)
    _check_space(volume, wanted)
    if site.runner.dry:
        guard.prepare(volume.mount, site.runner)
        _rehearse(volume, wanted, site)
        return None
    with journal.locked(site.run_folder, volume.name) as book:
        if standing(_as_built(volume, wanted), book, site) is not None:
            raise Exists(f"volume {volume.name} is open", hint=f"lukshook close {volume.name}")
        _refuse_existing(volume, site)  # again, now that nobody else is at it
        _refuse_known(volume, site)
        guard.prepare(volume.mount, site.runner)
        return _make(volume, wanted, book, site, progress)


def _wanted_size(volume: Volume) -> int:
    if _is_block(volume.image.image):
        return 0
    if volume.image.size is None:
        raise BadConfiguration(f"volume {volume.name} has no size", hint='add for example: size = "500GiB"')
    wanted = size.parse(volume.image.size)
    least = _offset(volume) + filesystem.KINDS[volume.filesystem.filesystem].least
    if wanted < least:
        raise BadConfiguration(
            f"{volume.image.size} is too small for volume {volume.name}",
            hint=f"a header and {volume.filesystem.filesystem} need at least {size.show(least)}",
        )
    return wanted


def _offset(volume: Volume) -> int:
    return luks.DATA_OFFSET if header_type(volume) == "luks2" else luks.LUKS1_OFFSET


def header_type(volume: Volume) -> str:
    """LUKS2, except where the engine can only read LUKS1."""
    return "luks2" if engine.choose(volume) == "kernel" else "luks1"


def _is_block(path: Path) -> bool:
    try:
        return may_be_device(path) and stat.S_ISBLK(path.lstat().st_mode)
    except OSError:
        return False


def _refuse_existing(volume: Volume, site: Site) -> None:
    image = volume.image.image
    if _is_block(image):
        found = luks.has_signature(image, site.runner)
        if found:
            raise Exists(f"{image} has {found} on it already", hint=f"if it is not needed: wipefs --all {image}")
    elif image.exists() or image.is_symlink():
        raise Exists(
            f"the image {image} is there already",
            hint="move it away, or name another; create never overwrites",
        )
    elif not image.parent.is_dir():
        missing = "no folder" if image.parent.exists() else "not there"
        raise Unavailable(f"the folder {image.parent} is {missing}", hint="is the store mounted?")


def _refuse_known(volume: Volume, site: Site) -> None:
    """An image that is only away must not lose its pins and header backup to a new one of the same name.

    One that was never finished still lies there under its other name.
    """
    backup = state.header_backup(site.state_folder, volume.name)
    if partial(volume.image.image).exists() or not backup.exists():
        return
    raise Exists(
        f"this host knows an image of volume {volume.name} already; its header backup is {backup}",
        hint=f"is the store mounted? for a new image move {backup.with_suffix('.*')} away first",
    )


def _check_space(volume: Volume, wanted: int) -> None:
    if volume.image.fill == "sparse" and volume.space == "warn":
        return
    free = fill.free_space(volume.image.image.parent)
    if wanted + RESERVE > free:
        raise Unavailable(
            f"the store of {volume.image.image} has {size.show(free)} free, the image needs {size.show(wanted)}",
            hint='use a smaller size; or fill = "sparse" with space = "warn", which can fill the store up later',
        )


def ready_key(volume: Volume, site: Site) -> Secret:
    """The volume's key; a new one where the first source can take it and has none yet."""
    source, argument = keys.parse(volume.key[0])
    try:
        return site.ask(volume)
    except LukshookError:
        if source.store is None or (volume.key[0].startswith("file:") and Path(argument).exists()):
            raise
    fresh = Secret(os.urandom(KEY_BYTES))
    source.store(argument, fresh.text().reveal().decode())
    return fresh


def partial(image: Path) -> Path:
    """The name an image has until it is whole."""
    return image.with_name(f".{image.name}.lukshook-new")


def _as_built(volume: Volume, wanted: int) -> Volume:
    """The volume while its image still has the other name."""
    return evolve(volume, image=evolve(volume.image, image=partial(volume.image.image))) if wanted else volume


def _rehearse(volume: Volume, wanted: int, site: Site) -> None:
    place = volume.image.image if not wanted else partial(volume.image.image)
    if keys.is_to_be_made(volume.key[0]):
        site.runner.note(keys.making(volume.key[0]))
    if wanted:
        site.runner.run(fill.command(place, 0, wanted, volume.image.fill))
    site.runner.run(luks.format_command(place, header_type(volume), None, keys.shown(volume.key)))
    opening = opening_of(volume, site, Accepting(volume.name, Known()), read_only=False)
    below = os.fspath(place)
    for name in engine.stack(engine.choose(volume), volume)[1:]:
        layer, spec = LAYERS[name], getattr(volume, name)
        expected = layer.expect(spec, below, opening)
        commands = layer.open_commands(spec, below, opening)
        for command in _make_commands(volume, below) if name == "filesystem" else commands:
            site.runner.run(command)
        below = expected
    if wanted:
        site.runner.run(fill.name(place, volume.image.image))


def _make(volume: Volume, wanted: int, book: Book, site: Site, progress: Progress) -> Created:
    key = ready_key(volume, site)
    image = volume.image.image
    place = image if not wanted else _new_file(volume, wanted, site, progress)
    built = _as_built(volume, wanted)
    asking = evolve(site, ask=lambda _: Secret(key.reveal()))
    try:
        known = _build(built, book, asking, key)
        backup = state.header_backup(site.state_folder, volume.name)
        journal.private_folder(site.state_folder)
        luks.back_up_header(place, backup, site.runner)
        state.save(site.state_folder, volume.name, evolve(known, fill=volume.image.fill))
        if wanted:
            _publish(place, image, site)
    except BaseException:
        if wanted:
            place.unlink(missing_ok=True)
            state.header_backup(site.state_folder, volume.name).unlink(missing_ok=True)
            state.file_of(site.state_folder, volume.name).unlink(missing_ok=True)
        raise
    finally:
        key.wipe()
    return Created(backup, luks.read_header(image).uuid)


def _make_commands(volume: Volume, place: str) -> tuple[Command, ...]:
    return filesystem.make_commands(volume.filesystem, place, journaled=engine.choose(volume) != "rootless")


def _new_file(volume: Volume, wanted: int, site: Site, progress: Progress) -> Path:
    place = partial(volume.image.image)
    if place.exists():
        place.unlink()  # what a killed create left; nothing stands on it any more
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise Unavailable(
            f"{volume.image.image} cannot be made: {error.strerror}", hint="is the store writable?"
        ) from error
    try:
        fill.extend(place, 0, wanted, volume.image.fill, site.runner, progress)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return place


def _build(volume: Volume, book: Book, site: Site, key: Secret) -> Known:
    """Header, file system, and the folder for backups, in the image as it is named now."""
    place = volume.image.image
    site.runner.run(luks.format_command(place, header_type(volume), key, keys.shown(volume.key)))
    for form in luks.forms(key, header_type(volume))[1:]:
        luks.add_key(place, key, form, site.runner)
    luks.mark(place, key, site.runner)
    trust = Accepting(volume.name, Known())
    opening = opening_of(volume, site, trust, read_only=False)
    whole = engine.stack(engine.choose(volume), volume)
    us = users.ourselves("lukshook create")
    with unwinding(volume, book, site):
        record = push_layers(volume, book, opening, us, layers=whole[: whole.index("filesystem")])
        top = record.layers[-1][1].path
        for command in _make_commands(volume, top):
            site.runner.run(command)
        take_down(volume, book, site)
        push_layers(volume, book, opening, us, layers=whole)
        make_data(volume)
        written = take_down(volume, book, site)
    return evolve(trust.known, written=written, last_close=journal.now())


def _publish(place: Path, image: Path, site: Site) -> None:
    """Give the whole image its name, without ever replacing another file, so that it outlives a power cut."""
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(descriptor)
    os.close(descriptor)
    try:
        site.runner.run(fill.name(place, image))
    except CommandFailed:
        if place.exists():  # else it has its name, whatever mv said
            raise
    if place.exists():
        raise Exists(f"the image {image} has appeared meanwhile", hint="it was left as it is")
    journal.sync_folder(image.parent)


def sheet(volume: Volume, created: Created, key: Secret | None) -> str:
    """The recovery sheet: everything that opens the image without lukshook. The key stands in it where it is given."""
    shown = key.text().reveal().decode() if key else "KEY"
    source, argument = keys.parse(volume.key[0])
    where = "" if key else f"\nThe key (KEY) is what this prints:\n\n    {source.shown(argument)}\n"
    image = volume.image.image
    return f"""Recovery sheet of volume {volume.name} - keep it where neither this machine's loss nor a thief reaches it

Image:         {image}
LUKS UUID:     {created.uuid}
Header backup: {created.header_backup}   (copy it elsewhere: without a header the key opens nothing)
{where}
To open the image without lukshook, on any Linux with cryptsetup, as root:

    echo "{shown}" | base64 --decode | cryptsetup luksOpen --key-file=- {image} backup_crypt
    mount /dev/mapper/backup_crypt /mnt

and to close it:

    umount /mnt
    cryptsetup luksClose backup_crypt
"""

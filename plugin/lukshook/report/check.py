"""Diagnostics for a volume, in the order in which opening would hit them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

from lukshook import hosts, size
from lukshook.config import Volume
from lukshook.errors import LukshookError, NoImage, Unavailable
from lukshook.layers import image, mount_point
from lukshook.ledger import summary
from lukshook.luks import header, header_file
from lukshook.store import liveness, room
from lukshook.store.image_file import ImageFile, open_image
from lukshook.store.room import Room
from lukshook.system import json_files, kernel, platforms, swap
from lukshook.system.command import Runner, find_tools, read
from lukshook.system.secret import Secret
from lukshook.volume import engine_choice, header_change, open_layers, opening, overdue, records, remote, unrecorded
from lukshook.volume.context import Site
from lukshook.volume.judgement import check_known_length
from lukshook.volume.known_state import KnownState
from lukshook.volume.work import advised

#: Changes only where a program that reads the JSON could break: a field goes, or means something else.
SCHEMA = 1


@frozen
class Finding:
    """One line of `check`: *level* is "ok", "warning" or "fail"; *exit_code* is that of the failure."""

    level: str
    text: str
    hint: str = ""
    exit_code: int = 0


Probe = Callable[[], Iterator[Finding]]


def ok(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("ok", text)


def warning(text: str, hint: str) -> Finding:
    """Works, but not as well as it could."""
    return Finding("warning", text, hint)


#: The programs of which old versions are refused, and how they say their version. fuse2fs has a gate of its own.
_JUDGED = {"cryptsetup": "--version", "losetup": "--version", "e2fsck": "-V"}


def volume(checked: Volume, site: Site, environment: dict[str, str]) -> Iterator[Finding]:
    """All findings for a volume. Changes nothing; asks for the key only to see whether its source answers."""
    alone: tuple[Probe, ...] = (
        lambda: _engine(checked),
        _surroundings,
        lambda: _key(checked, site),
        lambda: _mountpoint(checked, site),
        lambda: _overdue(checked, site),
        lambda: _recorder(checked, site.runner),
        lambda: _ledger(checked, site),
        lambda: _hosts(checked, site.runner, environment),
        lambda: _channels(checked, site),
    )
    on_store: tuple[Probe, ...] = (
        lambda: _versions(checked, site.runner),
        lambda: _length(checked, site),
        lambda: _image(checked, site),
        lambda: _snapshots(checked, site),
    )
    state = site.state(checked)
    for probe in alone:
        yield from _tried(probe, state)
    under = tuple(_tried(lambda: _store(checked, site), state))
    yield from under
    if not any(finding.level == "fail" for finding in under):
        yield from _once(_tried(lambda: _at_hand(checked, site, on_store), state))


def before_create(checked: Volume, site: Site, environment: dict[str, str]) -> Iterator[Finding]:
    """The findings for a volume that is still to be made. Changes nothing, and asks for no key."""
    probes: tuple[Probe, ...] = (
        lambda: _engine(checked),
        _surroundings,
        lambda: _recorder(checked, site.runner),
        lambda: _hosts(checked, site.runner, environment),
        lambda: _store(checked, site),
        lambda: _versions(checked, site.runner),
    )
    for probe in probes:
        yield from _tried(probe, site.state(checked))


def _overdue(checked: Volume, site: Site) -> Iterator[Finding]:
    line = overdue.line(checked, site)
    if line:
        yield warning(line, overdue.HINT.replace("NAME", checked.name))


def _at_hand(checked: Volume, site: Site, probes: tuple[Probe, ...]) -> Iterator[Finding]:
    """What *probes* find, with a remote image at its local path."""
    with remote.at_hand(checked, site):
        for probe in probes:
            yield from _tried(probe, site.state(checked))


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Each finding once: several probes look at the image, and each fails where it is not there."""
    seen = set()
    for finding in findings:
        if finding not in seen:
            seen.add(finding)
            yield finding


def _tried(probe: Probe, state: KnownState) -> Iterator[Finding]:
    try:
        yield from probe()
    except NoImage as error:
        yield Finding("fail", error.message, advised(error, state).hint, error.exit_code)
    except LukshookError as error:
        yield Finding("fail", error.message, error.hint, error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield Finding("fail", f"{where}{error.strerror}", "see docs/troubleshooting.md", Unavailable.exit_code)


def _engine(checked: Volume) -> Iterator[Finding]:
    chosen, why = engine_choice.choose_and_say(checked)
    yield ok(f"engine {chosen}: {why}")
    engine_choice.check_image(checked)


def _versions(checked: Volume, runner: Runner) -> Iterator[Finding]:
    needed = engine_choice.tools_of(checked)
    find_tools(needed)
    for tool in (tool for tool in needed if tool in _JUDGED):
        result = runner.run(read(tool, _JUDGED[tool], ok=range(256)))
        match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", result.out + result.err)
        found = tuple(int(part) for part in match.groups() if part) if match else ()
        text = ".".join(map(str, found))
        fault = platforms.fault(tool, found)
        if fault is not None:
            raise Unavailable(
                f"{tool} {text} is too old",
                hint=f"at least {'.'.join(map(str, fault.fixed))} is needed: {fault.why}",
            )
        yield ok(f"{tool} {text}")
    for layer in engine_choice.stack_of(checked):
        open_layers.spec_of(checked, layer).check_tools(runner)


def _surroundings() -> Iterator[Finding]:
    """What a host's unit or job takes from us: namespaces, capabilities."""
    if os.geteuid() == 0 and not kernel.has_capability(kernel.CAP_SYS_ADMIN):
        yield warning(
            "this process may not mount: the capability CAP_SYS_ADMIN is missing", "lukshook hooks systemd NAME"
        )
    if _private_namespace():
        yield warning(
            "this process has its own mount namespace: other processes do not see what a hook mounts here",
            "PrivateTmp= and similar options do that; lukshook hooks systemd NAME prints lines that work with them",
        )
    areas = swap.in_the_clear()
    if areas:
        yield warning(
            f"swap is not encrypted ({', '.join(areas)}): a key in memory may be written there",
            "swapoff, or encrypt the swap",
        )


def _private_namespace() -> bool:
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt")
    except OSError:
        return False


def _store(checked: Volume, site: Site) -> Iterator[Finding]:
    """Whether it answers: else whatever touches the image would hang. And who else could have the image open."""
    checked.image.probe(site.runner)
    if checked.image.remote is not None:
        yield ok(f"store {checked.image.shown}: {checked.image.remote.abilities.in_words()}")
    why = checked.image.local_locks()
    if why and not checked.filesystem.mmp:
        yield warning(f"a lock on the image may not reach other hosts: its store is {why}", opening.SECOND_HOST)


def _image(checked: Volume, site: Site) -> Iterator[Finding]:
    with open_image(checked.image.image, writable=not checked.read_only) as found:
        handle = image.handle_of(found)
        yield ok(f"image {checked.image.shown}, {size.show(handle.size)}")
        yield from _header(checked, found, site)
        yield from _space(checked, remote.room_of(found, remote.attachment(checked, site)))


def _length(checked: Volume, site: Site) -> Iterator[Finding]:
    """Nothing, where the image is long enough for what this host knows to be in it."""
    with open_image(checked.image.image, writable=False) as found:
        check_known_length(checked.name, site.state(checked).known, found.size)
        if not header_change.is_settled(site.state(checked)):
            return
        judged = header.judge(header.copy(found.descriptor), found.size)
        header.check_sectors(f"the image of volume {checked.name}", judged, found.size)
    yield from ()


def _header(checked: Volume, found: ImageFile, site: Site) -> Iterator[Finding]:
    known = site.state(checked).known
    header_change.check_settled(site.state(checked))
    judged = header.judge(header.copy(found.descriptor), found.size)
    if known.pins is None:
        yield warning("this host does not know the header yet", f"lukshook trust {checked.name}")
    else:
        header.compare(known.pins, judged)
        yield ok(f"header {judged.type} {judged.uuid}, as known")
    if judged.copies < 2 and judged.type == "luks2":
        yield warning("one of the two copies of the header is damaged", f"lukshook header restore {checked.name}")
    backup = site.state(checked).header_backup
    header_file.check_place(backup)
    yield (
        ok(f"header backup {backup}")
        if header_file.is_there(backup)
        else warning("there is no header backup", f"lukshook header backup {checked.name}")
    )


def _key(checked: Volume, site: Site) -> Iterator[Finding]:
    key: Secret = site.ask(checked)
    key.wipe()
    yield ok(f"key source {checked.key[0].split(' ')[0]} answers (lukshook key test {checked.name} tries the key)")


def _recorder(checked: Volume, runner: Runner) -> Iterator[Finding]:
    """What a close costs with a ledger."""
    if not checked.ledger:
        return
    lacks = recording_lacks(checked, runner)
    if lacks is None:
        yield ok("what is written is recorded, so each close reads only that again")
    else:
        yield warning(f"each close reads the whole image: {lacks.message}", lacks.hint)


def recording_lacks(checked: Volume, runner: Runner) -> Unavailable | None:
    """Why no layer of the volume can record what is written; None where one can."""
    lacks = Unavailable(
        f"the {engine_choice.choose(checked)} engine does not record what is written",
        hint="a close takes long: docs/verify.md",
    )
    for layer in engine_choice.stack_of(checked):
        try:
            if open_layers.spec_of(checked, layer).can_record(runner):
                return None
        except Unavailable as error:
            lacks = error
    return lacks


def _ledger(checked: Volume, site: Site) -> Iterator[Finding]:
    """What the ledger knows of the image on the store."""
    state = site.state(checked)
    if not checked.ledger and not state.ledger.is_dir():
        return
    try:
        found = summary.of(state.ledger)
    except json_files.Damaged as error:
        yield warning(f"the ledger is damaged: {error}", f"lukshook verify {checked.name}")
        return
    if found is None:
        yield warning("there is no ledger yet", f"the next opening begins it, or: lukshook verify {checked.name}")
        return
    if found.bad:
        yield warning(f"damaged pieces of the image: {found.bad}", f"lukshook verify --name-files {checked.name}")
    if found.state.verified is None and found.recent < found.count:
        yield warning("the image was never verified as a whole", f"lukshook verify {checked.name}")
    else:
        yield ok(f"{math.floor(found.share * 100)} % of the image was verified within 30 days")


def _mountpoint(checked: Volume, site: Site) -> Iterator[Finding]:
    record, damaged = records.look(site.run_folder, checked.name)
    if damaged:
        yield warning(damaged, f"the next opening or closing asks the kernel: lukshook close {checked.name}")
    if record is None or not record.layers:
        unrecorded.refuse(checked)
    elif mount_point.covering(checked.mountpoint) is not None:
        yield ok(f"mount point {checked.mountpoint}: the volume is open")
        return
    if mount_point.look(checked.mount):
        yield ok(
            f"mount point {checked.mountpoint}: empty, and nothing can be written there while the volume is closed"
        )
    else:
        yield warning(f"the bare mount point {checked.mountpoint} is not guarded", "the next opening guards it")


def _space(checked: Volume, found: Room) -> Iterator[Finding]:
    if found.free is None:
        return  # a device lies on no store
    if found.may_run_out:
        yield warning(
            f"the image may still grow by {size.show(found.holes)}, the store has {size.show(found.free)} free",
            "free space, or make the image smaller: lukshook resize",
        )
    else:
        yield ok(f"store has {size.show(found.free)} free, the image may still take {size.show(found.holes)}")
    kind = liveness.copies_on_write(checked.image.image)
    if kind:
        yield warning(
            f"the store is {kind}, where overwriting needs free space too: reserved blocks are not a guarantee there",
            "keep some space free; on btrfs: chattr +C on the folder before you create the image",
        )


def _snapshots(checked: Volume, site: Site) -> Iterator[Finding]:
    """Whether a snapshot could be taken now: without one a backup is as safe, so none of this is a failure."""
    from lukshook.volume import snapshotting, versions  # noqa: PLC0415 - few volumes have them

    if checked.snapshot is not None:
        try:
            kept = snapshotting.rehearse(checked, checked.snapshot, site)
            yield ok(f"snapshots: {checked.snapshot.kind}, {kept} of {checked.snapshot.keep} kept")
        except (LukshookError, OSError) as error:
            yield warning(f"no snapshot can be taken: {_message(error)}", getattr(error, "hint", ""))
        yield from _room_for_snapshot(checked, site)
    for pattern in checked.versions:
        found = len(versions.listed(pattern, site))
        yield ok(f"versions: {found} by {pattern}") if found else warning(f"no file is found by {pattern}", _PATTERN)


_PATTERN = "the option versions finds regular files, and follows no link from its first wildcard on"


def _message(error: LukshookError | OSError) -> str:
    return error.message if isinstance(error, LukshookError) else error.strerror or str(error)


def _room_for_snapshot(checked: Volume, site: Site) -> Iterator[Finding]:
    """A snapshot keeps what is overwritten, so each backup takes as much room again as it writes."""
    free, written = room.at(checked.image.image).free, site.state(checked).known.last_written
    if free is not None and written is not None and written > free:
        yield warning(
            f"the last backup wrote {size.show(written)}, the store has {size.show(free)} free: "
            "with a snapshot, overwritten blocks need room too",
            "free space, or keep fewer snapshots: keep_snapshots",
        )


def _hosts(checked: Volume, runner: Runner, environment: dict[str, str]) -> Iterator[Finding]:
    """Settings of backup tools that break hooks, do not fit the version that is installed, or miss the volume."""
    from lukshook.host_files import judged  # noqa: PLC0415 - `init` and `check` alone read them

    for text, hint in hosts.warnings(os.fspath(checked.mountpoint), runner, environment):
        yield warning(text, hint)
    home = environment.get("HOME", "")
    target = judged.Target(checked.name, checked.mountpoint, Path(home) if home.startswith("/") else None)
    for text, hint in judged.warnings(target):
        yield warning(text, hint)


#: Seconds for the key sources of all channels to answer.
_CHANNEL_SECONDS = 30.0


def _channels(checked: Volume, site: Site) -> Iterator[Finding]:
    """Whether each channel could be reached; nothing is sent, and no backup depends on it."""
    if site.notices is None:
        return
    channels = tuple(
        channel
        for channel in site.notices.channels
        if any(channel.is_for(event, checked.name) for event in channel.events)
    )
    for name, fault in site.notices.rehearse(channels, site.runner, _CHANNEL_SECONDS).items():
        if fault:
            yield warning(f"no message through {name}: {fault}", "docs/monitoring.md describes each kind")
        else:
            yield ok(f"messages through {name} (lukshook notify {name} sends one)")

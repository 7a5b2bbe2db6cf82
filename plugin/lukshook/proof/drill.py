"""A drill: does a restore work with what the recovery sheet names? Everything is read, and nothing is changed.

The header backup opens the image, each key in turn has to open that, and files are read in the volume. What is found
wrong is collected: a drill says all of it at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, evolve, field, frozen

from lukshook.config import Volume
from lukshook.errors import Denied, LukshookError, Refused, Unavailable
from lukshook.keys import key_sources
from lukshook.luks import cryptsetup, header
from lukshook.luks.header import Copy, Header
from lukshook.options.values import Drill
from lukshook.proof import reading
from lukshook.proof.reading import File
from lukshook.system import clock, ownership, signals
from lukshook.system.secret import Secret
from lukshook.volume import copies, header_change, users
from lukshook.volume.context import Site
from lukshook.volume.copies import Age
from lukshook.volume.work import work_on

#: Faults that are named; the others are counted.
_MOST_NAMED = 20


@define
class Found:
    """What a drill has found.

    *faults*: what a restore would fail with, in words; *more*: how many others there are. *unproven*: what was to be
    read or compared, and where there was nothing. *age*: of the image, None where it was not opened. *keys*: the
    sources whose key opens the volume. *files*, *bytes*: how many were read, of *total* files. *compared*: files that
    were found to be as their source.
    """

    faults: list[str] = field(factory=list)
    more: int = 0
    unproven: list[str] = field(factory=list)
    age: Age | None = None
    keys: list[str] = field(factory=list)
    files: int = 0
    total: int = 0
    compared: int = 0
    bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether the drill has proven that a restore works, as far as it was asked to."""
        return not self.faults and not self.unproven

    def fault(self, text: str) -> None:
        """A restore would fail with that."""
        if len(self.faults) < _MOST_NAMED:
            self.faults.append(text)
        else:
            self.more += 1


@frozen
class Means:
    """What a drill works with.

    *header*: the file of the header backup. *run*: runs a user's command with the terminal; its exit status. *typed*:
    key sources that are the caller's own words: one that gives no key is refused, and no finding.
    """

    header: Path
    run: Callable[[tuple[str, ...]], int]
    typed: tuple[str, ...] = ()


def drill(volume: Volume, plan: Drill, means: Means, site: Site) -> Found | None:
    """Try whether *volume* can be restored, as *plan* says, and note the outcome; None in a dry run.

    Raises `Unavailable` where it cannot be tried now, for example because the volume is open.
    """
    place = site.mount_folder / f"{volume.name}.drill"
    copy = volume.copy_at(place, plan.image or volume.image.image)
    if site.runner.dry:
        site.runner.note(f"# with the header in {means.header} in place of the image's own:")
        copies.rehearse(copy, site, _in_words(plan, place))
        return None
    if plan.image is None:
        header_change.check_settled(site.state(volume))
    found = Found()
    _try(volume, copy, plan, means, site, found)
    _note(volume, site, found)
    return found


def _try(volume: Volume, copy: Volume, plan: Drill, means: Means, site: Site, found: Found) -> None:
    try:
        kept = copies.load_header(means.header)
        judged = header.judge(kept, kept.size * 2)
    except (Unavailable, Refused) as error:
        found.fault(error.message)
        return
    _check_known(volume, judged, means.header, site, found)
    key = _first_key(evolve(volume, key=plan.key or volume.key), means, kept, judged, site, found)
    if key is None:
        return
    try:
        with _opened(volume, copy, kept, key, site, found):
            _check_age(volume, plan, found)
            _read(copy.mountpoint, plan, means, found, _before_last_backup(volume, site))
    except (Refused, Denied) as error:
        found.fault(error.message)
    finally:
        key.wipe()


def _check_known(volume: Volume, judged: Header, file: Path, site: Site, found: Found) -> None:
    """The header backup has to be the header as this host knows it."""
    pins = site.state(volume).known.pins
    if pins is None:
        return
    try:
        header.compare(pins, judged)
    except Refused as error:
        found.fault(f"{file} is not the last known header of volume {volume.name}: {error.message}")


def _first_key(volume: Volume, means: Means, kept: Copy, judged: Header, site: Site, found: Found) -> Secret | None:
    """The first key of *volume* that opens the header backup; all have to."""
    first: Secret | None = None
    for source in volume.key:
        name = key_sources.name_of(source)
        try:
            key = site.ask(evolve(volume, key=(source,)))
        except (Denied, Unavailable) as error:
            if source in means.typed:
                raise
            found.fault(f"there is no key from {name}: {error.message}")
            continue
        if header.verify_mac(judged, key) is False or not cryptsetup.opens(kept, judged, key, site.runner):
            found.fault(f"the key from {name} does not open the header backup")
            key.wipe()
            continue
        found.keys.append(name)
        if first is None:
            first = key
        else:
            key.wipe()
    return first


@contextmanager
def _opened(volume: Volume, copy: Volume, kept: Copy, key: Secret, site: Site, found: Found) -> Iterator[None]:
    """The copy, open at its own folder with the header backup."""
    ownership.private_folder(site.mount_folder)
    asking = evolve(site, ask=lambda _: Secret(key.reveal()))
    us = users.ourselves(f"lukshook drill {volume.name}")
    try:
        found.age = copies.open_copy(volume, copy, us, asking, header=kept)
    except BaseException:
        with suppress(OSError):
            copy.mountpoint.rmdir()
        raise
    try:
        yield
    except BaseException:
        signals.ignore()
        try:
            copies.close_copy(volume, copy.mountpoint, site)
        except LukshookError as error:
            site.warn(error.message)
        raise
    copies.close_copy(volume, copy.mountpoint, site)


def _check_age(volume: Volume, plan: Drill, found: Found) -> None:
    age = found.age
    if age is None:
        return
    if age.own and age.behind is not None and age.behind > 0:
        found.fault(f"the image of volume {volume.name} is older than when this host closed it last")
    if plan.newer_than is None:
        return
    if age.last_write is None:
        found.unproven.append("this kind of file system does not say when it was last written, so its age is not known")
        return
    passed = clock.age(age.last_write)
    if passed is None:
        found.unproven.append(
            f"{plan.image or volume.image.shown} was last written {clock.show(age.last_write)}, which is still to "
            "come: a clock is or was wrong, so its age is not known"
        )
    elif passed > plan.newer_than:
        found.fault(f"{plan.image or volume.image.shown} was last written {clock.show(age.last_write)}, too long ago")


def _before_last_backup(volume: Volume, site: Site) -> float | None:
    """When the last backup began, None where that is not known, or it has failed."""
    known = site.state(volume).known
    if known.last_result != "done" or known.last_end is None or known.duration is None:
        return None
    return known.last_end - known.duration


def _read(root: Path, plan: Drill, means: Means, found: Found, before: float | None) -> None:
    """What was asked for; where nothing was, read files."""
    for source, inside in plan.sources:
        compare(source, root, inside, plan.files, found, before)
    if plan.check:
        _check(root, plan, means, found)
    if not plan.sources and not plan.check:
        _read_some(root, plan.files, found)


def _check(root: Path, plan: Drill, means: Means, found: Found) -> None:
    """Run the user's own check. A signal that reaches us meanwhile ends that, and its status tells us."""
    status = means.run(_with_folder(plan.check, root))
    if status - 128 in signals.SIGNALS:
        raise signals.Interrupted(status - 128)
    if status:
        found.fault(f"the check {plan.check[0]} exited with {status}")


def _read_some(root: Path, count: int, found: Found) -> None:
    full = (file for file in reading.files_in(root, found.fault) if file.size)
    chosen, found.total = reading.sample(full, count)
    if not chosen:
        found.unproven.append("no file in the volume has any content, so nothing was read")
    for file in chosen:
        try:
            found.bytes += reading.read_whole(root / file.path)
            found.files += 1
        except OSError as error:
            found.fault(f"{file.path} in the volume cannot be read: {error.strerror}")


def compare(source: Path, root: Path, inside: str, count: int, found: Found, before: float | None = None) -> None:
    """Compare files in the folder *inside* of the volume at *root* with those in *source* of the same size and time.

    *before*: a moment before the last backup, as in `reading.is_wrong_size`.
    """
    folder = root / inside
    if os.path.realpath(folder) != os.fspath(folder):
        found.unproven.append(f"the place of {source} in the volume leads elsewhere through a link")
        return
    if not os.path.isdir(folder):  # noqa: PTH112 - what cannot be looked at counts as missing
        found.unproven.append(
            f"there is no folder {inside} in the volume, or it cannot be read, so nothing can be compared"
        )
        return
    same = (file for file in reading.files_in(folder, found.fault) if _is_candidate(source, file, found, before))
    chosen, _ = reading.sample(same, count)
    if not chosen:
        found.unproven.append(f"no file in {source} is unchanged since it was backed up, so nothing can be compared")
    elif not sum(_compare_one(source / file.path, folder / file.path, file, found) for file in chosen):
        found.unproven.append(f"{len(chosen)} files in {source} could not be compared: they cannot be read, or change")


def _is_candidate(source: Path, file: File, found: Found, before: float | None) -> bool:
    """Whether comparing *file* can tell anything: it has content, and its source has not changed since.

    One of another size is a fault where its source has not changed since either.
    """
    found.total += 1
    if reading.is_wrong_size(source / file.path, file, before):
        found.fault(f"{file.path} in the volume has not the size of {source / file.path}, which has not changed since")
    return file.size > 0 and reading.is_unchanged(source / file.path, file)


def _compare_one(source: Path, path: Path, file: File, found: Found) -> bool:
    """Compare a file with its source; whether that tells anything of the volume."""
    try:
        different = reading.differs(path, source)
    except OSError as error:
        if error.filename == os.fspath(source):
            return False
        found.fault(f"{file.path} in the volume cannot be read: {error.strerror}")
        return True
    if different and not reading.is_unchanged(source, file):
        return False
    if different:
        found.fault(f"{file.path} in the volume differs from {source}")
    else:
        found.compared += 1
    found.files += 1
    found.bytes += file.size
    return True


def _with_folder(check: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """*check* with the folder in place of {}, else behind it."""
    put = tuple(word.replace("{}", os.fspath(folder)) for word in check)
    return put if put != check else (*check, os.fspath(folder))


def _in_words(plan: Drill, place: Path) -> list[str]:
    """What a drill does in the volume, as remarks."""
    lines = [f"# compares {plan.files} files of {place / inside} with {source}" for source, inside in plan.sources]
    if plan.check:
        lines.append("# runs: " + " ".join(_with_folder(plan.check, place)))
    return lines or [f"# reads {plan.files} files of {place}"]


def _note(volume: Volume, site: Site, found: Found) -> None:
    """Keep the outcome; nothing else that is known changes. A warning where that cannot be kept."""
    try:
        _remember(volume, site, found)
    except LukshookError as error:
        site.warn(f"the outcome of the drill is not noted: {error.message}")


def _remember(volume: Volume, site: Site, found: Found) -> None:
    with work_on(volume, site) as work:
        known = work.state.known
        work.remember(
            evolve(
                known,
                last_drill=clock.now() if found.passed else known.last_drill,
                drill_result="passed" if found.passed else "failed",
                drill_keys=len(found.keys),
                drill_files=found.files,
                drill_compared=found.compared,
                drill_bytes=found.bytes,
            )
        )

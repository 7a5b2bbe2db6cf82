"""Whatever a command does, and whenever we are stopped: nothing is left, nothing is lost, and the next run works.

One row for each command that changes anything, in the state it starts from; the steps that go wrong are those which
the command really makes (`command_faults.py`). For any engine: a test file imports from here and has a fixture "volume"
from `volume_with_a_file`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from lukshook.system.secret import Secret, decode_key
from support.command_faults import FAULTS, KILLS, Fault
from support.key_volume import opens
from support.lukshook_process import Done
from support.volume import NAME, CliVolume, closing

TEXT = "backed up earlier " * 1000
MIB = 1 << 20
#: By how much each row's stride is multiplied: a test kernel takes longer. No multiple of 3 either.
LONGER_STRIDE = {"kernel": 2, "userspace": 1}
#: Those of docs/exit-codes.md, and those of a process that a signal ended.
STATUSES = {0, 64, 65, 66, 69, 71, 73, 74, 75, 77, 78, 130, 143, -9}


@frozen
class Trial:
    """A command in which something went wrong; *killed*: lukshook itself, with SIGKILL."""

    volume: CliVolume
    arguments: tuple[str, ...]
    done: Done
    killed: bool

    def again(self, *accepted: int) -> None:
        """The same command goes on from where it was stopped; *accepted* say that nothing was left to do."""
        repeated = self.volume.lukshook(*self.arguments)
        assert repeated.returncode in (0, *accepted), (self.arguments, repeated.stderr)


@frozen
class Row:
    """A command, after a colon in which state: *arrange* brings the volume into that and gives the arguments.

    *see* holds right after it, whatever went wrong; *finish* does what the next backup does not, and sees that it is
    done. Without --long only one in *stride* pairs of step and fault is tried; no multiple of 3, so that they meet all
    nine faults.
    """

    name: str
    stride: int
    arrange: Callable[[CliVolume], tuple[str, ...]]
    see: Callable[[Trial], None]
    finish: Callable[[Trial], None]
    engines: tuple[str, ...] = ("kernel", "userspace")


# The states that commands start from


def closed(*arguments: str) -> Callable[[CliVolume], tuple[str, ...]]:
    """The volume is closed."""
    return lambda volume: arguments


def backed_up(volume: CliVolume) -> tuple[str, ...]:
    """A backup has written, and is over."""
    volume.do("before-backup", NAME)
    (volume.data / "fresh").write_text(TEXT)
    return ("after-backup", NAME)


def half_closed(volume: CliVolume) -> tuple[str, ...]:
    """An after-backup was killed."""
    arguments = backed_up(volume)
    volume.start(*arguments, prepare=Fault(volume.folder / "steps", "KILL to us before", 1)).wait()
    return ("before-backup", NAME)


def opened_by_hand(volume: CliVolume) -> tuple[str, ...]:
    """Somebody looks for a file."""
    volume.do("open", NAME)
    return ("close", NAME)


def copy_to_open(volume: CliVolume) -> tuple[str, ...]:
    """Somebody wants to see what is in the image, elsewhere."""
    return ("open", NAME, "--at", str(volume.folder / "elsewhere"))


def copy_opened(volume: CliVolume) -> tuple[str, ...]:
    """Somebody has looked."""
    volume.do(*copy_to_open(volume))
    return ("close", *copy_to_open(volume)[1:])


def not_there(volume: CliVolume) -> tuple[str, ...]:
    """No volume yet."""
    volume.remove()
    volume.image.unlink(missing_ok=True)
    shutil.rmtree(volume.state_folder, ignore_errors=True)
    return ("create", NAME)


def to_grow(volume: CliVolume) -> tuple[str, ...]:
    """Closed, and two MiB too small."""
    return ("resize", NAME, f"{volume.image.stat().st_size // MIB + 2}MiB")


def to_grow_in_use(volume: CliVolume) -> tuple[str, ...]:
    """The same, open for a backup."""
    volume.do("before-backup", NAME)
    return to_grow(volume)


def to_grow_alone(volume: CliVolume) -> tuple[str, ...]:
    """The same for the helper that needs no configuration."""
    return ("lukshook-resize", str(volume.image), to_grow(volume)[-1], "--key", f"file:{volume.key}")


def to_shrink(volume: CliVolume) -> tuple[str, ...]:
    """Closed, and a MiB too large."""
    if volume.image.stat().st_size < 72 * MIB:
        volume.do("resize", NAME, "72MiB")
    return ("resize", NAME, f"{volume.image.stat().st_size // MIB - 1}MiB", "--yes")


def unknown(volume: CliVolume) -> tuple[str, ...]:
    """This host knows nothing of the volume."""
    (volume.state_folder / f"{NAME}.json").unlink()
    return ("trust", NAME)


def second_key(volume: CliVolume) -> Path:
    """The key of a second person."""
    return volume.folder / "second"


def with_one_key(volume: CliVolume) -> tuple[str, ...]:
    """The own key alone opens the volume."""
    source = f"file:{second_key(volume)}"
    if second_key(volume).exists():
        volume.do("key", "remove", NAME, "--key", source)
        second_key(volume).unlink()
    return ("key", "add", NAME, "--key", source)


def with_two_keys(volume: CliVolume) -> tuple[str, ...]:
    """A second key opens it as well."""
    second_key(volume).unlink(missing_ok=True)
    volume.do(*with_one_key(volume))
    return ("key", "remove", NAME, "--key", f"file:{second_key(volume)}")


def with_an_old_key(volume: CliVolume) -> tuple[str, ...]:
    """The key is to be replaced; a copy of it is kept."""
    shutil.copy(volume.key, old_key(volume))
    return ("key", "rotate", NAME)


def with_an_old_key_for_rekey(volume: CliVolume) -> tuple[str, ...]:
    """The same; the volume key is to be replaced too. Whether another row has left a second key does not matter."""
    with_an_old_key(volume)
    return ("key", "rekey", NAME, "--drop-other-keys")


def old_key(volume: CliVolume) -> Path:
    """What the key was before it was rotated."""
    return volume.folder / "old"


def with_a_broken_header(volume: CliVolume) -> tuple[str, ...]:
    """The store has spoilt the header."""
    with volume.image.open("r+b") as image:
        image.write(os.urandom(64 * 1024))
    return ("header", "restore", NAME)


def to_snapshot(volume: CliVolume) -> tuple[str, ...]:
    """A backup has written, and is over; a copy of the image is taken then, and the oldest but one is removed."""
    folder = snapshots(volume)
    folder.mkdir(exist_ok=True)
    take = f'cp --sparse=always -- "$2" \'{folder}/\'"$1" && echo \'{folder}/\'"$1"'
    options = {"snapshot": f"command:{shlex.join(['sh', '-ec', take, 'take'])}", "keep_snapshots": 1}
    volume.configure(**options, prune_command=shlex.join(["sh", "-ec", f"rm -f -- '{folder}/'\"$1\"", "prune"]))
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)
    return backed_up(volume)


def snapshots(volume: CliVolume) -> Path:
    """Where they are."""
    return volume.folder / "snapshots"


# What holds right after


def nothing_open(trial: Trial) -> None:
    """Rolled back at once, or, where lukshook was killed, by the next run."""
    assert trial.killed or [] == trial.volume.standing(), trial.done.stderr


def whole_snapshots(trial: Trial) -> None:
    """The volume is closed, or it says that it is not; what is listed is there, and opens."""
    closed_if_told(trial)
    listed = [one["image"] for one in json.loads(trial.volume.do("versions", NAME, "--json"))[0]["versions"]]
    assert listed
    assert all(opens(Path(image), key_in(trial.volume.key)) for image in listed)


def all_or_nothing(trial: Trial) -> None:
    """Open, or nothing of it."""
    if trial.done.returncode == 0:
        assert trial.volume.is_open()
    else:
        nothing_open(trial)


def nothing_of_the_copy(trial: Trial) -> None:
    """Open, or nothing of it."""
    if trial.done.returncode == 0:
        assert str(trial.volume.folder / "elsewhere") in trial.volume.mounts()
    else:
        nothing_open(trial)


def closed_if_told(trial: Trial) -> None:
    """It is closed, or it says that it is not."""
    assert trial.done.returncode != 0 or trial.volume.is_bare()


def whole_if_named(trial: Trial) -> None:
    """An image that has its name is whole, and none is left over."""
    nothing_open(trial)
    assert trial.killed or (trial.done.returncode == 0) == trial.volume.image.exists(), trial.done


def in_use_all_along(trial: Trial) -> None:
    """It was open, and is."""
    assert trial.volume.is_open()
    assert TEXT == (trial.volume.data / "file").read_text()


def own_key_opens(trial: Trial) -> None:
    """What the key source holds opens the image."""
    nothing_open(trial)
    assert opens_with(trial.volume, trial.volume.key)


def key_fits(trial: Trial) -> None:
    """What the key source holds opens the image; in the middle, cryptsetup has to hear that it is in the middle."""
    nothing_open(trial)
    file = trial.volume.state_folder / f"{NAME}.rekey"
    assert opens(file if file.exists() else trial.volume.image, key_in(trial.volume.key))


def opens_with(volume: CliVolume, key: Path) -> bool:
    """Whether the key in that file opens the image, asked without lukshook."""
    return opens(volume.image, key_in(key))


def key_in(file: Path) -> Secret:
    return decode_key(file.read_bytes(), "a file")


# What finishes it


def nothing_more(trial: Trial) -> None:
    """The next backup does it all."""


def close_by_hand(trial: Trial) -> None:
    """What was opened by hand is closed by hand."""
    trial.volume.do("close", NAME)


def close_the_copy(trial: Trial) -> None:
    """What was opened by hand is closed by hand; nothing guards its folder."""
    trial.volume.do("close", *copy_to_open(trial.volume)[1:])
    assert [] == trial.volume.standing()
    (trial.volume.folder / "elsewhere").rmdir()


def keep_one(trial: Trial) -> None:
    """The next good backup takes one, and what is beyond that goes; then there are none as before."""
    volume = trial.volume
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)
    listed = [one["image"] for one in json.loads(volume.do("versions", NAME, "--json"))[0]["versions"]]
    assert 1 == len(listed)
    assert listed == [str(entry) for entry in snapshots(volume).iterdir()]
    shutil.rmtree(snapshots(volume))
    (volume.state_folder / f"{NAME}.snapshots").unlink()
    volume.configure()


def make(trial: Trial) -> None:
    """The next create makes the volume, and a file is backed up."""
    if not trial.volume.image.exists():
        trial.again()
    trial.volume.do("before-backup", NAME)
    (trial.volume.data / "file").write_text(TEXT)
    trial.volume.do("after-backup", NAME)


def reach_the_size(trial: Trial) -> None:
    """The same command reaches the size."""
    trial.again()
    wanted = next(word for word in trial.arguments if word.endswith("MiB"))
    assert wanted == f"{trial.volume.image.stat().st_size // MIB}MiB"


def reach_the_size_in_use(trial: Trial) -> None:
    """The same while the volume is in use."""
    reach_the_size(trial)
    in_use_all_along(trial)
    trial.volume.do("after-backup", NAME)


def once_more(trial: Trial) -> None:
    """The same command ends well."""
    trial.again()


def add_the_key(trial: Trial) -> None:
    """The same command adds it, or says that it is there; then both open."""
    trial.again(73)
    assert opens_with(trial.volume, trial.volume.key)
    assert opens_with(trial.volume, second_key(trial.volume))


def remove_the_key(trial: Trial) -> None:
    """The same command removes it, or says that it opens nothing; then the own one opens and that does not."""
    trial.again(77)
    assert opens_with(trial.volume, trial.volume.key)
    assert not opens_with(trial.volume, second_key(trial.volume))


def replace_the_key(trial: Trial) -> None:
    """The same command goes on; then the new one opens and the old one does not."""
    if trial.done.returncode != 0:
        trial.again()
    assert opens_with(trial.volume, trial.volume.key)
    assert not opens_with(trial.volume, old_key(trial.volume))


def complete_the_rekey(trial: Trial) -> None:
    """The same command goes on; then the new key opens and the old one does not."""
    replace_the_key(trial)
    assert not (trial.volume.state_folder / f"{NAME}.rekey").exists()


def mend_the_header(trial: Trial) -> None:
    """The same command mends it."""
    trial.again()
    trial.volume.do("header", "verify", NAME)


ROWS = (
    Row("before-backup", 4, closed("before-backup", NAME), all_or_nothing, nothing_more),
    Row("before-backup: after a kill", 14, half_closed, lambda trial: None, nothing_more),
    Row("after-backup", 4, backed_up, closed_if_told, nothing_more),
    Row("after-backup: with a snapshot", 47, to_snapshot, whole_snapshots, keep_one),
    Row("run", 31, closed("run", NAME, "--", "true"), closed_if_told, nothing_more),
    Row("open", 31, closed("open", NAME), all_or_nothing, close_by_hand),
    Row("close", 11, opened_by_hand, closed_if_told, close_by_hand),
    Row("open: a copy", 31, copy_to_open, nothing_of_the_copy, close_the_copy),
    Row("close: a copy", 11, copy_opened, lambda trial: None, close_the_copy),
    Row("drill", 31, closed("drill", NAME), nothing_open, nothing_more),
    Row("create", 26, not_there, whole_if_named, make),
    Row("resize: grow", 22, to_grow, nothing_open, reach_the_size),
    Row("resize: grow in use", 14, to_grow_in_use, in_use_all_along, reach_the_size_in_use, ("kernel",)),
    Row("resize: shrink", 22, to_shrink, nothing_open, reach_the_size),
    Row("lukshook-resize", 40, to_grow_alone, nothing_open, reach_the_size),
    Row("compact", 20, closed("compact", NAME, "--yes"), nothing_open, once_more, ("kernel",)),
    Row("trust", 31, unknown, nothing_open, once_more),
    Row("key add", 40, with_one_key, own_key_opens, add_the_key),
    Row("key remove", 40, with_two_keys, own_key_opens, remove_the_key),
    Row("key rotate", 40, with_an_old_key, own_key_opens, replace_the_key),
    Row("key rekey", 241, with_an_old_key_for_rekey, key_fits, complete_the_rekey),
    Row("header backup", 4, closed("header", "backup", NAME), nothing_open, mend_the_header),
    Row("header restore", 4, with_a_broken_header, nothing_open, mend_the_header),
)


# The test


def volume_with_a_file(folder: Path, engine: str) -> Iterator[CliVolume]:
    """For the fixture "volume": a volume with a file that was backed up; the tests leave it closed."""
    volume = CliVolume(folder, engine)
    volume.prepare()
    volume.do("create", NAME)
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text(TEXT)
    volume.do("after-backup", NAME)
    (folder / "kept").mkdir()
    volume.copy_to(folder / "kept")
    yield from closing(volume)
    CliVolume(folder / "kept", engine).remove()


def put_back(volume: CliVolume) -> None:
    """The volume as it was made, whatever became of it."""
    volume.lukshook("after-backup", NAME, "--kill-holders")
    volume.lukshook("close", NAME, "--kill-holders")
    volume.lukshook("close", *copy_to_open(volume)[1:], "--kill-holders")
    for left in (second_key(volume), Path(f"{second_key(volume)}.new"), Path(f"{volume.key}.new")):
        left.unlink(missing_ok=True)
    shutil.rmtree(volume.image.parent)
    shutil.rmtree(volume.state_folder, ignore_errors=True)
    shutil.rmtree(snapshots(volume), ignore_errors=True)
    volume.configure()
    CliVolume(volume.folder / "kept", volume.engine).copy_to(volume.folder)


def steps_of(volume: CliVolume, row: Row) -> list[str]:
    """The changes that the command makes, as lines, when nothing goes wrong."""
    log = volume.folder / "steps"
    arguments = row.arrange(volume)
    log.write_text("")
    done = volume.start(*arguments, prepare=Fault(log)).wait()
    assert 0 == done.returncode, done.stderr
    steps = log.read_text().splitlines()
    row.finish(Trial(volume, arguments, done, killed=False))
    check_next_run(volume)
    return steps


def go_wrong(volume: CliVolume, row: Row, what: str, step: int) -> None:
    """The command with its *step*-th change going wrong, and all that has to hold then."""
    arguments = row.arrange(volume)
    done = volume.start(*arguments, prepare=Fault(volume.folder / "steps", what, step)).wait()
    assert done.returncode in STATUSES, done
    trial = Trial(volume, arguments, done, what in KILLS)
    row.see(trial)
    row.finish(trial)
    check_next_run(volume)


def check_next_run(volume: CliVolume) -> None:
    """The next backup works, what was backed up is whole, all is closed and guarded after it, nothing lies about."""
    volume.do("before-backup", NAME)
    assert TEXT == (volume.data / "file").read_text()
    (volume.data / "new").write_text(TEXT)
    volume.do("after-backup", NAME)
    assert volume.is_bare()
    assert [volume.image.name] == [entry.name for entry in volume.image.parent.iterdir()]
    kept = {f"{NAME}.json", f"{NAME}.header", f"{NAME}.history"}
    assert kept == {entry.name for entry in volume.state_folder.iterdir()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --long a test for each row and fault, at all steps; else one for each row, at some steps of each fault."""
    chosen = FAULTS if metafunc.config.getoption("--long") else ("sampled",)
    engine = metafunc.module.ENGINE
    rows = [row for row in ROWS if engine in row.engines]
    metafunc.parametrize(
        ("row", "fault"), [pytest.param(row, what, id=f"{row.name}, {what}") for row in rows for what in chosen]
    )


@pytest.fixture(scope="module")
def seen() -> dict[str, list[str]]:
    """The steps of each row, once they are known."""
    return {}


def test_whatever_goes_wrong(volume: CliVolume, row: Row, fault: str, seen: dict[str, list[str]]) -> None:
    """In any command at any step: nothing is left, nothing is lost, and the next run works."""
    if row.name not in seen:
        seen[row.name] = steps_of(volume, row)
    steps = seen[row.name]
    failures = []
    for number, line in enumerate(steps):
        for what in chosen(row, volume.engine, fault, number):
            try:
                go_wrong(volume, row, what, number)
            except (AssertionError, TimeoutError) as error:
                failures.append(f"{what}: {line}\n    {error}")
                put_back(volume)
    assert not failures, "\n".join(failures)


def chosen(row: Row, engine: str, fault: str, step: int) -> list[str]:
    """The faults to try at a step: the one asked for, or those that *stride* leaves; others at each step."""
    if fault != "sampled":
        return [fault]
    stride = row.stride * LONGER_STRIDE[engine]
    return [what for number, what in enumerate(FAULTS) if (step * len(FAULTS) + number) % stride == 0]

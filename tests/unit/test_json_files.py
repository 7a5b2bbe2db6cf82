"""Files of ours that are damaged, or no files at all: one line and 65, one volume's problem, and no traceback."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import asdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lukshook import config
from lukshook.cli import status as shown
from lukshook.config import Volume
from lukshook.errors import Refused
from lukshook.layers.engines import LAYERS
from lukshook.luks import header
from lukshook.luks.header import Digest, Header
from lukshook.report import status
from lukshook.report.status import VolumeStatus
from lukshook.resize import intent
from lukshook.resize.intent import Intent
from lukshook.store.image_file import ImageFile
from lukshook.system import kernel, swap
from lukshook.system.secret import Secret
from lukshook.volume import header_change, known_state, records
from lukshook.volume.context import Site
from lukshook.volume.known_state import Known
from lukshook.volume.records import Record, User
from support.fake_runner import FakeRunner
from support.volume import NAME, CliVolume

#: The names of exit statuses that docs/exit-codes.md has.
CODES = {0, 64, 65, 66, 69, 71, 73, 74, 75, 77, 78}
#: Values of every JSON type, and those that fit a type but no system call.
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**64,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "a\0b",
    "\ud800",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
)
anything = st.recursive(
    st.sampled_from(WRONG) | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PINS: dict[str, Any] = {
    "type": "luks2",
    "uuid": "u",
    "cipher": "aes",
    "key_bytes": 64,
    "sector_size": 512,
    "offset": 1 << 24,
    "digest": {"hash": "sha256", "iterations": 1000, "salt": "00", "value": "00"},
    "slots": {"0": {"key_bytes": 64, "area_offset": 32768, "area_size": 258048}},
}


def full_record() -> dict[str, Any]:
    """A record of this boot with every layer that there is."""
    handles = {
        "image": ("/b.img", 1, 2, 3, False),
        "loop": ("/dev/loop7", 1, 2, True),
        "era": ("/dev/mapper/x+era", "x+era", "LUKSHOOK-ERA-x", "7:6", "7:0", "/s", 8, "nothing", False),
        "dmcrypt": ("/dev/mapper/x", "x", "CRYPT-x", "7:7", "7:0"),
        "qemu": ("/x.plain", 2**22 + 1, 5, 1, 2),
        "filesystem": ("/dev/mapper/x", "ext4", "u"),
        "mount": ("/mnt", "/dev/mapper/x", "7:7", "/x.private"),
        "fuse2fs": ("/mnt", "/x.plain", 2**22 + 1, 5, "0:99"),
    }
    assert handles.keys() == LAYERS.keys()
    record = Record(NAME, kernel.boot_id(), "kernel", False, 1.5, (User("a tool", 7, 99, "/u.service"),), complete=True)
    for name, values in handles.items():
        kind: Any = LAYERS[name].handle
        record = record.push(name, kind(*values))
    data = asdict(record, recurse=True)
    return {**data, "layers": [list(layer) for layer in data["layers"]]}


def places(data: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in *data*, at whatever depth."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    return [*([way] if way else []), *(found for name, value in inner for found in places(value, (*way, name)))]


def changed(data: Any, way: tuple[Any, ...], value: object) -> Any:
    """A copy of *data* with *value* at the end of *way*."""
    copy = json.loads(json.dumps(data))
    inner = copy
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    return copy


STATE: dict[str, Any] = {**asdict(Known(last_success=1.5, duration=1.5, locks="x", leaving=("x",))), "pins": PINS}
HEADER = Header("luks2", "u", "aes", 64, 512, 1 << 24, Digest("sha256", 1000, "00", "00"), ())
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def volume(folder: Path) -> Volume:
    table = {"image": f"{folder}/b.img", "mountpoint": f"{folder}/mnt", "key": "prompt"}
    return config.parse({"volumes": {NAME: table}}, folder / "c.toml").volumes[NAME]


def told(folder: Path) -> VolumeStatus:
    """What `status` says, in both its forms."""
    site = Site(folder / "run", folder, FakeRunner(), lambda volume: Secret(b""), print)
    fact = status.of(volume(folder), site)
    assert json.dumps(asdict(fact))
    assert shown._paragraph(fact)[0].startswith(f"{NAME}: ")
    return fact


@pytest.mark.parametrize("way", places(STATE), ids=str)
@many
@given(value=anything)
def test_state_with_any_value_is_one_volumes_problem(tmp_path: Path, way: tuple[Any, ...], value: object) -> None:
    """Whatever a field holds, the pins' too: it is refused, or `status` shows it and the header is compared with it."""
    file = known_state.KnownState(tmp_path, NAME).file
    file.write_text(json.dumps(changed(STATE, way, value)))

    fact = told(tmp_path)

    try:
        known = known_state.KnownState(tmp_path, NAME).known
    except Refused as error:
        assert error.message.startswith(f"{file} is damaged")
        assert error.message in str(fact.problem)
    else:
        assert known.duration is None or known.duration >= 0
        assert header_change._left(known.pins, HEADER) is not None
        with suppress(Refused):
            header.compare(known.pins or {}, HEADER)


@pytest.mark.parametrize("way", places(full_record()), ids=str)
@many
@given(value=anything)
def test_a_record_with_any_value_is_one_volumes_problem(tmp_path: Path, way: tuple[Any, ...], value: object) -> None:
    """Another version's, or a damaged one: the kernel is asked, and the record stays for whoever wants to look."""
    file = tmp_path / f"run/{NAME}.json"
    content = json.dumps(changed(full_record(), way, value))

    with records.locked(tmp_path / "run", NAME) as book:
        file.write_text(content)
        record, fact = book.load(), told(tmp_path)
        assert record is not None or book.damaged in (fact.problem or "")
        assert content == file.read_text()
        was_damaged = bool(book.damaged)
        book.clear()

    kept = list(tmp_path.glob(f"run/{NAME}.json.damaged*"))
    assert [content] * was_damaged == [one.read_text() for one in kept]
    for one in kept:
        one.unlink()


@pytest.mark.parametrize("missing", ["volume", "boot", "engine", "users", "layers"])
def test_a_record_that_lacks_something_is_kept(tmp_path: Path, missing: str) -> None:
    """It was deleted, and the volume was closed as far as anybody could see."""
    data = full_record()
    del data[missing]
    for _ in range(2):
        (tmp_path / f"{NAME}.json").write_text(json.dumps(data))
        with records.locked(tmp_path, NAME) as book:
            assert book.load() is None
            assert "is damaged" in book.damaged
            book.save(Record(NAME, kernel.boot_id(), "kernel", False, 1.5))
            assert (True, "") == (book.load() is not None, book.damaged)

    assert 2 == len(list(tmp_path.glob("*.damaged*")))


def test_a_record_of_another_boot_is_no_damage(tmp_path: Path) -> None:
    """Nothing of it stands, so nobody is warned."""
    with records.locked(tmp_path, NAME) as book:
        (tmp_path / f"{NAME}.json").write_text(json.dumps({**full_record(), "boot": "another"}))

        assert (None, "") == (book.load(), book.damaged)


@pytest.mark.parametrize("way", places(asdict(Intent("+1GiB", 1, 2))), ids=str)
@many
@given(value=anything)
def test_an_unfinished_resize_with_any_value_is_whole_or_refused(
    tmp_path: Path, way: tuple[Any, ...], value: object
) -> None:
    """Taken for none, the same relative size would be added once more."""
    file = tmp_path / "resize"
    data = changed(asdict(Intent("+1GiB", 1, 2)), way, value)
    file.write_text(json.dumps(data))

    try:
        found = intent.unfinished(file)
    except Refused:
        return
    assert found is not None
    assert data == asdict(found)


def empty(file: Path) -> None:
    file.touch()


def folder(file: Path) -> None:
    file.mkdir()


def full_folder(file: Path) -> None:
    (file / "inside").mkdir(parents=True)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def link(file: Path) -> None:
    file.symlink_to("nowhere")


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def unreadable(file: Path) -> None:
    file.touch(0)


def huge(file: Path) -> None:
    file.write_bytes(b"{" + b" " * (2 << 20) + b"}")


def deep(file: Path) -> None:
    file.write_text("[" * 200_000)


def sock(file: Path) -> None:
    descriptor = socket.socket(socket.AF_UNIX)
    os.chdir(file.parent)  # the whole path is too long for an address
    descriptor.bind(file.name)
    descriptor.close()


KINDS = (empty, folder, full_folder, pipe, link, loop, unreadable, huge, deep, sock)
FILES = (
    f"run/{NAME}.json",
    f"run/{NAME}.lock",
    "run/swap-warned",
    f"state/{NAME}.json",
    f"state/{NAME}.resize",
    f"state/{NAME}.header",
    f"state/{NAME}.header.next",
)
#: What each command may exit with where there is no image.
COMMANDS = {
    "status": {0},
    "status --json": {0},
    f"check {NAME}": {65, 69, 77},
    f"before-backup {NAME}": {65, 69, 77},
    f"after-backup {NAME}": {0, 65, 69, 77},
    f"close {NAME}": {0, 65, 69, 77},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_whatever_lies_in_the_place_of_a_file_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Callable[[Path], None]
) -> None:
    """No command hangs or dies of it, and `status` shows the other volumes."""
    monkeypatch.chdir("/")
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    second = f'[volumes.second]\nimage = "{tmp_path}/other"\nmountpoint = "{tmp_path}/second"\nkey = "prompt"\n'
    made.config.write_text(made.config.read_text() + second)
    for place in (made.run_folder, made.state_folder):
        place.mkdir(0o700)
    kind(made.folder / name)

    for command, codes in COMMANDS.items():
        done = made.start(*command.split()).wait(60)

        assert done.returncode in codes, (command, done)
        for line in done.stderr.splitlines():
            assert line.startswith(("lukshook: ", "  hint: ", "warning: ")), (command, done.stderr)
        if command.startswith("status"):
            assert "second" in done.stdout
    made.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_swap_is_warned_of_whatever_lies_there(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    """A note that was made for a warning must not keep a volume from being opened."""
    kind(tmp_path / "swap-warned")
    said: list[str] = []

    swap.warn_once(tmp_path, said.append, ("/dev/sda2",))

    assert 1 == len(said)


@pytest.mark.parametrize("kind", [empty, folder, pipe, link, loop, sock])
def test_a_header_is_kept_in_a_file(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    """A pipe in the place of a header that waits to be written, or of its backup, is found before anything changes."""
    kind(known_state.KnownState(tmp_path, NAME).header_next)

    with pytest.raises(Refused):
        header_change.pending(known_state.KnownState(tmp_path, NAME))
    with pytest.raises(Refused):
        header_change.finish(cast(ImageFile, None), known_state.KnownState(tmp_path, NAME))


def test_a_folder_in_the_place_of_the_header_backup_is_a_problem(tmp_path: Path) -> None:
    """And no header backup."""
    folder(known_state.KnownState(tmp_path, NAME).header_backup)

    fact = told(tmp_path)

    assert fact.header_backup is None
    assert f"{NAME}.header is not a regular file" in str(fact.problem)

"""The recorder of the userspace engine: qemu's dirty bitmap names every piece of the image that has changed."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.errors import LukshookError, Unavailable
from lukshook.keys.key_sources import Asking, obtain
from lukshook.layers import dirty_bitmap, qemu, qemu_process, qemu_start
from lukshook.layers.base import Opening, Records
from lukshook.system import kernel, qmp
from lukshook.system.command import SystemRunner
from lukshook.volume import stack, users
from lukshook.volume.work import work_on
from support.daemons import daemons
from support.direct_volume import site_in
from support.lukshook_process import nothing
from support.recorded_userspace import PIECE, Recorded, changed
from support.volume import NAME, CliVolume
from userspace.test_qemu_facts import sockets_of

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "qemu-img", "fusermount3", "mkfs.ext4")
ROOT = os.geteuid() == 0
CONNECT = qmp.connect


def leftovers(volume: CliVolume) -> list[str]:
    """Files of a daemon."""
    kinds = (".plain", ".pid", ".monitor", ".written")
    return sorted(path.name for path in volume.run_folder.iterdir() if path.suffix in kinds)


def work_on_files(data: Path, chance: random.Random) -> None:
    """What backups do: files come, are written over in places, and go."""
    for number in range(12):
        (data / f"{number}").write_bytes(chance.randbytes(chance.choice((0, 700, 40_000, 900_000))))
    for path in sorted(data.iterdir()):
        choice = chance.random()
        if choice < 0.3:
            path.unlink()
        elif choice < 0.6 and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(chance.randrange(path.stat().st_size))
                file.write(chance.randbytes(5000))
    if ROOT:
        subprocess.run(["fstrim", str(data)], check=False, capture_output=True)  # a kernel may have no discard there


@pytest.mark.parametrize("piece", [64 << 10, PIECE])
def test_no_changed_piece_is_missed(
    volume: CliVolume, chance: random.Random, rounds: Callable[[int, int], int], piece: int
) -> None:
    """Whatever is not named is taken for unchanged, and its damage for an alarm."""
    recorded = Recorded(volume, piece)
    for _ in range(rounds(2, 50)):
        before = recorded.digests()
        recorded.do("before-backup", NAME)
        assert Records.THIS_OPENING is recorded.handle().records
        work_on_files(volume.data, chance)
        live = recorded.live()
        recorded.do("after-backup", NAME)

        written, all_changed = recorded.at_close(), changed(before, recorded.digests())

        assert set() != all_changed
        assert set() == all_changed - written
        assert set() == live - written
        assert len(written) < len(before)
        assert [] == leftovers(volume)


def test_an_empty_opening_names_little(volume: CliVolume) -> None:
    """So that a close without a backup reads next to nothing."""
    recorded = Recorded(volume)
    before = recorded.digests()
    recorded.do("before-backup", NAME)
    recorded.do("after-backup", NAME)

    assert set() == changed(before, recorded.digests()) - recorded.at_close()
    assert len(recorded.at_close()) < len(before) // 10


@contextmanager
def plaintext(recorded: Recorded) -> Iterator[Path]:
    """The plaintext file alone, without a file system."""
    volume = recorded.volume
    parsed = config.load(volume.config).volume(NAME)
    site = site_in(volume.folder, lambda asked: obtain(asked.key, Asking({}, NAME, pytest.fail)), pytest.fail)
    with work_on(parsed, site) as work:
        opening = evolve(work.opening(work.trust(), read_only=False), recording=recorded.recording())
        stack.push_layers(work, opening, users.by_hand(), layers=("image", "qemu"))
        try:
            yield Path(recorded.handle().path)
        finally:
            stack.take_down(work)


def write_anywhere(plain: Path, count: int, chance: random.Random) -> None:
    """Random bytes in random places, the last byte among them, all on the store at the end."""
    descriptor = os.open(plain, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        for _ in range(count):
            part = chance.randbytes(chance.randrange(1, 70_000))
            os.pwrite(descriptor, part, chance.randrange(size - len(part)))
        os.pwrite(descriptor, chance.randbytes(1), size - 1)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
@pytest.mark.parametrize("odd", [0, 512, 4096, 777, (128 << 10) + 1])
def test_random_writes_are_named_exactly(
    volume: CliVolume, chance: random.Random, odd: int, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of every length, through the page cache or past it: none missed, and none too many."""
    os.truncate(volume.image, volume.image.stat().st_size + odd)
    image = qemu_start._image

    def node(place: str, opening: Opening, manner: qemu_start.Manner) -> str:
        return image(place, opening, evolve(manner, direct=direct))

    monkeypatch.setattr(qemu_start, "_image", node)
    recorded = Recorded(volume)
    for _ in range(2):
        with plaintext(recorded) as plain:
            write_anywhere(plain, 1, chance)  # it fills the last sector up
            before, already = recorded.digests(), recorded.live()
            write_anywhere(plain, 30, chance)
            all_changed, live = changed(before, recorded.digests()), recorded.live()

        assert all_changed | already == live
        assert len(live) < len(before)


def recorder_of(recorded: Recorded) -> dirty_bitmap.Recorder:
    handle = recorded.handle()
    assert isinstance(handle, qemu.Handle)
    return qemu._recorder(handle)


def test_a_long_list_is_read_in_parts(
    volume: CliVolume, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tool says is not kept without limit."""
    recorded = Recorded(volume, piece=4096)
    with plaintext(recorded) as plain:
        write_anywhere(plain, 200, chance)
        whole = recorded.live()
        monkeypatch.setattr(dirty_bitmap, "MOST_KEPT", 2000)
        in_parts = recorded.live()

    assert len(whole) > 200
    assert whole == in_parts


def test_what_a_killed_reader_left_is_in_nobodys_way(volume: CliVolume, chance: random.Random) -> None:
    """Its node and its server are dropped by the next one, or end with the daemon."""
    recorded = Recorded(volume)
    with plaintext(recorded) as plain:
        write_anywhere(plain, 5, chance)
        before = recorded.live()
        for _ in range(2):
            reader = os.fork()
            if not reader:
                recorder = recorder_of(recorded)
                with qmp.connect(recorder.monitor) as daemon, recorder._copied(daemon):
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(reader, 0)
            assert plain.with_suffix(".written").exists()
            assert before == recorded.live()
            assert not plain.with_suffix(".written").exists()

    assert [] == leftovers(volume)


def test_readers_wait_for_each_other(volume: CliVolume, chance: random.Random) -> None:
    """Such as a `verify` of an open volume, and `status`."""
    recorded = Recorded(volume)
    with plaintext(recorded) as plain:
        write_anywhere(plain, 5, chance)
        expected = recorded.live()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: recorded.live(), range(12)))

    assert [expected] * 12 == found


def check_recording(recorded: Recorded) -> None:
    """A backup works, whatever was before, records, and leaves nothing."""
    assert 0 == recorded.lukshook("before-backup", NAME).returncode
    assert Records.THIS_OPENING is recorded.handle().records
    recorded.do("after-backup", NAME)
    assert [] == leftovers(recorded.volume)


@pytest.mark.parametrize("who", ["daemon", "all"])
def test_a_kill_leaves_nothing(volume: CliVolume, who: str) -> None:
    """The record is lost with the daemon, which is never taken for "nothing was written"; the next opening records."""
    recorded = Recorded(volume)
    recorded.do("before-backup", NAME)
    (volume.data / "file").write_text("perhaps")
    for pid in daemons(volume)[: 1 if who == "daemon" else None]:
        os.kill(pid, signal.SIGKILL)
        assert kernel.wait_until(lambda: kernel.started(pid) is None, 10.0)  # noqa: B023
    with pytest.raises(LukshookError):
        recorded.live()

    assert 74 == recorded.lukshook("after-backup", NAME).returncode
    assert [] == leftovers(volume)
    check_recording(recorded)


@pytest.mark.parametrize("step", ["begin", "extents"])
def test_a_lukshook_that_is_killed_meanwhile_leaves_nothing(volume: CliVolume, step: str) -> None:
    """Before it records, and while it reads the record at closing; the next backup works and records."""
    recorded = Recorded(volume, prepare=lambda: _replace(dirty_bitmap.Recorder, step, _die))
    if step == "extents":
        Recorded(volume).do("before-backup", NAME)
    done = recorded.lukshook("before-backup" if step == "begin" else "after-backup", NAME)
    assert -signal.SIGKILL == done.returncode

    check_recording(Recorded(volume))


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _replace(place: object, name: str, value: object) -> None:
    """In the process of a lukshook, which ends anyway."""
    pytest.MonkeyPatch().setattr(place, name, value)


def _no_reader(*_: object) -> None:
    raise Unavailable("qemu-img is not installed", hint="install it")


def _long_names() -> None:
    """Longer than the address of a socket can be (unix(7))."""
    _replace(qemu_process, "MONITOR", "." + 100 * "m")


#: What is in the way of a recorder, and what is said of it.
OBSTACLES: dict[str, tuple[int, Callable[[], None], str]] = {
    "no qemu-img": (PIECE, lambda: _replace(dirty_bitmap, "find_tool", _no_reader), "qemu-img is not installed"),
    "no socket": (PIECE, _long_names, "qemu does not start with a monitor"),
    "no bitmap": (1000, nothing, "qemu cannot do block-dirty-bitmap-add: "),
    "no answer": (PIECE, lambda: _replace(qmp.Monitor, "reach", _die_not), "does not answer: timed out"),
}


def _die_not(*_: object) -> None:
    raise Unavailable("the monitor does not answer: timed out", hint="close the volume and open it again")


@pytest.mark.parametrize("what", OBSTACLES)
def test_no_recorder_is_worth_a_backup(volume: CliVolume, what: str) -> None:
    """The volume opens, one line says that nothing is recorded, and that is also what the layer says."""
    piece, prepare, reason = OBSTACLES[what]
    recorded = Recorded(volume, piece, prepare)

    done = recorded.lukshook("before-backup", NAME)

    assert 0 == done.returncode, done.stderr
    line = f"warning: volume {NAME}: what is written to the image is not recorded this time: "
    assert [True] == [said.startswith(line) and reason in said for said in done.stderr.splitlines()], done.stderr
    assert (Records.NOTHING, ()) == (recorded.handle().records, recorded.handle().written(SystemRunner()))
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)
    assert [] == leftovers(volume)


@pytest.mark.parametrize("fault", ["removed", "disabled", "stopped", "hung", "no socket", "disagrees"])
def test_a_record_that_cannot_be_read_is_no_record(
    volume: CliVolume, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error, never an empty list; and the volume closes all the same."""
    recorded = Recorded(volume)
    recorded.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    monitor = recorder_of(recorded).monitor
    pid = daemons(volume)[0]
    if fault in ("removed", "disabled"):
        done = {"removed": "block-dirty-bitmap-remove", "disabled": "block-dirty-bitmap-disable"}[fault]
        with qmp.connect(monitor) as daemon:
            daemon.ask(done, {"node": "image", "name": "written"})
    elif fault in ("stopped", "hung"):
        monkeypatch.setattr(qmp, "connect", lambda place: CONNECT(place, 0.3))
        if fault == "stopped":
            os.kill(pid, signal.SIGSTOP)
    elif fault == "no socket":
        monitor.unlink()
    else:
        monkeypatch.setattr(dirty_bitmap, "_listed", lambda out, start, length: iter(()))
    other = CONNECT(monitor) if fault == "hung" else nullcontext()  # a client that never lets go
    with other, pytest.raises(LukshookError):
        recorded.handle().written(SystemRunner())
    os.kill(pid, signal.SIGCONT)

    volume.do("after-backup", NAME)
    assert [] == leftovers(volume)


def test_nothing_is_recorded_where_nobody_asks(volume: CliVolume) -> None:
    """The daemon has no monitor then, which would be power over it: that of the opening has ended with it."""
    volume.do("before-backup", NAME)
    daemon = daemons(volume)[0]

    assert [".pid", ".plain"] == sorted(Path(name).suffix for name in leftovers(volume))
    assert kernel.wait_until(lambda: [] == sockets_of(daemon), 10.0)
    assert Records.NOTHING is Recorded(volume).handle().records
    volume.do("after-backup", NAME)


def test_a_read_only_opening_does_not_record(volume: CliVolume) -> None:
    """It writes nothing."""
    recorded = Recorded(volume)
    recorded.do("open", NAME, "--read-only")

    assert Records.NOTHING is recorded.handle().records
    assert kernel.wait_until(lambda: [] == sockets_of(daemons(volume)[0]), 10.0)
    recorded.do("close", NAME)


def test_the_monitor_is_out_of_reach_of_others(volume: CliVolume) -> None:
    """Its folder can be entered by its owner alone."""
    recorded = Recorded(volume)
    recorded.do("before-backup", NAME)
    found = volume.run_folder.stat()

    assert (os.geteuid(), 0o700) == (found.st_uid, stat.S_IMODE(found.st_mode))
    assert volume.run_folder / f"{NAME}.monitor" in volume.run_folder.iterdir()
    recorded.do("after-backup", NAME)

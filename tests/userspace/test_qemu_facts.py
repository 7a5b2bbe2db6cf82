"""What the installed qemu does: each fact that a decision of lukshook rests on, tried on this version.

The first sentence of a docstring says the fact, the last what is decided by it. Where versions differ, the test says
from which one on. Speed is measured by bench/run; what a failing store looks like: test_failing_store.py.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from lukshook.layers import dirty_bitmap, qemu, qemu_start
from lukshook.luks import header
from lukshook.system import kernel, loops, qmp
from lukshook.system.command import SystemRunner
from support import qemu_daemon
from support.qemu_daemon import DIRECT, MIB, OFFSET, Daemon, luks_image

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "qemu-img", "fusermount3")
SIZE = 16 * MIB
#: The first version whose FUSE export does not promise holes that it does not make (qemu's 1703eb1c27).
NO_FALSE_HOLES = (8, 0, 0)
#: fallocate(2)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
#: Seconds that anything may take on a busy machine.
PATIENCE = 20.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with qemu_daemon.daemon_in(tmp_path) as one:
        yield one


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A LUKS1 image with 16 MiB of data."""
    return luks_image(tmp_path / "image", SIZE)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which Python has without a mode only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Header and key


def test_a_key_has_to_be_text(daemon: Daemon, image: Path) -> None:
    """Bytes that are not UTF-8 are refused. Decides: `create` and `key add` fill a second slot with the base64 text."""
    done = daemon.run(daemon.file(image), daemon.luks(), daemon.export(), key=b"\xff" * 32)

    assert 1 == done.returncode
    assert "not valid UTF-8" in done.stderr


def test_a_wrong_key_is_told_apart(daemon: Daemon, image: Path) -> None:
    """It has a message of its own, exit status 1, and nothing is shown. Decides: that text means 77, all else 69."""
    done = daemon.run(daemon.file(image), daemon.luks(), daemon.export(), key=base64.b64encode(b"b" * 32))

    assert (1, False) == (done.returncode, daemon.is_shown())
    assert qemu_start.WRONG_KEY in done.stderr


def test_luks2_is_not_read(daemon: Daemon, tmp_path: Path) -> None:
    """Decides: this engine makes LUKS1, and refuses LUKS2 before the key is read."""
    image = luks_image(tmp_path / "luks2", 32 * MIB, "--type=luks2", "--pbkdf=pbkdf2")
    done = daemon.run(daemon.file(image), daemon.luks(), daemon.export())

    assert 1 == done.returncode
    assert "LUKS version 2 is not supported" in done.stderr


@pytest.mark.parametrize("mode", [b"ecb", b"xts-plain64", b"cbc-plain"])
def test_there_is_no_null_cipher(daemon: Daemon, image: Path, mode: bytes) -> None:
    """A header that names it is refused. Decides: a person may
    start qemu by hand, which reads the header of the image."""
    with opened(image) as file:
        os.pwrite(file, b"cipher_null".ljust(32, b"\0"), 8)  # LUKS On-Disk Format 1.2: cipher-name
        os.pwrite(file, mode.ljust(32, b"\0"), 40)
    done = daemon.run(daemon.file(image), daemon.luks(), daemon.export())

    assert (1, False) == (done.returncode, daemon.is_shown())
    assert qemu_start.WRONG_KEY not in done.stderr


def test_the_header_is_taken_from_another_file(daemon: Daemon, image: Path, chance: random.Random) -> None:
    """A volume is opened on a copy of its header and goes on with the image. Decides: how qemu gets the judged header,
    whatever the image begins with by then."""
    content = chance.randbytes(MIB)
    with opened(image) as descriptor:
        memory = header.copy(descriptor).memfd(image.stat().st_size)
        os.pwrite(descriptor, bytes(OFFSET), 0)
        show_with(daemon, memory, descriptor)
        with opened(daemon.plain) as file:
            assert os.fstat(file).st_size == SIZE
            os.pwrite(file, content, 3 * MIB)
        daemon.close()

        assert bytes(OFFSET) == os.pread(descriptor, OFFSET, 0)
        show_with(daemon, memory, descriptor)
        os.close(memory)
    assert content == daemon.plain.read_bytes()[3 * MIB : 4 * MIB]


def show_with(daemon: Daemon, memory: int, image: int) -> None:
    """Show the plaintext of *image*, whose header is in *memory*."""
    daemon.inherits = (memory, image)
    begin = f"driver=file,node-name=header,filename=/proc/self/fd/{memory},read-only=on"
    luks = daemon.luks("read-only=on").replace("file=image", "file=header")
    daemon.start(f"--blockdev={begin}", daemon.file(f"/proc/self/fd/{image}"), luks, *daemon.listen())
    volume = {"driver": "luks", "node-name": "volume", "key-secret": "key", "file": "image"}
    daemon.ask("blockdev-reopen", {"options": [volume]})
    daemon.ask("blockdev-del", {"node-name": "header"})
    export = {"type": "fuse", "id": "plain", "node-name": "volume", "writable": True, "mountpoint": str(daemon.plain)}
    daemon.ask("block-export-add", export | {"allow-other": "off"})


def test_a_monitor_over_a_connection_of_ours_ends_with_it(daemon: Daemon, image: Path) -> None:
    """The daemon inherits one end, serves on when the other is closed, and has no socket left. Decides: it is asked to
    show the plaintext over one."""
    ours, theirs = qmp.pair()
    with ours:
        with theirs:
            daemon.inherits = (theirs.fileno(),)
            chardev = f"--chardev=socket,id=m,fd={theirs.fileno()}"
            daemon.start(daemon.file(image), daemon.luks(), chardev, "--monitor=chardev=m", daemon.export())
        assert [] == qmp.over(ours).ask("query-block-jobs")

    assert kernel.wait_until(lambda: [] == sockets_of(daemon.pid), PATIENCE)
    assert (True, True) == (daemon.is_alive(), daemon.is_shown())


def sockets_of(pid: int) -> list[str]:
    """The sockets that a process has open."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.startswith("socket:")]


# Start and end


def test_when_the_command_returns_the_file_is_shown(daemon: Daemon, image: Path) -> None:
    """And the pid is written down. Decides: there is no waiting after the start, and a daemon without a pid file is
    one that still starts."""
    daemon.start(daemon.file(image), daemon.luks(), daemon.export())

    assert (True, SIZE) == (daemon.is_shown(), daemon.plain.stat().st_size)
    assert daemon.is_alive()


def test_it_ends_if_it_is_asked_often_enough(daemon: Daemon, image: Path, rounds: Callable[[int, int], int]) -> None:
    """A SIGTERM can be missed, of those that follow none is. Decides: the daemon is asked until it has ended."""
    counts: list[int] = []
    for _ in range(rounds(10, 500)):
        daemon.start(daemon.file(image), daemon.luks(), daemon.export())
        counts.append(daemon.end())
        assert not daemon.is_shown()
    print("asked more than once:", sum(count > 1 for count in counts), "of", len(counts))

    assert max(counts) <= 3


def test_it_pays_no_heed_to_locks(image: Path, tmp_path: Path) -> None:
    """A second daemon writes to an image that is locked by flock(2) and open in the first. Decides: lukshook takes a
    lock of its own before it starts one."""
    (tmp_path / "second").mkdir()
    with (
        qemu_daemon.daemon_in(tmp_path) as first,
        qemu_daemon.daemon_in(tmp_path / "second") as second,
        opened(image) as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for one in (first, second):
            one.inherits = (lock,)
            one.start(one.file(f"/proc/self/fd/{lock}"), one.luks(), one.export())
            assert one.is_shown()


def test_a_lock_lives_as_long_as_the_daemon(daemon: Daemon, image: Path) -> None:
    """It keeps a descriptor that it inherits, and lets go of it a moment after it has ended. Decides: the lock on the
    image is handed over to the daemon, and closing waits for it."""
    with opened(image) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon.inherits = (lock,)
        daemon.start(daemon.file(f"/proc/self/fd/{lock}"), daemon.luks(), daemon.export())
    with opened(image) as other:
        assert not qemu._locked(other)
        daemon.end()
        assert kernel.wait_until(lambda: qemu._locked(other), PATIENCE)


def test_the_mount_of_a_killed_daemon_stays(daemon: Daemon, image: Path) -> None:
    """Until somebody unmounts it, nothing can be read there. Decides: the next opening looks for it and drops it."""
    daemon.start(daemon.file(image), daemon.luks(), daemon.export())
    daemon.kill()

    assert daemon.is_shown()
    with pytest.raises(OSError, match=r"Transport endpoint|connection abort"):
        daemon.plain.stat()


def test_a_daemon_that_fails_after_its_export_leaves_the_mount(daemon: Daemon, image: Path) -> None:
    """Decides: the export is the last option of the command."""
    done = daemon.run(daemon.file(image), daemon.luks(), daemon.export(), "--monitor=chardev=missing")
    assert (1, True) == (done.returncode, daemon.is_shown())
    daemon.close()

    done = daemon.run(daemon.file(image), daemon.luks(), "--monitor=chardev=missing", daemon.export())
    assert (1, False) == (done.returncode, daemon.is_shown())


@pytest.mark.roots
def test_nobody_else_can_open_the_plaintext(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    """`allow-other=off` keeps other users out, whatever the mode of the file and its folder. Decides: so it is set."""
    daemon.start(daemon.file(image), daemon.luks(), daemon.export())
    with opened(daemon.plain, os.O_PATH) as shown:
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dd", f"if=/proc/self/fd/{shown}"]
        done = subprocess.run([*argv, "count=1"], capture_output=True, text=True, check=False, pass_fds=(shown,))

    assert 0 != done.returncode
    assert "ermission denied" in done.stderr


@pytest.mark.roots
@pytest.mark.needs("losetup")
def test_a_block_device_is_refused(daemon: Daemon, image: Path) -> None:
    """The file driver takes regular files only. Decides: so does this engine, before it changes anything."""
    attach = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        done = daemon.run(daemon.file(device), daemon.luks(), daemon.export())
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)

    assert 1 == done.returncode
    assert "requires" in done.stderr


@pytest.mark.roots
def test_without_direct_io_it_does_not_start(daemon: Daemon, tmp_path: Path) -> None:
    """It says so at once, and shows nothing. Decides: a daemon that works through the page cache is tried next."""
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(store)], check=True)
    try:
        image = luks_image(store / "image", SIZE)
        done = daemon.run(daemon.file(image), daemon.luks(), daemon.export())
        assert (1, False) == (done.returncode, daemon.is_shown()), done.stderr
        daemon.start(daemon.file(image, ""), daemon.luks(), daemon.export())
        assert daemon.is_shown()
        daemon.close()
        assert kernel.wait_until(lambda: not subprocess.run(["umount", str(store)], check=False).returncode, PATIENCE)
    finally:
        daemon.close()
        if kernel.mount_at(store) is not None:
            subprocess.run(["umount", str(store)], check=True)


def test_a_comma_in_a_path_is_written_twice(daemon: Daemon, tmp_path: Path) -> None:
    """Decides: lukshook writes paths so (`_escaped`)."""
    image = luks_image(tmp_path / "a,writable=off,,b", SIZE)
    daemon.start(daemon.file(qemu_start.escaped(str(image))), daemon.luks(), daemon.export())

    assert daemon.is_shown()


# Data


@pytest.mark.parametrize("more", [0, 1, 511, 512, 777])
def test_the_last_sector_is_filled_up(daemon: Daemon, image: Path, more: int) -> None:
    """An image of any length is shown in whole sectors of 512 bytes. Decides: how long the plaintext has to be for
    lukshook to believe that it is that of this image."""
    os.truncate(image, image.stat().st_size + more)
    daemon.start(daemon.file(image), daemon.luks(), daemon.export())

    assert qemu._whole_sectors(image.stat().st_size) - OFFSET == daemon.plain.stat().st_size


def test_read_only_is_read_only(daemon: Daemon, image: Path) -> None:
    """The file cannot be written, and the image stays as it is. Decides: a read-only opening changes no byte."""
    before = digest(image)
    how = f"{DIRECT},read-only=on"
    daemon.start(daemon.file(image, how), daemon.luks("read-only=on"), daemon.export(writable=False))
    assert SIZE == len(daemon.plain.read_bytes())
    with pytest.raises(OSError, match=r"ermission denied|ermitted|Read-only"), opened(daemon.plain, os.O_RDWR) as file:
        os.pwrite(file, b"x", 0)
    daemon.close()

    assert before == digest(image)


@pytest.mark.parametrize("options", [DIRECT, ""], ids=["direct", "buffered"])
def test_what_is_written_is_in_the_image(daemon: Daemon, image: Path, options: str, chance: random.Random) -> None:
    """When write(2) returns, without fsync, the daemon may be killed. Decides: what fuse2fs, which has no journal,
    writes is on its way in the order in which it wrote it; and with direct I/O it is past the page cache too."""
    content = chance.randbytes(3 * MIB)
    daemon.start(daemon.file(image, options), daemon.luks(), daemon.export())
    file = os.open(daemon.plain, os.O_RDWR | os.O_CLOEXEC)
    assert len(content) == os.pwrite(file, content, 12345)
    daemon.kill()
    with suppress(OSError):  # it cannot be flushed any more
        os.close(file)
    daemon.close()
    daemon.start(daemon.file(image, options), daemon.luks(), daemon.export())

    assert content == daemon.plain.read_bytes()[12345 : 12345 + len(content)]


@pytest.mark.parametrize("options", ["", ",discard=unmap"], ids=["kept", "discard"])
def test_holes(daemon: Daemon, image: Path, options: str, chance: random.Random) -> None:
    """qemu 7.2 answers PUNCH_HOLE with success and leaves the old data; 10.0 refuses it on a LUKS node. Decides: ext4
    is made with `nodiscard` and mounted with `dioread_nolock`, which does not rely on it."""
    old, offset, length = chance.randbytes(MIB), 4 * MIB, MIB // 2
    daemon.start(daemon.file(image, DIRECT + options), daemon.luks(options[1:]), daemon.export())
    with opened(daemon.plain) as file:
        os.pwrite(file, old, offset)
        os.fsync(file)
        refused = not punched(file, offset, length)
        found = os.pread(file, MIB, offset)

    print("refused:", refused)
    if qemu_daemon.version() < NO_FALSE_HOLES:
        assert (False, old) == (refused, found)
    else:
        assert (old if refused else bytes(length) + old[length:]) == found


def punched(descriptor: int, offset: int, length: int) -> bool:
    """Whether it is said that there is a hole now."""
    try:
        fallocate(descriptor, KEEP_SIZE | PUNCH_HOLE, offset, length)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return False
    return True


def test_zeroes_are_written(daemon: Daemon, image: Path, chance: random.Random) -> None:
    """ZERO_RANGE does what it says, or says that it cannot. Decides: zeroing is left to the tools."""
    old, offset = chance.randbytes(MIB), 4 * MIB
    daemon.start(daemon.file(image), daemon.luks(), daemon.export())
    with opened(daemon.plain) as file:
        os.pwrite(file, old, offset)
        expected = bytes(MIB)
        try:
            fallocate(file, ZERO_RANGE | KEEP_SIZE, offset, MIB)
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            expected = old
        assert expected == os.pread(file, MIB, offset)


def test_a_discard_frees_nothing(daemon: Daemon, image: Path, chance: random.Random) -> None:
    """No block of the image is given back, with `discard=unmap` on both nodes. Decides: `compact` refuses this
    engine, and no discard escapes the record of what was written."""
    daemon.start(daemon.file(image, f"{DIRECT},discard=unmap"), daemon.luks("discard=unmap"), daemon.export())
    with opened(daemon.plain) as file:
        os.pwrite(file, chance.randbytes(8 * MIB), 0)
        os.fsync(file)
        before = image.stat().st_blocks
        punched(file, 0, 8 * MIB)
        os.fsync(file)

    assert before <= image.stat().st_blocks + 8  # of 512 bytes: what the store needs itself


@pytest.mark.roots
@pytest.mark.needs("losetup")
def test_requests_are_not_overwritten_on_the_way(
    daemon: Daemon, image: Path, rounds: Callable[[int, int], int]
) -> None:
    """What several write at once through a loop device arrives as it was written, from a LUKS node. With 7.2 it does
    not from a raw one, whose requests share memory; with 10.0 it does. Decides: lukshook exports LUKS nodes only."""
    wrong = {"luks": 0, "raw": 0}
    for number in range(rounds(2, 20)):
        for kind in wrong:
            daemon.show(image, raw=kind == "raw")
            try:
                wrong[kind] += wrong_blocks(daemon.plain, number)
            finally:
                daemon.close()
        luks_image(image, SIZE)  # which the raw node has overwritten
    print("wrong blocks:", wrong)

    assert 0 == wrong["luks"]


@pytest.mark.roots
@pytest.mark.needs("losetup")
def test_several_threads_serve_one_export(daemon: Daemon, image: Path, rounds: Callable[[int, int], int]) -> None:
    """From 10.1 on, and what several write at once arrives as it was written; an earlier one refuses the list.
    Decides: from which version on an export gets several threads."""
    several = qemu_daemon.version() >= qemu_start._SHARED_EXPORT
    wrong = 0
    for number in range(rounds(2, 20)):
        daemon.start(daemon.file(image), daemon.luks(), *daemon.listen())
        for name in ("io0", "io1"):
            daemon.ask("object-add", {"qom-type": "iothread", "id": name})
        export = {"type": "fuse", "id": "plain", "node-name": "volume", "writable": True, "allow-other": "off"}
        export |= {"mountpoint": str(daemon.plain), "iothread": ["io0", "io1"]}
        with nullcontext() if several else pytest.raises(qmp.Rejected, match="iothread"):
            daemon.ask("block-export-add", export)
            wrong += wrong_blocks(daemon.plain, number)
        daemon.close()

    assert 0 == wrong


def wrong_blocks(plain: Path, seed: int) -> int:
    """Six writers through a loop device with direct I/O: how many blocks of 4 KiB are not as they were written."""
    content = [random.Random(f"{seed} {writer}").randbytes(2 * MIB) for writer in range(6)]
    attach = ["losetup", "--direct-io=on", "--find", "--show", str(plain)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda item: write_direct(device, item[0] * 2 * MIB, item[1]), enumerate(content)))
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert kernel.wait_until(lambda: not loops.named(str(plain)), PATIENCE)
    with opened(plain, os.O_RDONLY) as file:
        found = os.pread(file, 12 * MIB, 0)
    expected = b"".join(content)
    return sum(found[at : at + 4096] != expected[at : at + 4096] for at in range(0, len(expected), 4096))


def write_direct(device: str, offset: int, content: bytes) -> None:
    """In blocks of 4 KiB, each written past the page cache."""
    with mmap.mmap(-1, 4096) as block, opened(Path(device), os.O_RDWR | os.O_DIRECT) as file:
        for at in range(0, len(content), 4096):
            block[:] = content[at : at + 4096]
            os.pwrite(file, block, offset + at)


def test_memory_is_kept(tmp_path: Path) -> None:
    """With the two tunables of glibc, reading causes far fewer page faults; from qemu 11 on there are none without
    them either. Decides: the daemon gets them."""
    image = luks_image(tmp_path / "large", 64 * MIB)
    faults: dict[bool, int] = {}
    for kept in (False, True):
        with qemu_daemon.daemon_in(tmp_path) as daemon:
            daemon.environment = qemu_start.ENVIRONMENT if kept else {}
            daemon.start(daemon.file(image), daemon.luks(), daemon.export())
            faults[kept] = faults_of_reading(daemon)

    print("page faults:", faults)
    assert faults[True] <= faults[False] / 2, faults


def faults_of_reading(daemon: Daemon) -> int:
    """Minor page faults of a daemon whose plaintext is read (proc(5): minflt)."""

    before = 0

    def minor() -> int:
        return int(Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[7])

    with mmap.mmap(-1, MIB) as buffer, opened(daemon.plain, os.O_RDONLY | os.O_DIRECT) as file:
        for at in range(0, 64 * MIB, MIB):
            os.preadv(file, [buffer], at)
            before = before or minor()
    return minor() - before


# The record of what was written


def recorder(daemon: Daemon) -> dirty_bitmap.Recorder:
    return dirty_bitmap.Recorder(daemon.monitor, daemon.folder / "n", "image")


def test_the_node_under_a_volume_is_not_exported(daemon: Daemon, image: Path) -> None:
    """qemu refuses NBD on it. Decides: the bits are copied to a node of their own to be read."""
    daemon.show(image)
    recorder(daemon).begin(65536)
    daemon.ask("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(daemon.folder / "n")}}})
    export = {"type": "nbd", "id": "n", "node-name": "image", "name": "n", "bitmaps": ["written"], "writable": False}
    with pytest.raises(qmp.Rejected, match="onflict"):
        daemon.ask("block-export-add", export)


def test_a_bitmap_of_a_raw_image_is_not_stored(daemon: Daemon, image: Path) -> None:
    """Decides: the record covers one opening, and is lost with the daemon."""
    daemon.show(image)
    bitmap = {"node": "image", "name": "kept", "granularity": 65536, "persistent": True}
    with pytest.raises(qmp.Rejected, match="store persistent"):
        daemon.ask("block-dirty-bitmap-add", bitmap)


def test_a_bit_that_is_set_is_no_data_to_qemu_img(daemon: Daemon, image: Path) -> None:
    """`x-dirty-bitmap` gives the bits of the image's file, header included. Decides: how the record is read."""
    daemon.show(image)
    recorder(daemon).begin(65536)
    with opened(daemon.plain) as file:
        os.pwrite(file, b"x", 5 * 65536 + 1)
        os.pwrite(file, b"x" * 100, 9 * 65536 - 50)

    expected = ((OFFSET + 5 * 65536, 65536), (OFFSET + 8 * 65536, 2 * 65536))
    assert expected == recorder(daemon).extents(SystemRunner())


def test_a_transaction_waits_for_writes_that_are_under_way(daemon: Daemon) -> None:
    """A bit is set when its write ends. Decides: the bits are copied in a transaction, so that a piece which was read
    while it was being written is never taken for unchanged."""
    slow = "--blockdev=driver=null-co,node-name=image,size=16777216,latency-ns=2000000000"
    daemon.start(slow, *daemon.listen())
    export = {"type": "fuse", "id": "plain", "node-name": "image", "writable": True, "mountpoint": str(daemon.plain)}
    daemon.ask("block-export-add", export)
    recorder(daemon).begin(65536)
    with writing(daemon.plain, 3 * 65536):
        found = recorder(daemon).extents(SystemRunner())

    assert ((3 * 65536, 65536),) == found


@contextmanager
def writing(plain: Path, offset: int) -> Iterator[None]:
    """A process is in the middle of a write."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with opened(plain) as file:
            os.write(tell, b"x")
            os.pwrite(file, b"x", offset)
        os._exit(0)
    os.read(told, 1)
    assert kernel.wait_until(lambda: sleeps(pid), PATIENCE)
    yield
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)


def sleeps(pid: int) -> bool:
    """Whether a process waits in the kernel, or has ended (proc(5): state)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SDZ"

"""Growing and shrinking with real dm-crypt: nothing is lost, whatever cuts it off."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import resource
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest

from support import kill_after_command
from support.lukshook_process import Child, Done, nothing
from support.resize_cases import with_features

MIB = 1 << 20
OFFSET = 16 * MIB
SCRIPTS = Path(sysconfig.get_path("scripts"))
KILLED = -9
pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "resize2fs")
Result = subprocess.CompletedProcess[str]


def run(*argv: str | Path, stdin: bytes | None = None) -> str:
    """A command that has to succeed; what it prints."""
    done = subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert 0 == done.returncode, done.stdout.decode()
    return done.stdout.decode().strip()


@attrs.frozen
class Place:
    """A folder with a volume "v" and its configuration."""

    home: Path

    @property
    def image(self) -> Path:
        return self.home / "image"

    @property
    def mount(self) -> Path:
        return self.home / "mount"

    @property
    def data(self) -> Path:
        return self.mount / "data"

    @property
    def key(self) -> Path:
        return self.home / "key"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LUKSHOOK_RUN_DIR": f"{self.home}/run", "LUKSHOOK_STATE_DIR": f"{self.home}/state"}

    def call(self, *argv: str | Path) -> Result:
        """Run something without a terminal; its status is for the test."""
        return subprocess.run(
            argv,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def lukshook(self, *arguments: str, prepare: Callable[[], None] = nothing) -> Done:
        """Run lukshook in a fork of the tests' process; *prepare* is called in it first."""
        given = ("-c", str(self.home / "config.toml"), *arguments)
        return Child(given, self.environment(), prepare).wait(600)

    def ok(self, *arguments: str) -> str:
        """`lukshook`, which has to succeed; what it prints."""
        done = self.lukshook(*arguments)
        assert (0, "") == (done.returncode, done.stderr), done
        return done.stdout

    def configure(self, **options: str) -> None:
        lines = {"image": f'"{self.image}"', "mountpoint": f'"{self.mount}"', "key": f'"file:{self.key}"'}
        text = "\n".join(f"{name} = {value}" for name, value in {**lines, **options}.items())
        (self.home / "config.toml").write_text(f"[volumes.v]\n{text}\n")

    @contextmanager
    def open(self) -> Iterator[None]:
        self.ok("open", "v")
        try:
            yield
        finally:
            self.ok("close", "v")

    def fill(self, count: int, *, length: int = MIB) -> dict[str, str]:
        """Write files of random content into the open volume; their digests."""
        for number in range(count):
            (self.data / f"{number}").write_bytes(os.urandom(length + number))
        return self.digests()

    def digests(self) -> dict[str, str]:
        files = sorted(path for path in self.data.rglob("*") if path.is_file())
        return {str(path.relative_to(self.data)): digest(path) for path in files}

    def mapped(self) -> int:
        """Bytes of the open mapping."""
        return int(run("blockdev", "--getsize64", "/dev/mapper/lukshook-v"))

    def check(self) -> None:
        """The file system is without fault and as large as the image has room for it."""
        loop = run("losetup", "--find", "--show", "--read-only", self.image)
        try:
            run(
                "cryptsetup",
                "open",
                "--readonly",
                "--key-file=-",
                loop,
                "checked",
                stdin=base64.b64decode(self.key.read_bytes()),
            )
            try:
                # It exits 0 also where it has asked and was told "no": for a resize inode that is not valid, say.
                assert "? no" not in run("e2fsck", "-f", "-n", "/dev/mapper/checked")
                room = int(run("blockdev", "--getsize64", "/dev/mapper/checked"))
                assert room - 8 * MIB <= ext4_size("/dev/mapper/checked") <= room
            finally:
                run("cryptsetup", "close", "checked")
        finally:
            run("losetup", "--detach", loop)


def ext4_size(device: str) -> int:
    fields = dict(line.split(":", 1) for line in run("dumpe2fs", "-h", device).splitlines() if ":" in line)
    return int(fields["Block count"]) * int(fields["Block size"])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Iterator[Place]:
    """A place with a key and a configuration, and no image yet."""
    place = Place(tmp_path)
    place.mount.mkdir()
    place.key.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    place.key.chmod(0o600)
    place.configure(size='"96MiB"')
    yield place
    subprocess.run(["chattr", "-i", place.mount], check=False)


@pytest.fixture(name="volume")
def _volume(place: Place) -> Place:
    """A closed volume of 96 MiB."""
    place.ok("create", "v")
    return place


def test_a_closed_volume_grows_and_is_closed_again(volume: Place) -> None:
    """One command: image and file system are larger, what was in it is there, no other state is left."""
    with volume.open():
        before = volume.fill(5)
    assert "96MiB -> 160MiB, file system 144MiB, and closed again\n" == volume.ok("resize", "v", "160MiB")
    assert 160 * MIB == volume.image.stat().st_size
    volume.check()
    with volume.open():
        assert before == volume.digests()
    assert [] == list(volume.home.glob("state/*.resize"))


@pytest.mark.parametrize("in_use", [False, True])
def test_growing_does_not_write_out_the_inode_tables_of_what_is_new(place: Place, in_use: bool) -> None:
    """20 GiB have 320 MiB of them; a store of 1 TiB would have to take 16 GiB before the first byte of a backup."""
    place.configure(size='"256MiB"', fill='"sparse"', space='"warn"')
    assert 0 == place.lukshook("create", "v").returncode
    if in_use:
        assert 0 == place.lukshook("open", "v").returncode
    before = place.image.stat().st_blocks * 512
    assert 0 == place.lukshook("resize", "v", "20GiB").returncode
    if in_use:
        assert "noinit_itable" in next(line for line in run("mount").splitlines() if str(place.mount) in line)
    place.ok("close", "v")
    assert place.image.stat().st_blocks * 512 - before < 64 * MIB
    place.check()


def test_growing_to_the_size_it_has_changes_nothing_and_succeeds(volume: Place) -> None:
    """The same command twice is no error."""
    volume.ok("resize", "v", "128MiB")
    assert "128MiB -> 128MiB, file system 112MiB, and closed again\n" == volume.ok("resize", "v", "128MiB")


@pytest.mark.needs("borg", "rsync")
def test_a_volume_in_use_grows_three_times_under_borg_and_rsync(place: Place, tmp_path: Path) -> None:
    """Both write and sync without a break while it grows, and every byte of theirs is right after."""
    place.configure(size='"760MiB"', fill='"sparse"')  # borg wants 550 MB free for a transaction
    place.ok("create", "v")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(12):
        (source / f"{number}").write_bytes(os.urandom(MIB))
    seen: list[str] = []
    with place.open():
        repository, copies = place.data / "borg", place.data / "rsync"
        copies.mkdir()
        environment = {
            **os.environ,
            "BORG_BASE_DIR": f"{tmp_path}/borg",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        subprocess.run(["borg", "init", "-e", "none", repository], env=environment, check=True, capture_output=True)
        script = (
            'n=0; while [ ! -e "$STOP" ]; do n=$((n+1));'
            ' borg create -C none "$REPO::$n" "$SOURCE" || exit 1;'
            ' borg delete "$REPO::$n" && borg compact "$REPO" || exit 1;'
            ' rm -rf "$COPIES/a"; rsync -a --fsync "$SOURCE/" "$COPIES/a/" || exit 1; done;'
            ' borg create -C none "$REPO::last" "$SOURCE"'
        )
        environment |= {
            "STOP": f"{tmp_path}/stop",
            "REPO": str(repository),
            "SOURCE": str(source),
            "COPIES": str(copies),
        }
        writer = subprocess.Popen(
            ["sh", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for size in ("840MiB", "+64MiB", "1GiB"):
            time.sleep(1)
            assert writer.poll() is None, writer.communicate()[0]
            seen.append(place.ok("resize", "v", size))
            assert place.image.stat().st_size - OFFSET == place.mapped() == ext4_size("/dev/mapper/lukshook-v")
        (tmp_path / "stop").touch()
        said = writer.communicate(timeout=300)[0]
        assert 0 == writer.returncode, said.decode()
        run("diff", "-r", source, copies / "a")
        subprocess.run(["borg", "check", "--verify-data", repository], env=environment, check=True, capture_output=True)
        out = tmp_path / "out"
        out.mkdir()
        subprocess.run(["borg", "extract", f"{repository}::last"], cwd=out, env=environment, check=True)
        run("diff", "-r", source, f"{out}{source}")
    assert ["760MiB -> 840MiB", "840MiB -> 904MiB", "904MiB -> 1GiB"] == [line.split(",")[0] for line in seen]
    assert all(line.endswith("while it was open\n") for line in seen)
    place.check()


def test_shrinking_below_what_is_in_it_changes_not_one_byte(volume: Place) -> None:
    """It is refused with the smallest size that would do, and exactly that size does."""
    volume.ok("resize", "v", "256MiB")
    with volume.open():
        before = volume.fill(20)
    image = digest(volume.image)
    refused = volume.lukshook("resize", "v", "40MiB", "--yes")
    assert 65 == refused.returncode
    smallest = refused.stderr.split("the smallest possible size is ")[1].split(";")[0]
    assert image == digest(volume.image)
    volume.ok("resize", "v", smallest, "--yes")
    volume.check()
    assert smallest == f"{volume.image.stat().st_size // MIB}MiB"
    with volume.open():
        assert before == volume.digests()


def test_shrinking_between_backups_leaves_nothing_for_e2fsck(place: Place) -> None:
    """resize2fs 1.47.0, left to itself, exits 0 and has spoilt the resize inode in the second or fourth round."""
    place.configure(size='"64MiB"')
    place.ok("create", "v")
    for number in range(5):
        with place.open():
            for part in range(3):
                (place.data / f"{number}-{part}").write_bytes(os.urandom(300_000))
        place.ok("resize", "v", "-1MiB", "--yes")
        place.check()


def test_shrinking_asks_and_a_script_has_to_say_yes(volume: Place) -> None:
    """Without a terminal and --yes nothing happens."""
    image = digest(volume.image)
    refused = volume.lukshook("resize", "v", "-16MiB")
    assert (64, True) == (refused.returncode, "--yes" in refused.stderr)
    assert image == digest(volume.image)


def test_an_open_volume_does_not_shrink(volume: Place) -> None:
    """Only what is closed is made smaller."""
    with volume.open():
        refused = volume.lukshook("resize", "v", "80MiB", "--yes")
        assert 69 == refused.returncode
        assert 96 * MIB == volume.image.stat().st_size


def random_sizes(place: Place, count: int, seed: int) -> None:
    """Give the volume *count* random sizes, some while it is open, and look at every byte each time."""
    chance = random.Random(seed)
    with place.open():
        before = place.fill(6)
    length = 96
    for _ in range(count):
        target = chance.randrange(72, 600)
        if target >= length and chance.random() < 0.5:
            with place.open():
                place.ok("resize", "v", f"{target}MiB")
        else:
            place.ok("resize", "v", f"{target}MiB", "--yes")
        length = target
        assert target * MIB == place.image.stat().st_size
        place.check()
        with place.open():
            assert before == place.digests(), f"seed {seed}"


def test_random_sizes_keep_every_byte(volume: Place) -> None:
    """Up and down through five sizes."""
    random_sizes(volume, 5, 4)


@pytest.mark.slow
def test_fifty_random_sizes_keep_every_byte(volume: Place) -> None:
    """Up and down through fifty sizes."""
    random_sizes(volume, 50, 50)


@pytest.fixture(name="stride")
def _stride(request: pytest.FixtureRequest) -> int:
    """Kill after every change with --long, else after every third."""
    return 1 if request.config.getoption("--long") else 3


def cut_off(place: Place, stride: int, *arguments: str) -> Iterator[int]:
    """Run `lukshook resize v ...`, killed after ever more changes, until it is over before that."""
    for number in range(0, 100, stride):
        done = place.lukshook(*arguments, prepare=partial(kill_after_command.arm, str(number)))
        if done.returncode != KILLED:
            assert 0 == done.returncode, done.stderr
            assert number > 3
            return
        yield number


def finish(place: Place, *arguments: str) -> None:
    """The same command again; it may warn of what it found."""
    done = place.lukshook(*arguments)
    assert 0 == done.returncode, done.stderr


def test_growing_killed_after_every_step_is_finished_by_the_same_command(volume: Place, stride: int) -> None:
    """A relative size is not added twice."""
    with volume.open():
        before = volume.fill(3)
    length = 96
    for number in cut_off(volume, stride, "resize", "v", "+16MiB"):
        finish(volume, "resize", "v", "+16MiB")
        length += 16
        assert length * MIB == volume.image.stat().st_size, number
        volume.check()
    with volume.open():
        assert before == volume.digests()


def test_growing_an_open_volume_killed_after_every_step_is_finished_by_the_same_command(
    volume: Place, stride: int
) -> None:
    """It stays open and usable all the time."""
    with volume.open():
        before = volume.fill(3)
        length = 96
        for number in cut_off(volume, stride, "resize", "v", "+16MiB"):
            assert before == volume.digests()
            finish(volume, "resize", "v", "+16MiB")
            length += 16
            assert length * MIB == volume.image.stat().st_size == volume.mapped() + OFFSET, number
    volume.check()


def test_shrinking_killed_after_every_step_is_finished_by_the_same_command(volume: Place, stride: int) -> None:
    """The image is cut only where no file system is any more."""
    with volume.open():
        before = volume.fill(3)
    volume.ok("resize", "v", "400MiB")
    length = 400
    for number in cut_off(volume, stride, "resize", "v", "-10MiB", "--yes"):
        finish(volume, "resize", "v", "-10MiB", "--yes")
        length -= 10
        assert length * MIB == volume.image.stat().st_size, number
        volume.check()
    with volume.open():
        assert before == volume.digests()


def test_a_store_that_is_full_refuses_before_anything_changes(volume: Place) -> None:
    """Space is looked at first."""
    image = digest(volume.image)
    for size in ("100TiB", "+1PiB"):
        refused = volume.lukshook("resize", "v", size)
        assert (69, True) == (refused.returncode, "the store has" in refused.stderr)
    assert image == digest(volume.image)


def fill_up(ballast: Path) -> None:
    """Take all the space there is."""
    taken = 0
    with ballast.open("wb") as file:
        for part in (64 * MIB, 8 * MIB, MIB, 65536, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), taken, part)
                    taken += part


@contextmanager
def small_store(folder: Path, size: int) -> Iterator[Path]:
    """An ext4 of *size* bytes mounted on *folder*."""
    disk = folder.with_suffix(".disk")
    disk.write_bytes(b"")
    os.truncate(disk, size)
    folder.mkdir()
    run("mkfs.ext4", "-q", "-m", "0", disk)
    run("mount", "-o", "loop", disk, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
        disk.unlink()


def test_a_store_that_fills_up_half_way_leaves_the_image_as_it_was(place: Place) -> None:
    """A file that is being written with zeroes has its old length again; later the same command does it."""
    with small_store(place.home / "store", 400 * MIB) as store:
        inside = attrs.evolve(place)
        image = store / "image"
        inside.configure(image=f'"{image}"', size='"96MiB"', fill='"zero"')
        inside.ok("create", "v")
        with inside.open():
            before = inside.fill(3)
        ballast, length = store / "ballast", image.stat().st_size
        grown = subprocess.Popen(
            [SCRIPTS / "lukshook", "-c", place.home / "config.toml", "resize", "v", "300MiB"],
            env=place.environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while image.stat().st_size == length:
            assert grown.poll() is None
            time.sleep(0.001)
        fill_up(ballast)
        said = grown.communicate(timeout=300)[1].decode()
        assert 74 == grown.returncode, said
        assert length == image.stat().st_size
        with inside.open():
            assert before == inside.digests()
        ballast.unlink()
        inside.ok("resize", "v", "300MiB")
        with inside.open():
            assert before == inside.digests()


def tutorial(place: Place, *, length: int = 128 * MIB) -> bytes:
    """An image as the tutorial makes it: dd, luksFormat with its defaults but for a cheaper argon2id, mkfs.ext4."""
    key = base64.b64decode(place.key.read_bytes())
    with place.image.open("xb") as file:
        for _ in range(length // MIB):
            file.write(bytes(MIB))
    cheap = ("--pbkdf-memory=65536", "--pbkdf-force-iterations=4")
    run("cryptsetup", "luksFormat", "--batch-mode", *cheap, "--key-file=-", place.image, stdin=key)
    run("cryptsetup", "luksOpen", "--key-file=-", place.image, "backup_crypt", stdin=key)
    run("mkfs.ext4", "-q", "/dev/mapper/backup_crypt")
    run("cryptsetup", "luksClose", "backup_crypt")
    return key


@contextmanager
def by_hand(place: Place, key: bytes) -> Iterator[None]:
    """The tutorial's way to open and close."""
    run("cryptsetup", "luksOpen", "--key-file=-", place.image, "backup_crypt", stdin=key)
    run("mount", "/dev/mapper/backup_crypt", place.mount)
    place.data.mkdir(exist_ok=True)
    try:
        yield
    finally:
        run("umount", place.mount)
        run("cryptsetup", "luksClose", "backup_crypt")


def test_an_image_made_by_hand_grows_and_shrinks_with_the_standalone_command(place: Place) -> None:
    """Closed, then mounted by hand, then smaller; argon2id, and no configuration."""
    key = tutorial(place)
    with by_hand(place, key):
        before = place.fill(5)
    tool = (SCRIPTS / "lukshook-resize", place.image)
    source = ("--key", f"file:{place.key}")
    done = place.call(*tool, "192MiB", *source)
    assert (0, "128MiB -> 192MiB, file system 176MiB, and closed again\n") == (done.returncode, done.stdout), done
    with by_hand(place, key):
        done = place.call(*tool, "+64MiB", *source)
        assert (0, "192MiB -> 256MiB, file system 240MiB, while it was open\n") == (done.returncode, done.stdout), done
        assert before == place.digests()
    place.check()
    done = place.call(*tool, "160MiB", "--yes", *source)
    assert (0, 160 * MIB) == (done.returncode, place.image.stat().st_size), done
    place.check()
    with by_hand(place, key):
        assert before == place.digests()
    assert 0 == len(list(place.home.glob("state/*")))


def test_a_block_device_that_has_grown_is_filled(place: Place) -> None:
    """As an LVM volume after lvextend: max is what the device has."""
    key = tutorial(place)
    with by_hand(place, key):
        before = place.fill(3)
    os.truncate(place.image, 256 * MIB)
    loop = run("losetup", "--find", "--show", place.image)
    try:
        done = place.call(SCRIPTS / "lukshook-resize", loop, "max", "--key", f"file:{place.key}")
        assert (0, "256MiB -> 256MiB, file system 240MiB, and closed again\n") == (done.returncode, done.stdout), done
    finally:
        run("losetup", "--detach", loop)
    place.check()
    with by_hand(place, key):
        assert before == place.digests()


def test_a_check_of_a_block_device_says_nothing_of_a_store(place: Place) -> None:
    """It lies on none: neither free space of /dev, nor anything that it may still take."""
    place.image.touch()
    os.truncate(place.image, 96 * MIB)
    loop = run("losetup", "--find", "--show", place.image)
    try:
        place.configure(image=f'"{loop}"')
        assert 0 == place.lukshook("create", "v").returncode
        said = place.lukshook("check", "v")
    finally:
        run("losetup", "--detach", loop)
    assert (True, False) == (f"image {loop}, 96MiB" in said.stdout, "store has" in said.stdout), said


def test_a_sparse_image_of_a_tebibyte_doubles_in_seconds(place: Place) -> None:
    """Nothing is read, written or kept in memory in proportion to the size; closed, as the kernel writes tables."""
    place.configure(size='"1TiB"', fill='"sparse"', space='"warn"')
    place.ok("create", "v")
    allocated, started = place.image.stat().st_blocks * 512, time.monotonic()
    assert "1TiB -> 2TiB" == place.ok("resize", "v", "2TiB").split(",")[0]
    took, most = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"1 TiB -> 2 TiB: {took:.1f} s, {most} MiB")
    assert place.image.stat().st_blocks * 512 - allocated < 64 * MIB
    assert most < 512
    opened = place.lukshook("open", "v")  # warns that the store could not hold it all
    assert 0 == opened.returncode, opened
    found = os.statvfs(place.mount)
    assert found.f_blocks * found.f_frsize > 1.9 * 2**40
    place.ok("close", "v")


@pytest.mark.needs("mkfs.xfs", "xfs_growfs")
def test_xfs_grows_open_and_closed(place: Place) -> None:
    """It is mounted for it; shrinking is refused."""
    place.configure(size='"400MiB"', fill='"sparse"', filesystem='"xfs"')
    place.ok("create", "v")
    assert place.ok("resize", "v", "500MiB").endswith("and closed again\n")
    with place.open():
        before = place.fill(3)
        assert place.ok("resize", "v", "600MiB").endswith("while it was open\n")
        found = os.statvfs(place.mount)
        assert found.f_blocks * found.f_frsize > 500 * MIB
        assert before == place.digests()
    assert 65 == place.lukshook("resize", "v", "450MiB", "--yes").returncode
    with place.open():
        assert before == place.digests()


def test_a_volume_that_is_nearly_full_grows_before_the_backup(volume: Place) -> None:
    """By what is configured, up to the limit, and the backup goes on without growth where the store is full."""
    rule = '{when_free_below = "80%", by = "32MiB", up_to = "144MiB"}'
    volume.configure(grow=rule)
    with volume.open():
        before = volume.fill(20, length=2 * MIB)
    sizes = []
    for _ in range(3):
        done = volume.lukshook("before-backup", "v")
        assert 0 == done.returncode, done.stderr
        assert before == volume.digests()
        sizes.append(volume.image.stat().st_size // MIB)
        assert 0 == volume.lukshook("after-backup", "v").returncode
    assert [128, 144, 144] == sizes
    assert "has reached its maximum size" in done.stderr
    volume.configure(grow=rule.replace("144MiB", "100TiB").replace("32MiB", "90TiB"))
    done = volume.lukshook("before-backup", "v")
    assert (0, True) == (done.returncode, done.stderr.startswith("warning: automatic growth of volume v failed"))
    assert before == volume.digests()
    assert 0 == volume.lukshook("after-backup", "v").returncode
    volume.check()


def test_compacting_gives_deleted_files_back_to_the_store(volume: Place) -> None:
    """Only after a yes; the volume is as it was."""
    volume.ok("resize", "v", "256MiB")
    with volume.open():
        volume.fill(60, length=2 * MIB)
        for path in list(volume.data.iterdir())[3:]:
            path.unlink()
        before = volume.digests()
    allocated = volume.image.stat().st_blocks
    assert 64 == volume.lukshook("compact", "v").returncode
    assert allocated == volume.image.stat().st_blocks
    assert "returned to the store" in volume.ok("compact", "v", "--yes")
    assert volume.image.stat().st_blocks < allocated // 2
    volume.check()
    with volume.open():
        assert before == volume.digests()


def test_a_dry_run_shows_the_plan_and_changes_nothing(volume: Place) -> None:
    """Before and after of every part, then commands that could be pasted."""
    image = digest(volume.image)
    shown = volume.ok("--dry-run", "resize", "v", "+32MiB").splitlines()
    assert ["#", "before", "after"] == shown[0].split()
    assert ["#", "file", "96MiB", "128MiB"] == shown[1].split()
    assert ["#", "filesystem", "closed", "112MiB"] == shown[2].split()
    words = [line.partition(" || ")[0].split("|")[-1].split()[0] for line in shown[3:]]
    opening = ["mkdir", "sh", "cryptsetup", "e2fsck", "mkdir", "mount", "chmod", "mount", "umount", "rmdir", "sh"]
    assert any(line.startswith("env UNIX_IO_NOZEROOUT=1 resize2fs ") for line in shown)  # else 1.47.0 spoils it
    assert ["fallocate", *opening, "mount", "env", "mount", "mount", "umount", "cryptsetup"] == words
    assert image == digest(volume.image)


def test_sparse_super2_grows_closed_and_never_in_use(place: Place) -> None:
    """The kernel cannot; so it is refused while it is open, before the image gets longer, and done unmounted else."""
    made = place.lukshook("create", "v", prepare=with_features("sparse_super2"))
    assert 0 == made.returncode, made
    with place.open():
        before = place.fill(3)
        refused = place.lukshook("resize", "v", "+32MiB")
        assert (69, True) == (refused.returncode, "it has the feature sparse_super2" in refused.stderr), refused
        assert 96 * MIB == place.image.stat().st_size
    place.ok("resize", "v", "+32MiB")
    assert 128 * MIB == place.image.stat().st_size
    with place.open():
        assert before == place.digests()


def test_an_open_volume_does_not_grow_with_another_key(volume: Place) -> None:
    """LUKS2 keeps the key where no tool can read it back: it is tried before the image gets longer."""
    right, found = volume.key.read_bytes(), volume.image.stat()
    with volume.open():
        volume.key.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
        refused = volume.lukshook("resize", "v", "+32MiB")
        assert 77 == refused.returncode, refused
        assert (found.st_size, found.st_blocks) == (volume.image.stat().st_size, volume.image.stat().st_blocks)
        volume.key.write_bytes(right)
        volume.ok("resize", "v", "+32MiB")


def test_an_open_volume_whose_image_was_exchanged_does_not_grow(volume: Place) -> None:
    """Neither the file that lies there now, nor the one that is open; whoever uses the volume keeps it."""
    other, away = volume.home / "other", volume.home / "away"
    run("cp", volume.image, other)
    with volume.open():
        before = volume.fill(2)
        volume.image.rename(away)
        other.rename(volume.image)
        refused = volume.lukshook("resize", "v", "+32MiB")
        assert (65, True) == (refused.returncode, "is not the one that is open" in refused.stderr), refused
        assert [96 * MIB] * 2 == [volume.image.stat().st_size, away.stat().st_size]
        assert before == volume.digests()
        volume.image.rename(other)
        away.rename(volume.image)


@pytest.mark.needs("mkfs.btrfs", "btrfs")
def test_btrfs_mounted_by_hand_grows_with_the_standalone_command(place: Place) -> None:
    """Its mounts have a number of their own, which is not that of the mapping."""
    subprocess.run(["modprobe", "btrfs"], check=False)
    place.configure(size='"400MiB"', fill='"sparse"', filesystem='"btrfs"')
    place.ok("create", "v")
    key = base64.b64decode(place.key.read_bytes())
    with by_hand(place, key):
        before = place.fill(3)
        done = place.call(SCRIPTS / "lukshook-resize", place.image, "500MiB", "--key", f"file:{place.key}")
        assert (0, True) == (done.returncode, done.stdout.endswith("while it was open\n")), done
        found = os.statvfs(place.mount)
        assert found.f_blocks * found.f_frsize > 450 * MIB
        assert before == place.digests()

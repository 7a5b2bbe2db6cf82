"""Names elsewhere on the system, with any byte in them: what the kernel shows is read as it was written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshook.system import kernel, swap
from lukshook.volume import holders
from support import odd_names

TESTS = Path(__file__).resolve().parents[1]


@contextmanager
def proc(**files: bytes) -> Iterator[tuple[str, Path]]:
    """A folder of /proc that is ours, and what to put in the place of a pid to get there."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        yield f"self/root{folder}", Path(folder)


options = st.lists(odd_names.names.map(lambda name: name.replace(b",", b".")), min_size=1, max_size=3)
rows = st.tuples(odd_names.names, odd_names.names, odd_names.names, options)


@given(st.lists(rows, max_size=5))
def test_any_mount_is_read_as_it_is(mounts: list[tuple[bytes, bytes, bytes, list[bytes]]]) -> None:
    """Root, target, source and options, however they are named, and none of them hides or makes another."""
    lines = [
        b"36 35 7:%d /%s /%s rw - ext4 %s rw,%s\n"
        % (
            number,
            odd_names.mangled(root),
            odd_names.mangled(target),
            odd_names.mangled(source, b" \t\n\\#"),
            odd_names.mangled(b",".join(more)),
        )
        for number, (root, target, source, more) in enumerate(mounts)
    ]
    with proc(mountinfo=b"".join(lines)) as (process, _):
        found = kernel.mounts(process)

    assert [
        (f"7:{number}", "/" + odd_names.text(root), "/" + odd_names.text(target), odd_names.text(source))
        for number, (root, target, source, _) in enumerate(mounts)
    ] == [(mount.number, mount.root, mount.target, mount.source) for mount in found]


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_a_line_that_is_none_breaks_nothing(lines: list[bytes]) -> None:
    """An option with a raw line break in it leaves such lines; the mounts around it are seen."""
    real = b"36 35 7:1 / /mnt rw - ext4 /dev/loop1 rw\n"
    with proc(mountinfo=real + b"\n".join(lines) + b"\n" + real) as (process, _):
        found = kernel.mounts(process)

    assert ("/mnt", "/mnt") == (found[0].target, found[-1].target)


@given(st.lists(odd_names.names, max_size=5))
def test_any_swap_file_is_named(names: list[bytes]) -> None:
    """By the one reader of the table that all use."""
    head = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    lines = [b"%-39s file\t\t1048572\t\t0\t\t-2\n" % (b"/" + odd_names.mangled(name)) for name in names]
    with proc(swaps=head + b"".join(lines)) as (_, folder):
        found = kernel.swaps(folder / "swaps")
        warned = swap.in_the_clear(folder / "swaps", folder)

    assert ["/" + odd_names.text(name) for name in names] == found
    assert tuple(found) == warned


@given(
    odd_names.names.map(lambda name: name.replace(b"\n", b" ")),
    odd_names.names.map(lambda name: name.replace(b"\n", b" ")),
)
def test_any_cgroup_is_read_as_it_is(above: bytes, name: bytes) -> None:
    """The kernel refuses a line break in such a name, and nothing else."""
    with proc(cgroup=b"1:cpu:/other\n0::/%s/%s\n" % (above, name)) as (process, _):
        assert f"/{odd_names.text(above)}/{odd_names.text(name)}" == kernel.cgroup_of(process)


@given(odd_names.names.map(lambda name: odd_names.mangled(name, b"\n")))
def test_any_mapped_file_is_named(name: bytes) -> None:
    """Also one whose name begins or ends with what a line or word could end with."""
    lines = (
        b"7f00-7f01 r--p 00000000 08:01 12                         /%s\n" % name,
        b"7f02-7f03 rw-p 00000000 00:00 0 \n",
        b"7f04-7f05 r--p 00000000 07:05 13                         /%s\n" % name,
    )
    with proc(maps=b"".join(lines)) as (_, folder):
        found = list(holders._mapped(folder, holders._Device("7:5", frozenset({"7:5"}))))

    assert ["/" + odd_names.text(name)] == found


CHILD = """
import ctypes, sys
libc = ctypes.CDLL(None)
for line in sys.stdin:
    libc.prctl(15, bytes.fromhex(line), 0, 0, 0)  # PR_SET_NAME
    print(flush=True)
"""


@contextmanager
def named_child(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that takes the names that it is given in hexadecimal, one a line, and has *file* open."""
    argv = [sys.executable, "-c", CHILD]
    with (
        file.open() as held,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=held, text=True) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def call_it(child: subprocess.Popen[str], name: bytes) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(name.hex() + "\n")
    child.stdin.flush()
    child.stdout.readline()


FORGED = (b"x\x1cSigPnd:\t100", b"x) Z 1 1 1 1 4", "x\u00e4".encode()[:2], ("\u00e4" * 9).encode())


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    """Its name, its start and its parent are read all the same; the kernel cuts a letter in two."""
    (tmp_path / "file").touch()
    with named_child(tmp_path / "file") as child:
        born = kernel.started(child.pid)
        assert born is not None
        for name in (*odd_names.NAMES, *FORGED):
            call_it(child, name)
            shown = odd_names.text(name[:15])
            found = (kernel.command(child.pid), kernel.started(child.pid), kernel.parent(child.pid))
            assert (shown, born, os.getpid()) == found


@pytest.mark.parametrize(
    "name", [*FORGED, b"a\nb", b" a ", *(name for name in odd_names.NAMES if len(name) > 4)], ids=ascii
)
def test_a_process_of_any_name_is_found(tmp_path: Path, name: bytes) -> None:
    """By its name and by what it has open."""
    (tmp_path / "file").touch()
    found = (tmp_path / "file").stat()
    with named_child(tmp_path / "file") as child:
        call_it(child, name)

        assert (child.pid,) == kernel.processes_with(odd_names.text(name[:15]), found.st_dev, found.st_ino)


def test_a_command_line_may_have_any_words() -> None:
    """Each word for itself, also an empty one."""
    given = [b"sleep", b"300", *(name for name in odd_names.NAMES), b"", b"last"]
    child = subprocess.Popen([b"sh", b"-c", b"read x; exit", *given], stdin=subprocess.PIPE)
    try:
        assert kernel.wait_until(lambda: len(kernel.words(child.pid)) == len(given) + 3, 10.0)
        assert [odd_names.text(word) for word in given] == kernel.words(child.pid)[3:]
    finally:
        child.kill()
        child.communicate()


MOUNTING = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from support import odd_names
from lukshook.system import kernel
place = os.fsencode(sys.argv[2])
for name in odd_names.NAMES:
    target = place + b"/" + name
    os.mkdir(target)
    subprocess.run([b"mount", b"-t", b"tmpfs", b"--", name, target], check=True)
targets = {mount.target: mount for mount in kernel.mounts()}
for name in odd_names.NAMES:
    target = os.fsdecode(place + b"/" + name)
    mount = targets[target]
    assert mount.source == os.fsdecode(name), (mount, name)
    assert mount.kind == "tmpfs"
    assert kernel.mount_at(target) == mount
    assert kernel.mounts_around(target + "/inside")[-1] == mount
    assert kernel.number_within(target) == mount.number
print(len(targets))
"""
NAMESPACE = ("unshare", "--mount", "--propagation=slave")  # so it holds no mount of others


@pytest.mark.roots
def test_real_mounts_with_any_name_are_seen(tmp_path: Path) -> None:
    """Where they are and from what; in a mount namespace of their own."""
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", MOUNTING, TESTS, tmp_path], capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stderr[-2000:]
    assert int(done.stdout) >= len(odd_names.NAMES)


COMMANDS = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from support import odd_names
place = os.fsencode(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "place", place], check=True)
for name in odd_names.NAMES:
    os.mkdir(place + b"/" + name)
    subprocess.run([b"mount", b"-t", b"tmpfs", b"--", name, place + b"/" + name], check=True)
for command in (["status"], ["status", "--json"], ["check"], ["after-backup", "offsite"], ["close", "offsite"]):
    done = subprocess.run([sys.executable, "-m", "lukshook", *command], capture_output=True, text=True)
    print(command[0], done.returncode, "Traceback" in done.stderr, done.stderr.replace("\\n", " "))
"""


@pytest.mark.roots
def test_no_command_minds_a_mount_elsewhere(tmp_path: Path) -> None:
    """Each ends as it does without them."""
    (tmp_path / "config.toml").write_text(
        f'[volumes.offsite]\nimage = "{tmp_path}/b.img"\nmountpoint = "{tmp_path}/mnt"\nkey = "prompt"\n'
    )
    (tmp_path / "mnt").mkdir()
    (tmp_path / "odd").mkdir()
    own = {"CONFIG": "config.toml", "RUN_DIR": "run", "STATE_DIR": "state"}
    environment = os.environ | {f"LUKSHOOK_{name}": str(tmp_path / file) for name, file in own.items()}
    argv = [*NAMESPACE, sys.executable, "-c", COMMANDS, str(TESTS), str(tmp_path / "odd")]
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "mnt"], check=False, capture_output=True)

    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert [("status", "0"), ("status", "0"), ("after-backup", "0"), ("close", "0")] == [
        (line[0], line[1]) for line in lines if line[0] != "check"
    ], done.stdout
    assert ["False"] * 5 == [line[2] for line in lines], done.stdout


HOLDING = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from support import odd_names
from lukshook.system import kernel
from lukshook.volume import holders
from lukshook.cli.main import warn
place = os.fsencode(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "inner", place], check=True)
children = {}
for name in odd_names.NAMES:
    with open(place + b"/" + name, "w") as file:
        child = subprocess.Popen(["sleep", "60"], stdin=file)
    children[child.pid] = child, os.fsdecode(b"file " + place + b"/" + name)
found = {holder.pid: holder for holder in holders.of(kernel.number_within(place), os.fsdecode(place))}
for pid, (child, held) in children.items():
    child.kill()
    child.wait()
    assert held == found[pid].holds, (held, found[pid])
    warn(f"still used by {found[pid]}")
"""


@pytest.mark.roots
def test_a_file_of_any_name_that_is_held_open_is_named(tmp_path: Path) -> None:
    """Whole, and on one line of what can be printed, whatever it contains."""
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", HOLDING, TESTS, tmp_path], capture_output=True, check=False
    )

    assert 0 == done.returncode, done.stderr[-2000:]
    lines = done.stderr.decode().removesuffix("\n").split("\n")
    assert len(odd_names.NAMES) == len(lines)
    assert all(line.isprintable() and line.startswith("warning: still used by sleep (pid ") for line in lines)

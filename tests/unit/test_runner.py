"""tests/run cleans up after tests that fail, and says so."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support import chroot


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """tests/run, which has no suffix."""
    loader = importlib.machinery.SourceFileLoader("tests_run", str(Path(__file__).parents[1] / "run"))
    spec = importlib.util.spec_from_loader("tests_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tests_run", module)  # dataclasses look for it there
        loader.exec_module(module)
    return module


@pytest.mark.roots
def test_a_mount_that_a_test_left_is_detached(runner: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """Else the run ended with "Device or resource busy" and without its last line."""
    with runner.passing_folder() as folder:
        (folder / "a b").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "left", folder / "a b"], check=True)
        (folder / "a b/inside").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "left", folder / "a b/inside"], check=True)
        assert [f"{folder}/a b/inside", f"{folder}/a b"] == runner.mounts_below(str(folder))

    assert not os.path.lexists(folder)
    assert [] == runner.mounts_below(str(folder))
    assert 2 == capfd.readouterr().out.count("a failed test left a mount")


@pytest.mark.roots
@pytest.mark.needs("unshare", "mount", "cat")
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse")
def test_an_ordinary_users_namespace_holds_no_mount_of_others(runner: ModuleType, tmp_path: Path) -> None:
    """Where "/" is private, as in a container, another run could not close a volume until these tests are over."""
    theirs, ours = tmp_path / f"{runner.PREFIX}a/m n", tmp_path / f"{runner.PREFIX}b"
    (ours / "small").mkdir(parents=True)
    theirs.mkdir(parents=True)
    script = str(Path(__file__).parents[1] / "support/own_namespace.py")
    argv = ["unshare", "--mount", "--propagation=private", sys.executable, script, tmp_path / runner.PREFIX]
    subprocess.run(["mount", "-t", "tmpfs", "theirs", theirs], check=True)
    try:
        done = subprocess.run(
            [*argv, "--home", ours, "cat", "/proc/self/mountinfo"], check=True, capture_output=True, text=True
        )
        assert [str(theirs)] == runner.mounts_below(str(tmp_path))
    finally:
        subprocess.run(["umount", theirs], check=True)

    assert f"{ours}/small " in done.stdout
    assert " theirs " not in done.stdout


#: An image that another run shows as a file, seen from a copy of its namespace.
RUN_FOLDER_OF_OTHERS = """set -e
mkdir -p /run/lukshook; mount -t tmpfs run /run/lukshook; mkdir /run/lukshook/offsite.remote
mount -t tmpfs theirs /run/lukshook/offsite.remote
exec "$@"
"""


@pytest.mark.roots
@pytest.mark.needs("unshare", "mount", "cat")
def test_a_namespace_holds_nothing_that_others_have_in_the_run_folder(runner: ModuleType) -> None:
    """A volume behind it could not be closed; that lies below the new run folder, where nobody sees it."""
    outer = ["unshare", "--mount", "--propagation=private", "sh", "-c", RUN_FOLDER_OF_OTHERS, "sh"]
    inner = [*runner.own_namespace(), "cat", "/proc/self/mountinfo"]
    done = subprocess.run([*outer, *inner], check=True, capture_output=True, text=True)

    assert " /run/lukshook " in done.stdout
    assert " theirs " not in done.stdout


def test_the_folder_goes_when_a_run_is_interrupted(runner: ModuleType) -> None:
    """And the interruption is passed on."""
    with pytest.raises(KeyboardInterrupt), runner.passing_folder() as folder:
        (folder / "x").touch()
        raise KeyboardInterrupt

    assert not os.path.lexists(folder)


def test_packages_are_those_of_the_release(runner: ModuleType) -> None:
    """qemu-storage-daemon has another one in Debian 13."""
    platforms = runner.load(runner.PLATFORMS)
    found = {
        codename: set(platforms.packages(runner.USERSPACE, platforms.system_of({"VERSION_CODENAME": codename})))
        for codename in ("bookworm", "trixie")
    }

    assert {"qemu-system-common", "qemu-utils", "fuse3", "fuse2fs"} == found["bookworm"]
    assert {"qemu-utils", "fuse3", "fuse2fs"} == found["trixie"]


IN_A_CHROOT = """import subprocess, sys
sys.path.insert(0, sys.argv[1])
from support import chroot
before = chroot.root_is_mounted()
chroot.mount_root()
print(before, chroot.root_is_mounted(), subprocess.run(["unshare", "--mount", "true"]).returncode)
"""


@pytest.mark.roots
@pytest.mark.needs("unshare", "chroot", "mount")
def test_a_chroot_in_a_plain_folder_gets_a_root_that_is_mounted(tmp_path: Path) -> None:
    """unshare(1) fails there otherwise; and nothing of it is seen outside of the chroot."""
    setup = """set -e
mount --make-rshared /
mkdir "$1/root"; mount -t tmpfs around "$1/root"; mkdir "$1/root/plain"
for place in /*; do
    [ -d "$place" ] || continue
    mkdir "$1/root/plain$place"; mount --rbind "$place" "$1/root/plain$place"
done
chroot "$1/root/plain" "$2" -c "$3" "$4"
grep -c " $1/root/plain " /proc/self/mountinfo || true
"""
    python = os.path.realpath(sys.executable)
    arguments = [str(tmp_path), python, IN_A_CHROOT, str(Path(chroot.__file__).parents[1])]
    argv = ["unshare", "--mount", "sh", "-c", setup, "sh", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (0, "False True 0\n0\n") == (done.returncode, done.stdout), done.stderr


def test_a_long_run_needs_an_emulator(runner: ModuleType) -> None:
    """The short one boots no machine, so it does not install one."""
    short, long = (runner.packages_for(runner.parse(words)) for words in (["machines"], ["machines", "--long"]))

    assert {"qemu-system-x86", "e2fsprogs"} == long - short


def test_a_busy_machine_gets_more_time_and_no_more_tests(runner: ModuleType) -> None:
    """Only the limits change."""
    usual, patient = (runner.parse([*words, "kernel", "-k", "smoke"]) for words in ([], ["--patient"]))

    assert (usual.tiers, usual.pytest, usual.long) == (patient.tiers, patient.pytest, patient.long)
    assert usual.limit() < patient.limit()
    assert runner.SILENCES[usual.pace] < runner.SILENCES[patient.pace]

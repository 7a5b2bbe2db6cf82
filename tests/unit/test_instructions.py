"""Whose word root takes: configuration, folders and environment, through the command line."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook import hosts
from lukshook.cli import paths
from lukshook.errors import Unavailable
from lukshook.system import command, ownership, platforms
from support.lukshook_process import Done, nothing
from support.volume import NAME, CliVolume

NOBODY = 65534
#: Seconds after which a lukshook that only reads its configuration hangs.
SOON = 60.0


@pytest.fixture
def volume(tmp_path: Path) -> CliVolume:
    """A volume whose key source leaves a mark when it is asked."""
    made = CliVolume(tmp_path / "house")
    made.folder.mkdir()
    (made.folder / "store").mkdir()
    made.configure(key=f"command:touch {tmp_path}/ran")
    return made


def check(volume: CliVolume, **environment: str) -> Done:
    """`lukshook check` asks for the key."""
    return volume.start("check", NAME, prepare=modest, **environment).wait(SOON)


def modest() -> None:
    """A process with this much memory ends when it reads without end."""
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))


def was_asked(volume: CliVolume) -> bool:
    return (volume.folder.parent / "ran").exists()


MODES = (0o700, 0o755, 0o775, 0o757, 0o777, 0o1777)


@pytest.mark.parametrize(("part", "mode"), list(itertools.product(("file", "folder", "above"), MODES)))
def test_a_configuration_that_others_can_write_is_refused(volume: CliVolume, part: str, mode: int) -> None:
    """Exit status 78, and no command in it is run; the hint ends it."""
    place = {"file": volume.config, "folder": volume.folder, "above": volume.folder.parent}[part]
    place.chmod(mode)
    bad = bool(mode & 0o022) and not (mode & 0o1000 and part != "file")

    done = check(volume)

    assert bad != was_asked(volume)
    assert bad == (done.returncode == 78)
    if bad:
        assert "" == done.stdout
        assert f"{volume.config} is not safe from other users: others can write to {place}" in done.stderr
        assert f"hint: check what is in it, then: chmod go-w {place}\n" in done.stderr


@pytest.mark.roots
@pytest.mark.parametrize(("part", "uid"), list(itertools.product(("file", "folder", "above", "link"), (0, NOBODY))))
def test_a_configuration_of_another_user_is_refused(volume: CliVolume, part: str, uid: int) -> None:
    """Whatever its mode; named by -c, by the environment or through a link, which may lie in a sticky folder."""
    link = volume.folder.parent / "link.toml"
    link.symlink_to(volume.config)
    place = {"file": volume.config, "folder": volume.folder, "above": volume.folder.parent, "link": link}[part]
    if part == "link":
        link.parent.chmod(0o1777)
    os.chown(place, uid, uid, follow_symlinks=False)

    found = [
        volume.start("-c", str(link), "check", NAME).wait(SOON),
        check(volume, LUKSHOOK_CONFIG=str(link)),
        *([] if part == "link" else [check(volume)]),
    ]

    assert bool(uid) != was_asked(volume)
    for done in found:
        assert bool(uid) == (done.returncode == 78), done.stderr
        if uid:
            assert f"{place} belongs to nobody" in done.stderr
            assert f"chown --no-dereference root {place}" in done.stderr


def pipe(place: Path) -> None:
    os.mkfifo(place, 0o600)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def folder(place: Path) -> None:
    place.mkdir()


def endless(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)


def a_socket(place: Path) -> None:
    before = Path.cwd()
    os.chdir(place.parent)  # a socket's name must not be long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(place.name)
    place.chmod(0o600)
    os.chdir(before)


@pytest.mark.parametrize("make", [pipe, device, folder, endless, a_socket])
def test_a_configuration_that_is_no_file_is_refused_at_once(volume: CliVolume, make: Callable[[Path], None]) -> None:
    """Exit status 78, without waiting, and without reading what has no end."""
    volume.config.unlink()
    make(volume.config)

    done = check(volume)

    assert (78, "") == (done.returncode, done.stdout)
    assert 2 == len(done.stderr.splitlines())


@pytest.mark.parametrize("make", [pipe, device, endless])
def test_another_tools_configuration_that_is_no_file_is_not_read(
    volume: CliVolume, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lukshook check` looks for settings in it that break hooks."""
    make(volume.folder / "config.yaml")
    monkeypatch.setattr(hosts, "found_at", lambda places, home: [volume.folder / "config.yaml"])

    done = check(volume)

    assert f"{NAME}:" in done.stdout
    assert "MemoryError" not in done.stderr


def test_the_configuration_that_was_judged_is_the_one_that_is_read(
    volume: CliVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that takes its name in between is not looked at."""
    other = volume.folder / "other.toml"
    other.write_text("no TOML")
    judge = ownership._faults

    def exchange(place: str, found: os.stat_result, uid: int) -> Iterator[ownership.Fault]:
        if place == os.fspath(volume.config) and other.exists():
            other.replace(place)
        return judge(place, found, uid)

    monkeypatch.setattr(ownership, "_faults", exchange)

    check(volume)

    assert was_asked(volume)


def test_root_takes_nothing_from_the_home_of_its_caller(tmp_path: Path) -> None:
    """`sudo` without -H may leave HOME, `su` leaves the XDG variables; a user's own count for that user."""
    for folder in (tmp_path / "home/.config", tmp_path / "xdg"):
        (folder / "lukshook").mkdir(parents=True)
        (folder / "lukshook/config.toml").touch()
    home = {"HOME": str(tmp_path / "home")}
    xdg = {name: str(tmp_path / "xdg") for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")}

    for environment in (home, xdg, {**home, **xdg}):
        root = paths.places(environment, 0)
        assert not [place for place in (root.run, root.state, root.config) if place.is_relative_to(tmp_path)]
    if not Path("/etc/lukshook/config.toml").exists():
        assert tmp_path / "home/.config/lukshook/config.toml" == paths.places(home, 1000).config
        assert tmp_path / "xdg/lukshook/config.toml" == paths.places(xdg, 1000).config


@pytest.mark.parametrize("variable", ["LUKSHOOK_RUN_DIR", "LUKSHOOK_STATE_DIR"])
@pytest.mark.parametrize("where", ["itself", "above"])
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=pytest.mark.roots)])
def test_a_folder_of_ours_that_others_control_is_not_believed(
    volume: CliVolume, variable: str, where: str, how: str
) -> None:
    """Exit status 69 before anything in it is read, be it a pipe."""
    place = volume.folder / "elsewhere/ours"
    place.mkdir(parents=True)
    os.mkfifo(place / f"{NAME}.json", 0o600)
    part = place if where == "itself" else place.parent
    if how == "mode":
        part.chmod(0o777)
    else:
        os.chown(part, NOBODY, NOBODY)

    for words in (("status", NAME), ("check", NAME), ("open", NAME), ("close", NAME), ("before-backup", NAME)):
        done = volume.start(*words, prepare=nothing, **{variable: str(place)}).wait(SOON)
        assert 69 == done.returncode, (words, done.stderr)
        assert f"the folder {place} is not safe from other users" in done.stderr
    assert not was_asked(volume)


@pytest.mark.parametrize("mask", [0, 0o002, 0o077])
def test_the_folders_we_make_are_safe_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """Those above the last one too: else the next command would refuse them."""
    before = os.umask(mask)
    try:
        for _ in range(2):
            ownership.private_folder(tmp_path / "a/b/c")
    finally:
        os.umask(before)

    assert 0o700 == (tmp_path / "a/b/c").stat().st_mode & 0o777
    assert not (tmp_path / "a").stat().st_mode & 0o022


def test_no_folder_is_made_where_others_control_the_path(tmp_path: Path) -> None:
    """Root would make it wherever their link leads."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o777)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "theirs/link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Unavailable, match="not safe from other users"):
        ownership.private_folder(tmp_path / "theirs/link/ours")

    assert [] == list((tmp_path / "elsewhere").iterdir())


# What `check` asks for


def only(folder: Path, *left_out: str) -> str:
    """A folder with every tool of this machine, but for some."""
    folder.mkdir()
    for place in command.TOOL_PATH.split(":"):
        for tool in Path(place).iterdir() if Path(place).is_dir() else ():
            if tool.name not in left_out and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    return str(folder)


E2FSPROGS = ("e2fsck", "mkfs.ext4", "resize2fs", "tune2fs")


@pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize(
    ("kind", "left_out", "package"),
    [
        *(("ext4", (tool,), "e2fsprogs") for tool in E2FSPROGS),
        *(("xfs", (tool,), "xfsprogs") for tool in ("mkfs.xfs", "xfs_growfs", "xfs_info")),
        *(("btrfs", (tool,), "btrfs-progs") for tool in ("mkfs.btrfs", "btrfs")),
        ("ext4", ("mkfs.xfs", "xfs_growfs", "xfs_info", "mkfs.btrfs", "btrfs"), ""),
        ("xfs", (*E2FSPROGS, "mkfs.btrfs", "btrfs"), ""),
        ("btrfs", (*E2FSPROGS, "mkfs.xfs", "xfs_growfs", "xfs_info"), ""),
    ],
)
def test_check_wants_the_tools_of_the_volumes_own_kind(
    volume: CliVolume, monkeypatch: pytest.MonkeyPatch, kind: str, left_out: tuple[str, ...], package: str
) -> None:
    """What another kind of file system needs may be missing; its own is named with its package."""
    assert all(map(shutil.which, left_out))
    volume.configure(key="env:NO_KEY", filesystem=kind, engine="kernel")
    monkeypatch.setattr(command, "TOOL_PATH", only(volume.folder / "bin", *left_out))

    done = check(volume)

    if package:
        hint = platforms.install_hint(left_out[0], platforms.this_system())
        assert f"fail     {left_out[0]} is not installed\n           hint: {hint}" in done.stdout
        assert package in hint
    else:
        assert "is not installed" not in done.stdout
        assert "ok       cryptsetup" in done.stdout
        assert (kind == "ext4") == ("ok       e2fsck" in done.stdout)

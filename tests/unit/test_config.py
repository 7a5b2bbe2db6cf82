"""The configuration: every problem at once, each with its address."""

from __future__ import annotations

import os
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, UnknownVolume
from lukshook.layers import dmcrypt
from lukshook.options.names import LONGEST_NAME, is_name
from lukshook.options.table import OPTIONS
from lukshook.options.values import Copy, Drill, Grow
from lukshook.resize import standalone
from lukshook.snapshots.kind import Policy
from lukshook.system.secret import Secret
from lukshook.volume import known_state
from lukshook.volume.context import Site
from support import odd_names
from support.fake_runner import FakeRunner

GOOD = """
[volumes.offsite]
image = "/srv/backup.img"
mountpoint = "/mnt/backup"
key = "file:/root/key"
"""


#: An argument where there is none, none where there is one, no text.
BAD_KINDS = ('"btrfs:x"', '"lvm2"', '"command"', "7", '["btrfs"]')
#: Numbers, no octal, less than all for the owner, others who can write, special bits.
BAD_MODES = (
    *("0o755", "755", "true", '"u=rwx"', '""', '"0o755"', '"0855"', '"rwx------"', '"\u0660755"'),
    *('"0500"', '"0000"', '"0770"', '"0702"', '"0777"', '"1755"', '"2755"', '"00755"', '" 0755"', '"0755\\n"'),
)


def parsed(text: str) -> config.Configuration:
    """The configuration in *text*."""
    return config.parse(tomllib.loads(text), Path("/c.toml"))


def volume(extra: str = "") -> Volume:
    """The good volume with more options."""
    return parsed(GOOD + extra).volumes["offsite"]


def problems(text: str) -> str:
    """The message about *text*."""
    with pytest.raises(BadConfiguration) as caught:
        parsed(text)
    return caught.value.message


def test_four_lines_are_enough() -> None:
    """The rest has sensible values."""
    found = volume()

    assert Path("/mnt/backup/data") == found.data
    assert ("file:/root/key",) == found.key
    assert ("fallocate", "ext4", "auto", False) == (
        found.image.fill,
        found.filesystem.filesystem,
        found.engine,
        found.soft,
    )
    assert 7 * 86400 == found.stale_after
    assert (0o700, 0o700) == (found.mount.mode, found.fuse2fs.mode)
    assert Path("/mnt/backup") == found.mount.as_written == found.fuse2fs.as_written


@pytest.mark.parametrize(
    ("line", "get", "value"),
    [
        ('size = "500GiB"', lambda v: v.image.size, "500GiB"),
        ('fill = "zero"', lambda v: v.image.fill, "zero"),
        ("soft = true", lambda v: v.soft, True),
        ('max_open = "12h"', lambda v: v.max_open, 12 * 3600.0),
        ('stale_after = "2w"', lambda v: v.stale_after, 14 * 86400.0),
        ('filesystem = "xfs"', lambda v: (v.filesystem.filesystem, v.mount.filesystem), ("xfs", "xfs")),
        ('engine = "kernel"', lambda v: v.engine, "kernel"),
        ('patience = "3m"', lambda v: v.image.patience, 180.0),
        ('ssh_config = "/etc/lukshook/ssh"', lambda v: v.access.ssh_config, Path("/etc/lukshook/ssh")),  # for copies
        ('tls_certificates = "/etc/lukshook/tls"', lambda v: v.image.remote, None),
        ('tls_psk = "/etc/lukshook/keys.psk"', lambda v: v.image.remote, None),
        ('ceph_user = "h1"', lambda v: v.image.remote, None),
        ('ceph_config = "/etc/ceph/other.conf"', lambda v: v.image.remote, None),
        ("read_only = true", lambda v: v.read_only, True),
        ("discard = true", lambda v: v.dmcrypt.discard, True),
        ("mmp = true", lambda v: v.filesystem.mmp, True),
        ("old_fuse2fs = true", lambda v: v.fuse2fs.old_fuse2fs, True),
        ('mode = "0755"', lambda v: (v.mount.mode, v.fuse2fs.mode), (0o755, 0o755)),
        ('mode = "750"', lambda v: (v.mount.mode, v.fuse2fs.mode), (0o750, 0o750)),
        ("ledger = true", lambda v: v.ledger, True),
        ('space = "warn"', lambda v: v.space, "warn"),
        ("ledger = true", lambda v: v.ledger, True),
        (
            'copies = {disk = {path = "/mnt/disk/a.img", mode = "hard"}, two = {path = "/two"}}\nledger = true',
            lambda v: v.copies,
            (Copy("disk", "/mnt/disk/a.img", "hard"), Copy("two", "/two", "soft")),
        ),
        (
            'copies = {far = {path = "sftp://me@host/a.img"}}\nledger = true',
            lambda v: v.copies,
            (Copy("far", "sftp://me@host/a.img", "soft"),),
        ),
        ('grow = {when_free_below = "10%", by = "1GiB", up_to = "1TiB"}', lambda v: v.grow, Grow(10.0, 2**30, 2**40)),
        ('snapshot = "btrfs"', lambda v: v.snapshot, Policy("btrfs", keep=7)),
        ('snapshot = "command:snap -v"', lambda v: v.snapshot, Policy("command", "snap -v")),
        ('keep_snapshots = 30\nsnapshot = "zfs"', lambda v: v.snapshot, Policy("zfs", keep=30)),
        ('snapshot_hard = true\nsnapshot = "lvm"', lambda v: v.snapshot, Policy("lvm", hard=True)),
        (
            'prune_command = "rm --"\nsnapshot = "command:snap"',
            lambda v: v.snapshot,
            Policy("command", "snap", prune=("rm", "--")),
        ),
        ('versions = "/s/.zfs/snapshot/*/b.img"', lambda v: v.versions, ("/s/.zfs/snapshot/*/b.img",)),
        ('drill = {files = 7, newer_than = "1d"}', lambda v: v.drill, Drill(files=7, newer_than=86400.0)),
        ('drill = {image = "/r.img"}', lambda v: v.drill, Drill(image=Path("/r.img"))),
        ('drill = {key = "env:K", check = ["a", "{}"]}', lambda v: v.drill, Drill(key=("env:K",), check=("a", "{}"))),
        ('drill = {sources = ["/a:b:/c/"]}', lambda v: v.drill, Drill(sources=((Path("/a:b"), "c"),))),
        ('header_backup_at = "a safe"', lambda v: v.header_backup_at, "a safe"),
    ],
)
def test_every_option_arrives(line: str, get: Any, value: Any) -> None:
    """Where its layer looks for it."""
    assert value == get(volume(line))


def test_every_option_is_tried_above() -> None:
    """A new option needs a line there."""
    lines = test_every_option_arrives.pytestmark[0].args[1]
    tried = {case[0].split(" ")[0] for case in lines} | {"image", "mountpoint", "key"}

    assert set(OPTIONS) == tried


@pytest.mark.parametrize(
    ("path", "ledger", "said"),
    [
        ("/a", "", "needs ledger = true"),
        ("/mnt/backup/a", "ledger = true", "lies inside the mount point of its own volume"),
        ("/srv/backup.img", "ledger = true", "is the image itself"),
    ],
)
def test_a_copy_that_cannot_be_made_is_a_problem(path: str, ledger: str, said: str) -> None:
    """With the name of that copy."""
    with pytest.raises(BadConfiguration, match=rf"volumes\.offsite\.copies\.disk: {said}"):
        volume(f'copies = {{disk = {{path = "{path}"}}}}\n{ledger}')


def test_three_mistakes_are_reported_at_once() -> None:
    """Nobody wants to find them one run at a time."""
    message = problems('[volumes.a]\nimage = "backup.img"\nmountpont = "/m"\nkey = "fil:/k"')

    assert message.startswith("/c.toml has 4 problems: ")
    assert "volumes.a.image: 'backup.img' is not an absolute path, such as \"/srv/backup.img\"" in message
    assert 'volumes.a.mountpont: unknown (did you mean "mountpoint"?)' in message
    assert "volumes.a.mountpoint: missing" in message
    assert 'volumes.a.key: "fil" is not a key source (one of: file:PATH, ' in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('size = "500G"', "write 500GiB (powers of 1024) or 500GB (powers of 1000)"),
        ("size = 500", "is not a size in quotes"),
        ("copies = true", "one or more copies by name"),
        ('copies = {disk = "/mnt/disk/a.img"}', "one or more copies by name"),
        ('copies = {disk = {path = "/a", how = "soft"}}', "one or more copies by name"),
        ('copies = {disk = {path = "a"}}', "an absolute path"),
        ('copies = {disk = {path = "sftp://-x/a"}}', "a URL such as"),
        ('copies = {disk = {path = "/a", mode = "often"}}', 'one of "soft", "hard"'),
        ('copies = {a = {path = "/a"}, b = {path = "/a"}}', "copies at different paths"),
        ('size = "1000001B"', "not a multiple of 1 MiB"),
        ('fill = "random"', 'one of "fallocate", "sparse", "zero"'),
        ("soft = 1", "true or false"),
        ('soft = "yes"', "true or false"),
        ("max_open = 12", 'a time such as "12h"'),
        ('stale_after = "soon"', 'a time such as "12h"'),
        ('filesystem = "ntfs"', 'one of "ext4"'),
        *((f"mode = {value}", "a mode in quotes that gives the owner full access") for value in BAD_MODES),
        ('grow = {by = "1GiB"}', "when_free_below"),
        *((f"snapshot = {value}", 'one of "btrfs", "zfs", "lvm", "rbd", "command:ARGV"') for value in BAD_KINDS),
        ('snapshot = "command:"', "the command is missing"),
        *((f'keep_snapshots = {value}\nsnapshot = "zfs"', "a number from 1 to 1000") for value in ("0", '"7"', "true")),
        ("keep_snapshots = 7", "there is no option snapshot"),
        ('prune_command = ""\nsnapshot = "command:a"', 'a command such as "/usr/local/bin/remove-copy"'),
        ('prune_command = "rm"\nsnapshot = "btrfs"', "lukshook removes all other snapshots itself"),
        ('versions = "*/backup.img"', "an absolute path"),
        ("versions = []", "a path with wildcards"),
        ("drill = {file = 7}", "image, key, files"),
        ("drill = 7", "a table"),
        ("drill = {files = -1}", "files has to be a number"),
        ("drill = {files = 0}", "files has to be a number"),
        ('drill = {sources = ["/home"]}', "sources has to be a folder and its place"),
        ('drill = {sources = ["/home:../etc"]}', "sources has to be a folder and its place"),
        ('drill = {check = "borg check"}', "check has to be a list of words"),
        ('drill = {newer_than = "3"}', "newer_than has to be a time"),
        ('drill = {key = "nothing"}', "is not a key source"),
        ('header_backup_at = "a\\nb"', "a text on one line"),
        ('grow = {when_free_below = 10, by = "1GiB", up_to = "1TiB"}', "a percentage"),
    ],
)
def test_a_bad_value_says_what_a_good_one_is(line: str, said: str) -> None:
    """With the address of the option in front."""
    message = problems(GOOD + line)

    assert f"volumes.offsite.{line.split(maxsplit=1)[0]}: " in message
    assert said in message


@pytest.mark.parametrize("name", ["../x", "a/b", "-rf", ".hidden", "x" * (LONGEST_NAME + 1), "a b", "control\\n"])
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    """A name becomes a file, a mapping and an argument."""
    assert f"a name has up to {LONGEST_NAME}" in problems(GOOD.replace("offsite", f'"{name}"'))


@pytest.mark.parametrize("option", ["image", "mountpoint", "key", "metrics"])
@pytest.mark.parametrize("separator", [s for s in odd_names.SEPARATORS if unicodedata.category(s) != "Zs"], ids=ascii)
def test_no_path_has_a_character_that_ends_a_line(option: str, separator: str) -> None:
    """Nor one that ends a word, unless it is a blank of some alphabet: the kernel and we write paths into lines."""
    path = f"/srv/a\\u{ord(separator):04x}b"
    lines = {"metrics": f'metrics = "{path}"\n{GOOD}', "key": GOOD.replace("/root/key", path)}
    text = lines.get(option) or re.sub(f'{option} = "[^"]*"', lambda _: f'{option} = "{path}"', GOOD)

    message = problems(text)

    assert option in message
    assert "on one line, without control characters" in message
    assert message.isprintable()


@pytest.mark.parametrize("separator", ["\n", "\x0b", "\x85", "\u2028", "\udcff"], ids=ascii)
def test_a_mount_point_is_where_a_link_leads(tmp_path: Path, separator: str) -> None:
    """A plain name in the configuration can lead to another one."""
    (tmp_path / f"odd{separator}").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / f"odd{separator}")

    message = problems(re.sub('mountpoint = "[^"]*"', f'mountpoint = "{tmp_path}/plain/mnt"', GOOD))

    assert "volumes.offsite.mountpoint: " in message
    assert "is not a path on one line" in message


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,140}", fullmatch=True))
@example("x" * LONGEST_NAME)
@example("x" * (LONGEST_NAME + 1))
@example("x" * 100)
def test_a_name_that_is_taken_fits_wherever_it_is_written(name: str) -> None:
    """A mapping's uuid and name (linux/dm-ioctl.h), the mark of a loop device, and every file of ours."""
    try:
        volume = parsed(GOOD.replace("offsite", f'"{name}"')).volumes[name]
    except BadConfiguration:
        assert len(name) > 128 - len("CRYPT-LUKS2-") - 32 - len("-lukshook-")
        return
    mapping = dmcrypt.mapping_name(volume.name)
    assert len(f"CRYPT-LUKS2-{'0' * 32}-{mapping}") <= 128
    assert len(mapping) <= 127
    assert len(f"{known_state.KnownState(Path('/'), name).header_next.name}.new") <= 255
    copy = dmcrypt.mapping_name(volume.copy_at(Path("/mnt/old"), Path("/old.img")).label)
    assert len(f"CRYPT-LUKS2-{'0' * 32}-{copy}") <= 128


def test_a_copy_has_a_label_that_no_volume_has() -> None:
    """Another one for each folder and volume; a name that is shortened does not make two the same."""
    long = "x" * LONGEST_NAME
    names = ("offsite", "offsit", long, long[:-1] + "y")
    volumes = [parsed(GOOD.replace("offsite", name)).volumes[name] for name in names]
    labels = [one.copy_at(Path(place), Path("/old.img")).label for one in volumes for place in ("/mnt/a", "/mnt/b")]

    assert len(labels) == len(set(labels))
    assert not any(is_name(label) for label in labels)


@given(odd_names.names)
def test_a_resize_without_configuration_makes_up_such_a_name(image: bytes) -> None:
    """From the image's name, whatever that is."""
    site = Site(Path("/run/x"), Path("/var/x"), FakeRunner(), lambda volume: Secret(b""), print)

    made = standalone._volume(Path("/") / os.fsdecode(image), "prompt", None, site)

    assert is_name(made.name)


def test_volumes_do_not_share() -> None:
    """Neither image nor mount point, nor one inside the other's, nor an image inside its own mount point."""
    twice = GOOD + GOOD.replace("offsite", "other")

    assert "/srv/backup.img is the image of volumes.offsite too" in problems(twice)
    inner = twice.replace("backup.img", "b.img", 1).replace("/mnt/backup", "/mnt/backup/inner", 1)
    assert "volumes.offsite.mountpoint: lies inside the mount point of volumes.other" in problems(inner)
    assert "lies inside its own mount point" in problems(GOOD.replace("/srv", "/mnt/backup"))


def one_of(text: str, folder: Path, name: str = "offsite") -> config.Volume:
    """One volume of a file, as a command reads it that names one."""
    file = folder / "config.toml"
    file.write_text(text)
    file.chmod(0o600)
    return config.load(file).volume(name)


@pytest.mark.parametrize("fault", ['mountpont = "/m"', 'size = "many"', 'engine = "none"'])
def test_a_fault_in_another_volume_is_in_nobodys_way(fault: str, tmp_path: Path) -> None:
    """The backup of one volume runs whatever somebody writes into the table of another; all of them together do not."""
    other = GOOD.replace("offsite", "other").replace("/srv", "/srv2").replace("/mnt", "/mnt2") + fault
    volume = one_of(GOOD + other, tmp_path)

    assert ("offsite", "/srv/backup.img") == (volume.name, volume.image.shown)
    assert "volumes.other" in problems(GOOD + other)
    with pytest.raises(BadConfiguration, match=r"volumes\.other"):
        one_of(GOOD + other, tmp_path, "other")
    with pytest.raises(BadConfiguration, match=r"metric: unknown.*volumes\.other"):
        one_of("metric = 1\n" + GOOD + other, tmp_path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("/mnt/backup", "/mnt/other"), "volumes.offsite.image: /srv/backup.img is the image of volumes.other too"),
        (("/srv/backup.img", "/srv/b"), "mountpoint: /mnt/backup is the mountpoint of volumes.other too"),
        (("/mnt/backup", "/mnt"), "volumes.offsite.mountpoint: lies inside the mount point of volumes.other"),
        (("/mnt/backup", "/mnt/"), "volumes.offsite.mountpoint: lies inside the mount point of volumes.other"),
        (("/mnt/backup", "/mnt/backup/in"), "volumes.other.mountpoint: lies inside the mount point of volumes.offsite"),
    ],
)
def test_one_volume_does_not_share_either(other: tuple[str, str], said: str, tmp_path: Path) -> None:
    """A table that was copied and changed in one place only is noticed by a command that names one volume, too."""
    with pytest.raises(BadConfiguration) as caught:
        one_of(GOOD + GOOD.replace("offsite", "other").replace(*other), tmp_path)

    assert said in caught.value.message


def test_one_of_many_volumes_is_read_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that names it neither waits for thousands of tables nor looks at the folders of others."""
    many = "".join(
        GOOD.replace("offsite", f"v{n}").replace("/mnt", f"/mnt{n}").replace("/srv", f"/s{n}") for n in range(50)
    )
    read: list[str] = []

    def realpath(path: os.PathLike[str]) -> str:
        read.append(os.fspath(path))
        return os.fspath(path)

    monkeypatch.setattr("os.path.realpath", realpath)

    assert "v7" == one_of(many, tmp_path, "v7").name
    assert ["/mnt7"] == list(dict.fromkeys(path for path in read if path.startswith("/mnt")))


def test_an_unknown_volume_is_met_with_the_nearest() -> None:
    """A slip of the finger is the most common reason."""
    with pytest.raises(UnknownVolume) as caught:
        parsed(GOOD).volume("ofsite")

    assert "did you mean offsite?" == caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[volumes", "is not TOML"), (b"\xff", "is not TOML"), (None, "there is no configuration")],
)
def test_a_file_that_is_none(content: bytes | None, said: str, tmp_path: Path) -> None:
    """One line, whatever is wrong with it."""
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(BadConfiguration) as caught:
        config.load(file)

    assert said in caught.value.message

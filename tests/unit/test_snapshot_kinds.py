"""Snapshots by ZFS, LVM and commands, with stand-ins for the tools: what these are asked, and what is believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import LukshookError, Refused, Unavailable
from lukshook.snapshots import btrfs, command, kinds, lvm, zfs
from lukshook.snapshots.kind import Policy, Snapshot, is_name, name_of
from lukshook.system.command import Command, Result
from lukshook.system.kernel import Mount
from support.fake_runner import FakeRunner

NAME = "lukshook-offsite-20261126T090000Z"


def test_a_name_has_the_volume_and_the_time() -> None:
    """In UTC, so that no change of the clock makes two of one name."""
    assert NAME == name_of("offsite", 1795683600)


@pytest.mark.parametrize(
    "other",
    [
        *(f"{NAME}x", f"x{NAME}", f"{NAME}\n", NAME.replace("offsite", "off.ite"), NAME.replace("T", "t")),
        *("lukshook-offsite-b-20261126T090000Z", "lukshook-offsite-2026112\u0666T090000Z", f"../{NAME}"),
    ],
)
def test_only_our_names_are_ours(other: str) -> None:
    """Exactly, and of this volume alone."""
    assert is_name(NAME, "offsite")
    assert not is_name(other, "offsite")


@pytest.mark.parametrize("name", kinds.KINDS)
def test_each_kind_has_the_same_functions(name: str) -> None:
    """A new kind is one file with them, and one line."""
    kind = kinds.named(name)

    assert all(callable(getattr(kind, function)) for function in ("check", "plan", "take", "find", "remove"))
    assert "" == kind.check("a b" if kind.ARGUMENT else "")


def test_an_image_elsewhere_has_no_btrfs_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the hint says what to do."""
    monkeypatch.setattr(btrfs, "find_tool", str)
    image = tmp_path / "image"
    image.touch()
    monkeypatch.setattr(btrfs, "_ROOT_INODE", -1)

    with pytest.raises(Unavailable, match="does not lie in a subvolume of btrfs") as caught:
        btrfs.plan(image, NAME, Policy("btrfs"), FakeRunner())

    assert "btrfs subvolume create" in caught.value.hint


# ZFS


class Zfs:
    """As much of zfs(8) as is asked for."""

    def __init__(self) -> None:
        self.guids = {"tank/backup": "1"}
        self.runner = FakeRunner({"zfs get": self._get, "zfs snapshot": self._snapshot, "zfs destroy": self._destroy})

    def _get(self, asked: Command) -> Result:
        names = asked.argv[asked.argv.index("guid") + 1 :]
        found = "".join(f"{name}\t{self.guids[name]}\n" for name in names if name in self.guids)
        missing = [name for name in names if name not in self.guids]
        return Result(1 if missing else 0, found, f"cannot open '{missing[0]}': does not exist" if missing else "")

    def _snapshot(self, asked: Command) -> Result:
        self.guids[asked.argv[-1]] = str(len(self.guids) + 1)
        return Result(0)

    def _destroy(self, asked: Command) -> Result:
        del self.guids[asked.argv[-1]]
        return Result(0)


@pytest.fixture(name="dataset")
def _dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zfs:
    """The folder of the test is where a dataset is mounted."""
    mount = Mount("0:50", "/", str(tmp_path), "zfs", "tank/backup", frozenset())
    monkeypatch.setattr(zfs, "mounts_around", lambda path: [mount])
    monkeypatch.setattr(zfs, "find_tool", str)
    return Zfs()


def test_zfs_takes_finds_and_removes(dataset: Zfs, tmp_path: Path) -> None:
    """By guid; what is removed is one snapshot and nothing that depends on it."""
    (tmp_path / "sub").mkdir()
    planned = zfs.plan(tmp_path / "sub/image", NAME, Policy("zfs"), dataset.runner)
    assert zfs.find(planned, dataset.runner) is None

    made = zfs.take(planned, Policy("zfs"), dataset.runner)

    assert ("1", "2") == (made.origin, made.mark)
    assert f"{tmp_path}/.zfs/snapshot/{NAME}/sub/image" == made.image
    assert made == zfs.find(made, dataset.runner)
    zfs.remove(made, Policy("zfs"), dataset.runner)
    assert {"tank/backup": "1"} == dataset.guids
    assert f"zfs destroy tank/backup@{NAME}" == dataset.runner.lines[-1]


def test_zfs_keeps_what_is_not_ours(dataset: Zfs, tmp_path: Path) -> None:
    """A snapshot that somebody has made again under our name has another guid."""
    planned = zfs.plan(tmp_path / "image", NAME, Policy("zfs"), dataset.runner)
    made = zfs.take(planned, Policy("zfs"), dataset.runner)
    dataset.guids[f"tank/backup@{NAME}"] = "77"

    zfs.remove(made, Policy("zfs"), dataset.runner)

    assert "77" == dataset.guids[f"tank/backup@{NAME}"]


@pytest.mark.parametrize("guids", [{}, {"tank/backup": "9", f"tank/backup@{NAME}": "2"}])
def test_another_pool_is_not_taken_for_an_empty_one(guids: dict[str, str], dataset: Zfs, tmp_path: Path) -> None:
    """Else lukshook would forget its snapshots while a disk is away."""
    made = zfs.take(zfs.plan(tmp_path / "image", NAME, Policy("zfs"), dataset.runner), Policy("zfs"), dataset.runner)
    dataset.guids = guids

    with pytest.raises(Unavailable):
        zfs.find(made, dataset.runner)
    with pytest.raises(Unavailable):
        zfs.remove(made, Policy("zfs"), dataset.runner)


def test_zfs_needs_a_dataset(dataset: Zfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another file system it says so."""
    monkeypatch.setattr(zfs, "mounts_around", lambda path: [Mount("8:1", "/", "/", "ext4", "/dev/sda1", frozenset())])

    with pytest.raises(Unavailable, match="does not lie in a dataset"):
        zfs.plan(tmp_path / "image", NAME, Policy("zfs"), dataset.runner)


# LVM


SELECTED = "lv_kernel_major=254 && lv_kernel_minor=4"


class Lvm:
    """As much of LVM as is asked for: the thin volume vg/image and its snapshots."""

    def __init__(self, segment: str = "thin") -> None:
        self.volumes = {"image": {"lv_uuid": "u1", "segtype": segment, "origin_uuid": ""}}
        self.runner = FakeRunner({"lvs": self._lvs, "lvcreate": self._create, "lvremove": self._remove})

    def _lvs(self, asked: Command) -> Result:
        chosen = {SELECTED: ["image"], "vg": list(self.volumes)}
        wanted = chosen.get(asked.argv[-1], [])
        rows = [{"vg_name": "vg", "lv_name": name, **self.volumes[name]} for name in wanted if name in self.volumes]
        return Result(0, json.dumps({"report": [{"lv": rows}]}))

    def _create(self, asked: Command) -> Result:
        name = asked.argv[asked.argv.index("--name") + 1]
        self.volumes[name] = {"lv_uuid": f"u{len(self.volumes) + 1}", "segtype": "thin", "origin_uuid": "u1"}
        return Result(0)

    def _remove(self, asked: Command) -> Result:
        del self.volumes[asked.argv[-1].rpartition("/")[2]]
        return Result(0)


@pytest.fixture(name="_tools")
def _tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    numbers = {"/dev/vg/image": "254:4", "/dev/vg/other": "254:5"}
    monkeypatch.setattr(lvm, "number", lambda path: numbers[str(path)])
    monkeypatch.setattr(lvm, "find_tool", str)
    monkeypatch.setattr(command, "find_tool", str)
    yield


def test_lvm_takes_finds_and_removes(_tools: None) -> None:
    """By UUID; read-only, and active so that its path can be opened."""
    disk = Lvm()
    planned = lvm.plan(Path("/dev/vg/image"), NAME, Policy("lvm"), disk.runner)
    assert lvm.find(planned, disk.runner) is None

    made = lvm.take(planned, Policy("lvm"), disk.runner)

    assert ("vg", "u1", "u2", f"/dev/vg/{NAME}") == (made.place, made.origin, made.mark, made.image)
    assert made == lvm.find(made, disk.runner)
    lvm.remove(evolve(made, mark="u9"), Policy("lvm"), disk.runner)
    assert NAME in disk.volumes
    lvm.remove(made, Policy("lvm"), disk.runner)
    assert ["image"] == list(disk.volumes)


@pytest.mark.parametrize(("image", "segment"), [("/dev/vg/other", "thin"), ("/dev/vg/image", "linear")])
def test_lvm_needs_a_thin_volume(_tools: None, image: str, segment: str) -> None:
    """A snapshot of another one would need room that nobody has set aside."""
    with pytest.raises(Unavailable, match=r"not a logical volume|not thin"):
        lvm.plan(Path(image), NAME, Policy("lvm"), Lvm(segment).runner)


@pytest.mark.parametrize(
    "out", ["", "{}", "[]", '{"report": []}', "no JSON", '{"report": [{"lv": [{}]}]}', '{"report": [{"lv": [1]}]}']
)
def test_an_lvs_that_says_something_else_is_an_error(_tools: None, out: str) -> None:
    """Not a traceback."""
    with pytest.raises(Unavailable, match="does not answer in JSON"):
        lvm.plan(Path("/dev/vg/image"), NAME, Policy("lvm"), FakeRunner({"lvs": Result(0, out)}))


# A command


def taken(out: str, policy: Policy | None = None, runner: FakeRunner | None = None) -> Snapshot:
    """What becomes of a command that prints *out*."""
    policy, runner = policy or Policy("command", "snap -v", keep=3), runner or FakeRunner({"snap": Result(0, out)})
    return command.take(command.plan(Path("/s/image"), NAME, policy, runner), policy, runner)


def test_a_command_gets_name_and_image(_tools: None) -> None:
    """As arguments and in the environment, and its last line is where the copy is."""
    runner = FakeRunner({"snap": Result(0, "copying\n/copies/one\n")})

    made = taken("", runner=runner)

    (ran,) = runner.commands
    assert ("snap", "-v", NAME, "/s/image") == ran.argv
    assert {"LUKSHOOK_SNAPSHOT": NAME, "LUKSHOOK_IMAGE": "/s/image", "LUKSHOOK_KEEP": "3"} == ran.environment
    assert ran.stdin is None
    assert "/copies/one" == made.image


@pytest.mark.parametrize("out", ["", "\n\n"])
def test_a_command_may_print_nothing(_tools: None, out: str) -> None:
    """A copy far away has no path here; it is listed by its name."""
    assert ("", NAME) == (taken(out).image, taken(out).mark)


@pytest.mark.parametrize("out", ["copies/one", "/copies/\x1b[2J", "/a\x85b", "/copies/one\r\n"])
def test_what_is_no_path_is_refused(_tools: None, out: str) -> None:
    """And cannot reach the terminal."""
    with pytest.raises(Refused) as caught:
        taken(out)

    assert caught.value.message.isprintable()


def test_a_copy_that_is_gone_is_not_found(tmp_path: Path, _tools: None) -> None:
    """Nor one whose command did not end."""
    made = evolve(taken(""), image=str(tmp_path / "copy"))
    assert command.find(made, FakeRunner()) is None
    (tmp_path / "copy").touch()

    assert made == command.find(made, FakeRunner())
    assert command.find(evolve(made, mark=""), FakeRunner()) is None


def test_a_copy_is_removed_by_the_users_command_only(_tools: None) -> None:
    """Root never removes a path that a command has printed."""
    made, runner = taken("/copies/one"), FakeRunner()

    command.remove(made, Policy("command", "snap"), runner)
    assert [] == runner.commands
    command.remove(made, Policy("command", "snap", prune=("gone", "--now")), runner)

    assert [("gone", "--now", NAME, "/copies/one")] == [ran.argv for ran in runner.commands]


def test_an_unknown_kind_is_refused() -> None:
    """A state file may say anything."""
    with pytest.raises(LukshookError, match="is not a kind of snapshot"):
        kinds.named("os")

"""Images in a Ceph cluster, with a stand-in for its tools: URLs, what is asked, what is believed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from attrs import define, evolve

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, Denied, Exists, LukshookError, Unavailable
from lukshook.snapshots import rbd as snapshots
from lukshook.snapshots.kind import Policy
from lukshook.store.remote import block_copies, kinds, mark, rbd, showing
from lukshook.store.remote.kind import Locked, Seen
from lukshook.store.remote.rbd import Rbd
from lukshook.system.command import Command, Result
from support.fake_runner import Answer, FakeRunner

URL = "rbd:backup/h1/a"


def store(url: str = URL) -> Rbd:
    found = kinds.parse(url)
    assert isinstance(found, Rbd)
    return found


def table(**options: str) -> Volume:
    """The volume of a configuration with an image in a cluster."""
    values = {"image": URL, "mountpoint": "/mnt", "key": "prompt", **options}
    return config.parse({"volumes": {"v": values}}, Path("/c.toml")).volumes["v"]


@pytest.mark.parametrize(
    ("url", "pool", "namespace", "name"),
    [
        ("rbd:backup/a", "backup", "", "a"),
        (URL, "backup", "h1", "a"),
        ("rbd:b%20c/-x,%25%3F", "b c", "", "-x,%?"),
    ],
)
def test_the_parts_of_a_url(url: str, pool: str, namespace: str, name: str) -> None:
    """A pool, perhaps a namespace, a name."""
    found = store(url)
    assert (pool, namespace, name) == (found.pool, found.namespace, found.name)


@pytest.mark.parametrize(
    "url", ["rbd:a", "rbd:/a/b", "rbd:a//b", "rbd:a/b/c/d", "rbd:a/b@snap", "rbd:a/b%0A", "rbd://a/b"]
)
def test_what_is_no_url_of_an_image(url: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(BadConfiguration):
        table(image=url)


def test_a_user_and_a_configuration() -> None:
    """Both are for every tool; the sheet has them too; without them, those of Ceph's own tools."""
    given = table(ceph_user="h1", ceph_config="/etc/o'ther.conf").image.remote
    assert isinstance(given, Rbd)
    script = given.link(read_only=True, silence=9.0).script
    for word in ("file.user=h1", "file.namespace=h1", "qemu-nbd --read-only", "file.cache.direct=on"):
        assert word in script
    assert (
        """rbd export '--conf=/etc/o'"'"'ther.conf' --id=h1 --pool=backup --namespace=h1 --image=a f"""
        == given.fetch("f")
    )
    assert ("--id=admin", "--pool=backup") == store("rbd:backup/a").words[:2]
    assert given == evolve(rbd.found_by(given.words), url=given.url)
    with pytest.raises(BadConfiguration, match=r'without "client\."'):
        table(ceph_user="client.h1")


def test_a_comma_in_a_name_is_no_option_of_qemu() -> None:
    """Qemu separates its options by commas."""
    assert (
        "file.image=a,,file.user=b </dev/null"
        in store("rbd:backup/a,file.user=b").link(read_only=False, silence=9.0).script
    )


class Ceph:
    """As much of rbd(8) and ceph(8) as is asked for."""

    def __init__(self) -> None:
        self.image: dict[str, object] | None = {"size": 99, "id": "1a", "features": ["exclusive-lock"]}
        self.watchers: list[list[str]] = [[]]
        self.snapshots: list[dict[str, object]] = []
        self.error: Result | None = None
        self.mark = ""
        self.answers: dict[str, Answer] = {
            "rbd info": lambda _: self._said(self.image),
            "rbd du": lambda _: self._said({"images": [{"name": "a", "used_size": 7}]}),
            "rbd status": lambda _: self._said({"watchers": [{"address": one} for one in self._next()]}),
            "rbd image-meta get": lambda _: Result(0, f"{self.mark}\n") if self.mark else Result(2, "", "no such key"),
            "rbd image-meta set": self._set,
            "rbd snap ls": lambda _: self._said(self.snapshots),
            "rbd snap create": self._snap,
            "rbd snap rm": self._unsnap,
            "rbd": lambda _: self.error or Result(0),
            "ceph": lambda _: self._said({"pools": [{"name": "backup", "stats": {"max_avail": 5, "stored": 6}}]}),
        }
        self.runner = FakeRunner(self.answers)

    def _next(self) -> list[str]:
        return self.watchers.pop(0) if len(self.watchers) > 1 else self.watchers[0]

    def _said(self, what: object) -> Result:
        if self.error:
            return self.error
        if what is None:
            return Result(2, "", "rbd: error opening image a: (2) No such file or directory")
        return Result(0, json.dumps(what))

    def _set(self, asked: Command) -> Result:
        self.mark = asked.argv[-1]
        return Result(0)

    def _snap(self, asked: Command) -> Result:
        name = next(word for word in asked.argv if word.startswith("--snap=")).removeprefix("--snap=")
        self.snapshots.append({"name": name, "id": len(self.snapshots) + 4})
        return Result(0)

    def _unsnap(self, asked: Command) -> Result:
        self.snapshots = [one for one in self.snapshots if f"--snap={one['name']}" not in asked.argv]
        return Result(0)


@pytest.fixture(name="ceph")
def _ceph(monkeypatch: pytest.MonkeyPatch) -> Ceph:
    """One that answers at once."""
    monkeypatch.setattr(rbd, "_AGAIN", 0.001)
    return Ceph()


def test_what_is_there(ceph: Ceph) -> None:
    """Looking asks one question; holding measures too."""
    assert Seen(99, 0, identity="1a ") == store().look(ceph.runner)
    assert 2 == len(ceph.runner.commands)
    assert Seen(99, 7, 5, 11, "1a ") == store().hold(ceph.runner, read_only=False)
    ceph.image = None
    assert Seen(None) == store().look(ceph.runner)
    assert Seen(None, 0, 5, 11) == store().hold(ceph.runner, read_only=False)


def test_a_second_host_is_named(ceph: Ceph, tmp_path: Path) -> None:
    """At once, whatever is in its address; while nobody opens it, there is no note that we have it."""
    ceph.watchers = [["10.0.0.7:0/1\x1b[31m"]]
    mine = store().with_token(tmp_path / "state/holder")
    with pytest.raises(Locked, match=r"another process or host has rbd:backup/h1/a open: .* 10\.0\.0\.7:0/1") as caught:
        mine.hold(ceph.runner, read_only=False)
    assert "\x1b" not in caught.value.message
    assert not (tmp_path / "state").exists()


def test_only_what_we_have_left_is_waited_for(ceph: Ceph, tmp_path: Path) -> None:
    """A killed lukshook of ours watches the image for half a minute."""
    mine = store().with_token(tmp_path / "state/holder")
    mine.hold(ceph.runner, read_only=False)
    ceph.watchers = [["10.0.0.1:0/1"], ["10.0.0.1:0/1"], []]
    mine.hold(ceph.runner, read_only=False)
    mine.let_go(ceph.runner)
    ceph.watchers = [["10.0.0.1:0/1"], []]
    with pytest.raises(Locked):
        mine.hold(ceph.runner, read_only=False)


def test_a_connection_begins_with_a_look_at_our_mark(ceph: Ceph, tmp_path: Path) -> None:
    """Another opening is another identity; reading needs none, and an image that is being made has none."""
    mine = store().with_token(tmp_path / "state/holder")
    seen = mine.hold(ceph.runner, read_only=False)
    assert f" '{ceph.mark}' rbd image-meta get --id=admin" in mine.link(read_only=False, silence=9.0).script
    assert ceph.mark not in mine.link(read_only=True, silence=9.0).script
    assert seen.identity == mine.look(ceph.runner).identity
    store().with_token(tmp_path / "state/other").hold(ceph.runner, read_only=False)
    assert seen.identity != mine.look(ceph.runner).identity
    ceph.image = None
    mine.hold(ceph.runner, read_only=False)
    assert "image-meta" not in mine.link(read_only=False, silence=9.0).script


def test_only_who_has_opened_an_image_last_changes_its_length(ceph: Ceph, tmp_path: Path) -> None:
    """Nobody watches it meanwhile; the same for what lies beside a copy."""
    mine = store().with_token(tmp_path / "state/holder")
    mine.hold(ceph.runner, read_only=False)
    for one in (mine, mine.beside(".lukshook-journal")):
        one.resize(1 << 20, "sparse", ceph.runner)
        assert "rbd resize --size=1048576B" in ceph.runner.lines[-1]
    store().with_token(tmp_path / "state/other").hold(ceph.runner, read_only=False)
    before = len(ceph.runner.commands)
    for one in (mine, mine.beside(".lukshook-journal")):
        with pytest.raises(Unavailable, match="another host has opened rbd:backup/h1/a since"):
            one.resize(1 << 19, "sparse", ceph.runner)
    assert not any("rbd resize" in line for line in ceph.runner.lines[before:])


def test_no_connection_without_a_look_where_our_own_mark_is_gone(ceph: Ceph, tmp_path: Path) -> None:
    """A file that is not there is not one that says that the image has no mark; reading needs none."""
    mine = store().with_token(tmp_path / "state/holder")
    mine.hold(ceph.runner, read_only=False)
    (tmp_path / "state/holder").unlink()
    for one in (mine, mine.beside(".lukshook-journal")):
        with pytest.raises(Unavailable, match="not known whether another host has opened rbd:backup/h1/a since"):
            one.link(read_only=False, silence=9.0)
        one.link(read_only=True, silence=9.0)


def test_somebody_who_came_at_the_same_time(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own watcher is one; a tool that looks for a moment goes."""
    ceph.watchers = [["10.0.0.1:0/1", "10.0.0.2:0/2"], ["10.0.0.1:0/1"]]
    store().check_alone(ceph.runner)
    monkeypatch.setattr(rbd, "_PASSES", 0.01)
    ceph.watchers = [["10.0.0.1:0/1", "10.0.0.2:0/2"]]
    with pytest.raises(Locked, match=r"10\.0\.0\.2:0/2, which is one of them this host"):
        store().check_alone(ceph.runner)


def test_what_lies_beside_a_copy_is_fenced_off_by_the_mark_of_the_copy(ceph: Ceph, tmp_path: Path) -> None:
    """A host that was away cannot connect to it either."""
    mine = store().with_token(tmp_path / "state/holder")
    beside = mine.beside(".lukshook-journal")
    mine.hold(ceph.runner, read_only=False)
    script = beside.link(read_only=False, silence=9.0).script
    assert "file.image=a.lukshook-journal" in script
    asked = "rbd image-meta get --id=admin --pool=backup --namespace=h1 --image=a --client_mount_timeout"
    assert f" '{ceph.mark}' {asked}" in script
    assert ceph.mark not in beside.link(read_only=True, silence=9.0).script


class Pool:
    """The images that are there, each with its bytes, and *notes*: what is done with them."""

    def __init__(self, ceph: Ceph) -> None:
        self.notes: list[str] = []
        self.sizes: dict[str, int] = {}
        self.runner = FakeRunner({"rbd create": self._create, **ceph.answers, "rbd info": self._info})
        self._ceph = ceph

    def _info(self, asked: Command) -> Result:
        size = self.sizes.get(image_in(asked))
        return self._ceph._said(size and {"size": size, "id": "1a", "features": ["exclusive-lock"]})

    def _create(self, asked: Command) -> Result:
        self.sizes[image_in(asked)] = 1 << 20
        self.notes.append(f"create {image_in(asked)}")
        return Result(0)


@define
class Connection:
    """One to an image of zeros."""

    pool: Pool
    name: str
    export: ClassVar[None] = None

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write(self, offset: int, content: bytes) -> None:
        self.pool.notes.append(f"write {self.name}")

    def clear(self, offset: int, length: int) -> None:
        self.pool.notes.append(f"clear {self.name}")

    def flush(self) -> None:
        pass

    def leave(self) -> None:
        pass


def image_in(asked: Command) -> str:
    return next(word for word in asked.argv if word.startswith("--image=")).removeprefix("--image=")


@pytest.fixture(name="pool")
def _pool(monkeypatch: pytest.MonkeyPatch, ceph: Ceph) -> Pool:
    """An empty one."""
    pool = Pool(ceph)

    def connect(image: block_copies._Image) -> Connection:
        assert isinstance(image._store, Rbd)
        of = "reading" if image._read_only else mark.kept(image._store.token, "")
        pool.notes.append(f"connect {image._store.name}, {of}")
        return Connection(pool, image._store.name)

    monkeypatch.setattr(block_copies._Image, "_connect", connect)
    monkeypatch.setattr(showing, "check", lambda *_, **__: None)
    return pool


def test_the_image_comes_before_what_lies_beside_it(ceph: Ceph, pool: Pool, tmp_path: Path) -> None:
    """The connection to it is the one that sees another host: its mark, and its watcher."""
    mine = store().with_token(tmp_path / "state/copy.holder")
    pool.sizes["a"] = 1 << 20
    with mine.replica(pool.runner, writable=True) as target:
        target.claim()
        target.create("copy.part")
    assert [f"connect a, {ceph.mark}", "create a.lukshook-journal"] == pool.notes[:2]
    assert "write a.lukshook-journal" in pool.notes


def test_a_copy_waits_for_what_a_killed_one_has_left(ceph: Ceph, pool: Pool, tmp_path: Path) -> None:
    """The cluster still lists its connection; of another host, it is refused at once."""
    pool.sizes["a"] = 1 << 20
    mine = store().with_token(tmp_path / "state/copy.holder")
    mine.hold(pool.runner, read_only=False)  # and is killed
    ceph.watchers = [["10.0.0.1:0/1"], ["10.0.0.1:0/1"], []]
    with mine.replica(pool.runner, writable=True) as target:
        target.claim()
    assert not (tmp_path / "state/copy.holder").exists()
    ceph.watchers = [["10.0.0.1:0/1"], []]
    with mine.replica(pool.runner, writable=True) as target, pytest.raises(Locked):
        target.claim()


def test_a_new_image_gets_a_mark_too(ceph: Ceph, pool: Pool, tmp_path: Path) -> None:
    """Else a host that makes a first copy, and is away for long, would come back."""
    mine = store().with_token(tmp_path / "state/copy.holder")
    with mine.replica(pool.runner, writable=True) as target:
        target.claim()
        assert "" == ceph.mark
        file = target.create("copy.part")
        file.resize(1 << 16)
        assert "" != ceph.mark
        file.write(0, b"first")
    assert ["create a.lukshook-journal", "create a"] == [note for note in pool.notes if note.startswith("create")]
    assert [f"connect a, {ceph.mark}", "write a"] == pool.notes[-2:]


def test_a_copy_leaves_its_mark_once_the_place_is_known_to_be_its_own(ceph: Ceph, pool: Pool, tmp_path: Path) -> None:
    """The image may be that of another host, which is away for a moment only. Until then it is opened for reading."""
    mine = store().with_token(tmp_path / "state/copy.holder")
    pool.sizes["a"] = 1 << 20
    ceph.mark = "another 0123"
    with mine.replica(pool.runner, writable=True) as target:
        target.open("copy", writable=False).read(0, 9)
        assert "another 0123" == ceph.mark
        target.claim()
        assert "another 0123" != ceph.mark
    assert ["connect a, reading", f"connect a, {ceph.mark}"] == pool.notes
    ceph.mark = "another 0123"
    with mine.replica(pool.runner, writable=False) as target:
        target.claim()
    assert "another 0123" == ceph.mark


def test_an_image_without_a_lock(ceph: Ceph) -> None:
    """It may be read."""
    ceph.image = {"size": 99, "id": "1a", "features": []}
    with pytest.raises(Unavailable, match="no exclusive lock") as caught:
        store().hold(ceph.runner, read_only=False)
    assert "rbd feature enable --id=admin --pool=backup --namespace=h1 --image=a exclusive-lock" in caught.value.hint
    assert 99 == store().hold(ceph.runner, read_only=True).length


@pytest.mark.parametrize(
    ("code", "said", "kind", "why"),
    [
        (2, "rbd: couldn't connect to the cluster!", Denied, "does not let client.admin in"),
        (13, "rbd: couldn't connect to the cluster!", Denied, "does not let client.admin in"),
        (
            1,
            "rbd: error opening image a: (1) Operation not permitted",
            Denied,
            "does not let client.admin look at rbd:",
        ),
        (110, "rbd: couldn't connect to the cluster!", Unavailable, "does not answer"),
        (110, "rbd: error asserting namespace: (110) Connection timed out", Unavailable, "does not answer"),
        (2, "rbd: error opening pool 'backup': (2) No such file or directory", Unavailable, "no pool backup"),
        (1, "unable to open config file\nrbd: couldn't connect to the cluster!", Unavailable, "could not look at"),
    ],
)
def test_what_a_tool_says(ceph: Ceph, code: int, said: str, kind: type[LukshookError], why: str) -> None:
    """The statuses and lines are those of Ceph 16.2."""
    ceph.error = Result(code, "", said)
    with pytest.raises(kind, match=why):
        store().look(ceph.runner)


@pytest.mark.parametrize("said", ["", "{}", "[]", '{"size": "x", "id": 1, "features": []}', "\xff"])
def test_an_answer_that_makes_no_sense(ceph: Ceph, said: str) -> None:
    """One line, and no trace."""
    ceph.error = Result(0, said)
    with pytest.raises(Unavailable, match="does not understand"):
        store().look(ceph.runner)


def test_a_name_that_is_taken_is_not_replaced(ceph: Ceph) -> None:
    """rbd rename says so."""
    ceph.error = Result(17, "", "rbd: rename error: (17) File exists")
    with pytest.raises(Exists, match="already exists"):
        store().publish(ceph.runner)
    assert "--image=.a.lukshook-new" in ceph.runner.lines[-1]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_removal_has_left_is_removed(ceph: Ceph, there: bool) -> None:
    """The name is still listed, and rbd makes no image of that name; but no image can be opened."""
    taken = [Result(17, "", "rbd: create error: (17) File exists")]
    ceph.answers["rbd"] = lambda asked: taken.pop() if taken and "create" in asked.argv else Result(0)
    if there:
        with pytest.raises(Exists):
            store().create(5, "sparse", ceph.runner)
    else:
        ceph.image = None
        store().create(5, "sparse", ceph.runner)
    verbs = [command.argv[1] for command in ceph.runner.commands]
    assert ["create", "info", *([] if there else ["remove", "create"])] == verbs


def test_qemu_without_its_module() -> None:
    """The hint names the package."""
    found = store().refusal("qemu-nbd: Failed to blk_new_open 'driver=raw': Unknown driver 'rbd'\n", 1)
    assert "its module for that is not installed" in found.message
    assert "qemu-block-" in found.hint


def test_a_snapshot_is_taken_found_and_removed(ceph: Ceph) -> None:
    """By its number; one that somebody has made again under our name stays."""
    policy = Policy("rbd", remote=store().with_ceph("h1", Path("/c.conf")))
    planned = snapshots.plan(Path("/run/v.remote/image"), "lukshook-v-1", policy, ceph.runner)
    assert snapshots.find(planned, ceph.runner) is None
    made = snapshots.take(planned, policy, ceph.runner)
    assert ("1a", "4", "") == (made.origin, made.mark, made.image)
    assert "--conf=/c.conf --id=h1 --pool=backup --namespace=h1 --image=a" in ceph.runner.lines[-1]
    ceph.snapshots[0]["id"] = 77
    snapshots.remove(made, policy, ceph.runner)
    assert [77] == [one["id"] for one in ceph.snapshots]
    ceph.snapshots[0]["id"] = 4
    snapshots.remove(made, policy, ceph.runner)
    assert [] == ceph.snapshots


def test_another_image_under_the_name_has_other_snapshots(ceph: Ceph) -> None:
    """Else lukshook would forget those of an image that is only moved away."""
    policy = Policy("rbd", remote=store())
    made = snapshots.take(snapshots.plan(Path("/i"), "lukshook-v-1", policy, ceph.runner), policy, ceph.runner)
    for image in (None, {"size": 99, "id": "2b", "features": []}):
        ceph.image = image
        with pytest.raises(Unavailable, match="was replaced by another one"):
            snapshots.find(made, ceph.runner)


@pytest.mark.parametrize("remote", [None, kinds.parse("nbd://h/x")])
def test_an_image_elsewhere_has_none(ceph: Ceph, remote: object) -> None:
    """And the hint says what to do."""
    with pytest.raises(Unavailable, match="does not lie in a Ceph cluster"):
        snapshots.plan(Path("/i"), "n", Policy("rbd", remote=remote), ceph.runner)  # type: ignore[arg-type]


def test_a_policy_knows_the_image() -> None:
    """As it is configured, with its user."""
    policy = table(snapshot="rbd", ceph_user="h1").snapshot
    assert policy is not None
    assert policy.remote == store().with_ceph("h1", None)

"""A volume as the source of a backup: one that is not open never becomes an empty backup, or an empty copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from hosts.conftest import plant
from support.host_volume import LUKSHOOK, HostVolume, build, need, same
from support.lukshook_process import Done

pytestmark = pytest.mark.hosts
ROOT = Path(__file__).parents[2]


@pytest.fixture(name="tree", scope="module")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree: what is in it does not matter here."""
    return plant(tmp_path_factory.mktemp("source") / "tree", 50)


@pytest.fixture(name="source")
def _source(tmp_path: Path, tree: Path) -> HostVolume:
    """The volume "offsite" of another house with the tree in it, from now on a source: read-only."""
    home = tmp_path / "there"
    home.mkdir()
    house = build(HostVolume(home, tree=tree), "64MiB")
    filled = house.lukshook("run", "offsite", "--", "rsync", "-aAXH", f"{tree}/", f"{house.data}/tree/")
    assert 0 == filled.returncode, filled.stderr
    with house.config.open("a") as config:
        config.write("read_only = true\n")
    return house


@pytest.fixture(name="pair")
def _pair(source: HostVolume, house: HostVolume) -> HostVolume:
    """The target's house, whose configuration knows the source as well, as an image that was made elsewhere."""
    table = source.config.read_text().replace("[volumes.offsite]", "[volumes.copied]")
    house.config.write_text(house.config.read_text() + table)
    trusted = house.lukshook("trust", "copied")
    assert 0 == trusted.returncode, trusted.stderr
    return house


def both(pair: HostVolume, *command: str | Path) -> Done:
    """*command* while both volumes are open, as the documentation says it."""
    return pair.lukshook("run", "copied", "--", LUKSHOOK, "-c", pair.config, "run", "offsite", "--", *command)


def mirror(source: HostVolume, target: Path) -> list[str | Path]:
    """The dangerous command: what is not in the source is deleted from the copy."""
    return ["rsync", "-aAXH", "--delete", f"{source.data}/tree/", f"{target}/"]


def digest(file: Path) -> str:
    """What is in a file, in short."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def test_from_one_volume_to_another(source: HostVolume, pair: HostVolume) -> None:
    """Two `run` in one line: the copy is whole, both are closed, and the source's image is byte for byte as it was."""
    before = digest(source.folder / "backup.img")

    done = both(pair, *mirror(source, pair.data))

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert source.closed_and_bare()
    assert pair.closed_and_bare()
    assert before == digest(source.folder / "backup.img")
    looked = pair.lukshook("run", "offsite", "--", "rsync", "-aHXAnci", "--delete", f"{source.tree}/", f"{pair.data}/")
    assert (0, "") == (looked.returncode, looked.stdout)


@pytest.mark.parametrize("which", ["source", "target"])
def test_neither_of_two_alone(source: HostVolume, pair: HostVolume, which: str) -> None:
    """When one of the two does not open, nothing runs, its status comes through, and the other is closed again."""
    (source if which == "source" else pair).spoil_key()

    done = both(pair, "touch", pair.folder / "ran")

    assert 77 == done.returncode
    assert source.closed_and_bare()
    assert pair.closed_and_bare()
    assert not (pair.folder / "ran").exists()


def test_nothing_is_written_to_a_source(source: HostVolume) -> None:
    """Neither what is in it nor its image can be changed by mistake: a copy in the wrong direction fails."""
    before = digest(source.folder / "backup.img")

    done = source.lukshook("run", "offsite", "--", "rsync", "-a", "--delete", "/etc/apt/", f"{source.data}/tree/")

    assert done.returncode in (11, 23), done.stderr
    assert before == digest(source.folder / "backup.img")


class Copy:
    """A copy of the source by one tool, kept in a plain folder: how it is made, and what is in it."""

    def __init__(self, source: HostVolume) -> None:
        self.source = source
        self.place = source.folder / "copy"
        self.place.mkdir()

    def command(self) -> list[str | Path]:
        """The backup itself."""
        raise NotImplementedError

    def guarded(self) -> list[str | Path]:
        """The same, as the documentation says it."""
        return [LUKSHOOK, "-c", self.source.config, "run", "offsite", "--", *self.command()]

    def content(self) -> object:
        """What there is to lose, or what must not come to it."""
        raise NotImplementedError

    def do(self, command: list[str | Path]) -> Done:
        """Run a command of the tool."""
        path = f"{ROOT}/.venv-borgmatic/bin:{self.source.environment['PATH']}"
        return self.source.host(
            *command,
            PATH=path,
            RESTIC_PASSWORD="x",
            RESTIC_CACHE_DIR=str(self.source.folder / "cache"),
            BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
        )


class Rsync(Copy):
    """`rsync --delete`, which deletes a copy whose source is empty."""

    def command(self) -> list[str | Path]:
        return mirror(self.source, self.place)

    def content(self) -> object:
        return same(self.source.tree, self.place)


class Restic(Copy):
    """restic, which makes a snapshot of nothing."""

    def __init__(self, source: HostVolume) -> None:
        super().__init__(source)
        need("restic")
        assert 0 == self.do(["restic", "--repo", self.place, "init"]).returncode

    def command(self) -> list[str | Path]:
        return ["restic", "--repo", self.place, "backup", self.source.data]

    def content(self) -> object:
        return sorted(path.name for path in (self.place / "snapshots").iterdir())


class Borgmatic(Copy):
    """borgmatic, which makes an archive of nothing."""

    program = str(ROOT / ".venv-borgmatic/bin/borgmatic")
    hooks = "borgmatic"

    def __init__(self, source: HostVolume) -> None:
        super().__init__(source)
        self.program = need(self.program)
        self.borg = Path(self.program).with_name("borg")
        assert 0 == self.do([self.borg, "init", "--encryption=none", self.place]).returncode

    def command(self) -> list[str | Path]:
        return self.configured("")

    def configured(self, hooks: str) -> list[str | Path]:
        file = self.source.folder / "borgmatic.yaml"
        rest = f"source_directories: [{self.source.data}]\nrepositories: [{{path: {self.place}}}]\n"
        file.write_text(f"{rest}unknown_unencrypted_repo_access_is_ok: true\n{hooks}")
        return [self.program, "--config", file, "create"]

    def guarded(self) -> list[str | Path]:
        """By hooks: the part of the printed lines that is not about a repository."""
        return self.configured("commands:" + self.source.lines("borgmatic", "2.1").partition("commands:")[2])

    def content(self) -> object:
        done = self.do([self.borg, "list", "--short", self.place])
        assert 0 == done.returncode, done.stderr
        return done.stdout.split()


class DebianBorgmatic(Borgmatic):
    """borgmatic 1.7, as Debian 12 has it."""

    program = "/usr/bin/borgmatic"

    def configured(self, hooks: str) -> list[str | Path]:
        file = self.source.folder / "borgmatic.yaml"
        rest = f"location:\n    source_directories: [{self.source.data}]\n    repositories: [{self.place}]\n"
        file.write_text(f"{rest}storage: {{unknown_unencrypted_repo_access_is_ok: true}}\n{hooks}")
        return [self.program, "--config", file, "create"]

    def guarded(self) -> list[str | Path]:
        return self.configured("hooks:" + self.source.lines("borgmatic", "1.7").partition("hooks:")[2])


COPIES = pytest.mark.parametrize("make", [Rsync, Restic, Borgmatic, DebianBorgmatic])
Make = Callable[[HostVolume], Copy]


@COPIES
def test_a_source_that_does_not_open(source: HostVolume, make: Make) -> None:
    """First a copy that works; then the source cannot be opened: the tool fails, and the copy is as it was."""
    copy = make(source)
    done = copy.do(copy.guarded())
    assert (0, True) == (done.returncode, source.closed_and_bare()), done.stdout + done.stderr
    kept = copy.content()
    assert kept
    source.spoil_key()

    done = copy.do(copy.guarded())

    assert 0 != done.returncode
    assert kept == copy.content()
    assert source.closed_and_bare()


@pytest.mark.parametrize("make", [Rsync, Restic, Borgmatic])
def test_a_source_that_nobody_opened(source: HostVolume, make: Make) -> None:
    """The tool is started by itself: a copy from `data`, which is not there, fails and changes nothing.

    borgmatic 1.7 is not among them: borg leaves out what is missing and only warns.
    """
    copy = make(source)
    assert 0 == copy.do(copy.guarded()).returncode
    kept = copy.content()

    done = copy.do(copy.command())

    assert kept == copy.content()
    assert 0 != done.returncode

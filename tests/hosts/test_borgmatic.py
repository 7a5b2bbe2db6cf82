"""Real borgmatic, the newest and those of Debian 13 and 12, with the lines printed for each."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from support.host_volume import HostVolume, need, same
from support.lukshook_process import Done

pytestmark = pytest.mark.hosts
ROOT = Path(__file__).parents[2]


@attrs.frozen
class Borgmatic:
    """One release of borgmatic in one house, with two repositories in the volume."""

    house: HostVolume
    program: str
    config: Path
    borg: str
    runs: int = 3  # enough to see that one run leaves nothing for the next

    def __call__(self, *arguments: str | Path) -> Done:
        """Run it; its own folder comes first on the PATH, so that it finds the borg it was installed with."""
        path = f"{Path(self.program).parent}:{self.house.environment['PATH']}"
        return self.house.host(self.program, "--config", self.config, *arguments, PATH=path)

    def restored(self, repository: Path) -> Path:
        """The newest archive of *repository*, given back by `borgmatic extract` outside the volume."""
        target = self.house.folder / "restored"
        target.mkdir()
        done = self("extract", "--archive", "latest", "--repository", repository, "--destination", target)
        assert 0 == done.returncode, done.stderr
        return target / str(self.house.tree).lstrip("/")


#: The user's own part, in the form of 1.8 and later.
FLAT = """\
source_directories: [{tree}]
checks: [{{name: repository}}]
unknown_unencrypted_repo_access_is_ok: true
relocated_repo_access_is_ok: false
"""


def flat(house: HostVolume, program: str, version: str, borg: str) -> Borgmatic:
    """A borgmatic that takes the printed lines and the user's own part one after the other, for two repositories."""
    lines = house.lines("borgmatic", PATH=f"{Path(program).parent}:{house.environment['PATH']}")
    assert lines == house.lines("borgmatic", version)
    second = lines.replace(f"- path: {house.data}/borg", f"- path: {house.data}/borg\n    - path: {house.data}/two")
    config = house.folder / "borgmatic.yaml"
    config.write_text(f"{second}{FLAT.format(tree=house.tree)}local_path: {borg}\n")
    borgmatic = Borgmatic(house, program, config, borg)
    assert 0 == borgmatic("config", "validate").returncode
    return borgmatic


def modern(house: HostVolume) -> Borgmatic:
    """borgmatic 2.1 from the virtual environment that tests/run makes for it."""
    return flat(house, need(ROOT / ".venv-borgmatic/bin/borgmatic"), "2.1", need(ROOT / ".venv-borgmatic/bin/borg"))


def debian_13(house: HostVolume) -> Borgmatic:
    """borgmatic 1.9 as Debian 13 has it, from the virtual environment that tests/run makes for it."""
    program, borg = need(ROOT / ".venv-borgmatic-13/bin/borgmatic"), need(ROOT / ".venv-borgmatic/bin/borg")
    return attrs.evolve(flat(house, program, "1.9", borg), runs=1)


def debian_12(house: HostVolume) -> Borgmatic:
    """borgmatic 1.7 as Debian 12 has it."""
    program = need("/usr/bin/borgmatic")
    text = house.lines("borgmatic").replace("[/home]", f"[{house.tree}]")
    text = text.replace(f'["{house.data}/borg"]', f'["{house.data}/borg", "{house.data}/two"]')
    config = house.folder / "borgmatic.yaml"
    config.write_text(text + "storage: {unknown_unencrypted_repo_access_is_ok: true}\n")
    return Borgmatic(house, program, config, "/usr/bin/borg")


def _init_modern(borgmatic: Borgmatic) -> Done:
    return borgmatic("repo-create", "--encryption", "none")


def _init_older(borgmatic: Borgmatic) -> Done:
    """Before 2.0 our hooks run for `create` only, so `init` goes through the wrapper."""
    command = (borgmatic.program, "--config", str(borgmatic.config), "init", "--encryption", "none")
    return borgmatic.house.lukshook("run", "offsite", "--", *command)


Maker = Callable[[HostVolume], Borgmatic]
Init = Callable[[Borgmatic], Done]
each = pytest.mark.parametrize(
    ("make", "init"),
    [
        pytest.param(modern, _init_modern, id="2.1"),
        pytest.param(debian_13, _init_older, id="1.9"),
        pytest.param(debian_12, _init_older, id="1.7", marks=pytest.mark.borgmatic_1_7),
    ],
)


@each
def test_three_backups_to_two_repositories(house: HostVolume, make: Maker, init: Init) -> None:
    """Three runs (with 1.9 one), each to both repositories; closed in between and after; the newest is the tree."""
    borgmatic = make(house)
    assert 0 == init(borgmatic).returncode

    for _ in range(borgmatic.runs):
        done = borgmatic("create", "prune", "--stats")
        assert (0, True) == (done.returncode, house.closed_and_bare()), done.stdout + done.stderr

    opened = house.lukshook("open", "offsite", "--read-only")
    assert 0 == opened.returncode, opened.stderr
    newest_of = ("list", "--bypass-lock", "--short", "--last", "1")
    for repository in ("borg", "two"):
        target = house.folder / f"restored-{repository}"
        target.mkdir()
        (newest,) = _borg(house, borgmatic.borg, *newest_of, house.data / repository)
        subprocess.run(
            [borgmatic.borg, "extract", "--bypass-lock", f"{house.data / repository}::{newest}"],
            cwd=target,
            env={**house.environment, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"},
            check=True,
        )
        assert same(house.tree, target / str(house.tree).lstrip("/"))
    assert 0 == house.lukshook("close", "offsite").returncode
    assert house.closed_and_bare()


def _borg(house: HostVolume, borg: str, *arguments: str | Path) -> list[str]:
    done = house.host(borg, *arguments, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()


def test_every_action_finds_the_volume_open(house: HostVolume) -> None:
    """With borgmatic 2, list, info and check open and close the volume by themselves."""
    borgmatic = modern(house)
    assert 0 == _init_modern(borgmatic).returncode
    assert 0 == borgmatic("create").returncode

    for action in ("list", "info", "check"):
        done = borgmatic(action)
        assert (0, True) == (done.returncode, house.closed_and_bare()), done.stderr


@pytest.mark.guest_too
def test_what_was_backed_up_is_given_back(house: HostVolume) -> None:
    """With borgmatic 2, create and extract open and close the volume by themselves."""
    borgmatic = modern(house)
    assert 0 == _init_modern(borgmatic).returncode
    assert 0 == borgmatic("create").returncode
    assert house.closed_and_bare()

    assert same(house.tree, borgmatic.restored(house.data / "borg"))
    assert house.closed_and_bare()


@each
def test_failing_backup_is_reported_and_closed(house: HostVolume, make: Maker, init: Init) -> None:
    """One of two repositories is missing: borgmatic fails, and the volume is closed."""
    borgmatic = make(house)
    assert 0 == init(borgmatic).returncode
    gone = house.lukshook("run", "offsite", "--", "rm", "-r", str(house.data / "two"))
    assert 0 == gone.returncode, gone.stderr

    done = borgmatic("create")

    assert 0 != done.returncode
    assert re.search(r"two.* does not exist", done.stdout + done.stderr)
    assert house.closed_and_bare()


@each
def test_volume_that_does_not_open(house: HostVolume, make: Maker, init: Init) -> None:
    """With a wrong key borgmatic fails with lukshook's one line, and the bare mount point stays empty."""
    borgmatic = make(house)
    assert 0 == init(borgmatic).returncode
    house.spoil_key()

    done = borgmatic("create")

    assert 0 != done.returncode
    assert "key" in done.stdout + done.stderr
    assert house.closed_and_bare()

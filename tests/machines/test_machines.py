"""The two commands of the README on fresh machines: minimal roots of Debian 12 and 13 with python3 and apt alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import define, field

from support import debian_roots as roots

pytestmark = [
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]
ROOT, USER = ("/root", 0), ("/home/tester", 1000)
#: Where Debian's own fuse2fs cannot be trusted, with what the quickstart says then.
WITHOUT_DIRECT_IO = ("trixie",)
REFUSAL = "This fuse2fs does not support direct_io (docs/userspace-engine.md). As root: examples/fuse2fs-debian-12"
LONG_SECONDS = 4 * 3600.0


@define
class Life:
    """What happened on one machine, step by step; *why*: the root could not be built."""

    root: Path
    steps: dict[str, subprocess.CompletedProcess[str]] = field(factory=dict)
    left: list[str] = field(factory=list)
    why: str = ""

    def run(self, step: str, who: tuple[str, int], command: str) -> None:
        self.steps[step] = roots.run(self.root, *who, command)


def live(release: str, folder: Path) -> Life:
    """The quickstart as root, which installs what is missing, then as an ordinary user."""
    life = Life(folder / release)
    try:
        roots.unpacked(release, folder)
    except roots.CannotBuild as error:
        life.why = str(error)
        return life
    for who in (ROOT, USER):
        roots.copy_project(life.root, *who)
    life.run("as root", ROOT, "examples/quickstart")
    if release in WITHOUT_DIRECT_IO:
        life.run("refused", USER, "examples/quickstart")
        life.run("way out", ROOT, "examples/fuse2fs-debian-12")
    life.run("as a user", USER, "examples/quickstart")
    life.left = roots.leftovers(life.root)
    return life


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Life]]]:
    """All machines at the same time."""
    folder = tmp_path_factory.mktemp("machines")
    with ThreadPoolExecutor(len(roots.RELEASES)) as pool:
        yield {release: pool.submit(live, release, folder) for release in roots.RELEASES}
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)  # faster than shutil


@pytest.fixture(params=roots.RELEASES)
def life(request: pytest.FixtureRequest, lives: dict[str, Future[Life]]) -> Life:
    found = lives[request.param].result()
    if found.why:
        pytest.fail(f"no root of {roots.RELEASES[request.param]} could be built: {found.why}", pytrace=False)
    return found


def passed(life: Life, step: str) -> str:
    """What it printed."""
    done = life.steps[step]
    if done.returncode:
        pytest.fail(f"{step}: exit status {done.returncode}\n{done.stdout[-4000:]}", pytrace=False)
    return done.stdout


@pytest.mark.parametrize("step", ["as root", "as a user"])
def test_the_quickstart_does_what_it_says(life: Life, step: str) -> None:
    """The first command of the README."""
    said = passed(life, step)

    assert "files came back as they were" in said
    assert "Traceback" not in said
    assert "warning" not in said


def test_a_user_is_told_the_way_out(life: Life) -> None:
    """One line where this release's fuse2fs cannot be trusted, and what it names works."""
    if life.root.name not in WITHOUT_DIRECT_IO:
        assert "fuse2fs-debian-12" not in passed(life, "as a user")
        return
    refused = life.steps["refused"]

    assert 69 == refused.returncode, refused.stdout
    assert REFUSAL in refused.stdout.splitlines()[-1]
    assert "fuse2fs 1.47.0" in passed(life, "way out")


def test_nothing_is_left(life: Life) -> None:
    """The quickstart removes what it has made."""
    assert [] == life.left


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["unit", "files", "userspace", "kernel", "hosts"])
def test_the_tiers_pass_inside(life: Life, tier: str) -> None:
    """The second command of the README, tier by tier; kernel and hosts in test kernels of that release."""
    done = roots.run(life.root, *ROOT, f"tests/run --patient {tier}", LONG_SECONDS, LUKSHOOK_REQUIRE_ALL="1")

    assert 0 == done.returncode, done.stdout[-8000:]
    assert ", 0 failed, 0 skipped" in done.stdout.splitlines()[-1]

"""The Debian package: built with one command, installed on fresh machines, used, removed and purged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import define, field

from support import debian_roots as roots

pytestmark = [
    pytest.mark.slow,  # 200 packages to build and check it, on each release
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]
HOME = "root/lukshook"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends"
BUILD_SECONDS = 3600.0
#: pytest 8 needs a pluggy that Debian 12 does not have, so these tests run with pytest 7 and its settings.
SETTINGS = "[pytest]\nfilterwarnings = error\n"
#: What uses attrs and pluggy most.
LIBRARY_TESTS = " ".join(
    f"tests/unit/test_{name}.py" for name in ("config", "hooks", "json_files", "plugins", "records")
)

#: What a user does, in this order. Each line is a step of its own.
STEPS = {
    "install": f"apt-get -qq update && {APT} install ./lukshook_*.deb",
    "services": "dpkg --listfiles lukshook | grep -E '^/(usr/)?lib/systemd|^/etc/(init|cron|systemd)' || echo none",
    "folder": "stat --format=%a:%U /etc/lukshook",
    "userspace": f"{APT} install ./lukshook-userspace_*.deb rsync man-db zsh fish",
    "use": "./create-backup-restore",
    "man": "for page in $(dpkg --listfiles lukshook | sed -n 's,/usr/share/man/man[0-9]/,,p'); do"
    " MANPAGER=cat man ${page%.[0-9].gz} >/dev/null || exit 1; echo ${page%.gz}; done",
    "bash": "bash -c '. /usr/share/bash-completion/completions/lukshook; COMP_WORDS=(lukshook cre) COMP_CWORD=1;"
    ' _lukshook_completion lukshook; echo "${COMPREPLY[@]}"\'',
    "zsh": "zsh -fc 'autoload -U compinit; compinit -u; echo $_comps[lukshook]'",
    "fish": "fish --command 'complete --do-complete \"lukshook cre\"'",
    "documents": "cd /usr/share/doc/lukshook && ls examples/config.toml docs/troubleshooting.md",
    "remove": f"{APT} remove lukshook",
    "after removal": "ls /etc/lukshook /var/lib/lukshook; command -v lukshook",
    "purge without an answer": f"{APT} purge lukshook",
    "after this purge": "ls /etc/lukshook /var/lib/lukshook",
    "install again": f"{APT} install ./lukshook_*.deb",
    "answer": "echo lukshook lukshook/purge boolean true | debconf-set-selections",
    "purge": f"{APT} purge lukshook lukshook-userspace",
    "after purge": "find /etc /run /usr /var /tmp /home -xdev -path /var/cache/man -prune -o"
    " -iname '*lukshook*' -print; dpkg --list | grep lukshook; debconf-show lukshook",
}


@define
class Machines:
    """A machine that builds the package, and a fresh one where it is used; *why*: they could not be made."""

    steps: dict[str, subprocess.CompletedProcess[str]] = field(factory=dict)
    why: str = ""


def live(release: str, folder: Path) -> Machines:
    """Build on one machine; every step on another."""
    machines = Machines()
    try:
        builder, user = (roots.unpacked(release, made(folder / name)) for name in ("build", "use"))
    except roots.CannotBuild as error:
        machines.why = str(error)
        return machines
    roots.copy_project(builder, "/root", 0)
    machines.steps["build"] = roots.run(builder, "/root", 0, "packaging/build-deb", BUILD_SECONDS)
    for file in (*(builder / HOME / "dist").glob("*.deb"), roots.PROJECT / "debian/tests/create-backup-restore"):
        shutil.copy(file, made(user / HOME))
    for step, command in STEPS.items():
        machines.steps[step] = roots.run(user, "/root", 0, command)
    (builder / HOME / "pytest.ini").write_text(SETTINGS)
    install = f"{APT} install ./dist/lukshook_*.deb python3-pytest python3-hypothesis >/dev/null"
    test = f"PYTHONPATH=$PWD/plugin:$PWD/tests python3 -m pytest -q -s -c pytest.ini {LIBRARY_TESTS}"
    machines.steps["tests"] = roots.run(builder, "/root", 0, f"{install} && {test}", BUILD_SECONDS)
    return machines


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Machines]]]:
    """All releases at the same time."""
    folder = tmp_path_factory.mktemp("packages")
    with ThreadPoolExecutor(len(roots.RELEASES)) as pool:
        yield {release: pool.submit(live, release, folder) for release in roots.RELEASES}
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)  # faster than shutil


@pytest.fixture(params=roots.RELEASES)
def machines(request: pytest.FixtureRequest, lives: dict[str, Future[Machines]]) -> Machines:
    found = lives[request.param].result()
    if found.why:
        pytest.fail(f"no root of {roots.RELEASES[request.param]} could be built: {found.why}", pytrace=False)
    return found


def passed(machines: Machines, step: str) -> str:
    """What it printed."""
    done = machines.steps[step]
    if done.returncode:
        pytest.fail(f"{step}: exit status {done.returncode}\n{done.stdout[-4000:]}", pytrace=False)
    return done.stdout


def test_one_command_builds_it_and_lintian_is_silent(machines: Machines) -> None:
    """Lintian's errors and warnings make the command fail, but its hints would also be in the output."""
    said = passed(machines, "build")

    assert [] == [line for line in said.splitlines() if line.startswith(("E: ", "W: "))]


def test_the_libraries_of_the_release_are_supported(machines: Machines) -> None:
    """Debian 12 has pluggy 1.0 and attrs 22.2."""
    assert " passed" in passed(machines, "tests").strip().splitlines()[-1]


def test_it_installs_and_starts_nothing(machines: Machines) -> None:
    """Only root can look into the folder for keys."""
    passed(machines, "install")

    assert "none\n" == passed(machines, "services")
    assert "700:root\n" == passed(machines, "folder")


def test_it_backs_up_and_restores(machines: Machines) -> None:
    """The test of the package itself, in the userspace engine."""
    passed(machines, "userspace")

    assert "the files came back as they were" in passed(machines, "use")


def test_man_pages_open(machines: Machines) -> None:
    """All that the project has, and one for each command."""
    shown = passed(machines, "man").split()

    sources = {page.name for pattern in ("*.1", "*.5") for page in (roots.PROJECT / "docs/man").glob(pattern)}
    assert sources | {"lukshook.1", "lukshook-resize.1"} == set(shown)


@pytest.mark.parametrize(("shell", "offered"), [("bash", "create"), ("zsh", "_lukshook"), ("fish", "create")])
def test_shells_complete(machines: Machines, shell: str, offered: str) -> None:
    """Each finds the completion where Debian's version of it looks."""
    assert offered in passed(machines, shell).split()


def test_documents_keep_their_names(machines: Machines) -> None:
    """Messages name them."""
    passed(machines, "documents")


def test_removal_keeps_state_and_keys(machines: Machines) -> None:
    """Without the key, the backups are lost."""
    passed(machines, "remove")
    left = machines.steps["after removal"].stdout

    assert "autopkgtest.key" in left
    assert "autopkgtest.header" in left
    assert "/bin/lukshook" not in left


def test_a_purge_asks_before_it_deletes(machines: Machines) -> None:
    """Where nobody answers, it keeps what it would delete, and says so."""
    assert "lukshook: kept /etc/lukshook" in passed(machines, "purge without an answer")
    left = passed(machines, "after this purge")

    assert "autopkgtest.key" in left
    assert "autopkgtest.header" in left


def test_nothing_remains_after_a_purge(machines: Machines) -> None:
    """Neither a file, nor a record of the package, nor its question."""
    for step in ("install again", "answer", "purge"):
        passed(machines, step)

    assert "" == machines.steps["after purge"].stdout

"""Each command of docs/install.md on a fresh system of the release that it names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lukshook
from support import debian_roots as roots

pytestmark = [
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
    pytest.mark.slow,
]
RELEASES = {name: release for release, name in roots.RELEASES.items()}
ROOT = ("/root", 0)
LINKED = (
    *("bin/lukshook", "bin/lukshook-resize", "share/man/man1/lukshook-run.1", "share/man/man5/lukshook.toml.5"),
    "share/bash-completion/completions/lukshook",
)


def section(heading: str) -> str:
    """The commands below a heading of docs/install.md, one script."""
    page = (roots.PROJECT / "docs/install.md").read_text()
    (text,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


@pytest.fixture(params=RELEASES)
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The name of a system, and a root of its own."""
    root = roots.unpacked(RELEASES[request.param], tmp_path)
    (root / "etc/apt/apt.conf.d/90yes").write_text('APT::Get::Assume-Yes "true";\n')
    roots.copy_project(root, *ROOT)
    yield request.param, root
    shutil.rmtree(root)


#: Each of these opens, without a warning.
OPENED = "for page in lukshook lukshook-run lukshook.toml; do MANPAGER=cat man $page >/dev/null; done"


def passed(root: Path, script: str) -> str:
    """What it printed."""
    done = roots.run(root, *ROOT, f"set -e\n{script}", DEBIAN_FRONTEND="noninteractive")
    if done.returncode:
        pytest.fail(f"{script}\nexit status {done.returncode}\n{done.stdout[-4000:]}", pytrace=False)
    return done.stdout


def test_the_commands_install_and_remove_it(system: tuple[str, Path]) -> None:
    """Programs, man pages and completions are where they are looked for, and nothing of them stays."""
    name, root = system
    passed(root, f"{section(name)}\napt-get install --no-install-recommends man-db")
    for way, place in (("pipx", "/opt/pipx"), ("venv", "/opt/lukshook")):
        passed(root, section(f"{name}: {way}"))
        version = passed(root, "lukshook --version && lukshook-resize --version")
        linked = [link for link in LINKED if not (root / "usr/local" / link).is_symlink()]
        broken = passed(root, "find /usr/local -xtype l").split()
        warned = passed(root, OPENED)
        passed(root, f"rm -r {place}\n{section('Remove it')}")

        assert 2 == version.count(lukshook.__version__), way
        assert [] == linked, way
        assert [] == broken, way
        assert "" == warned, way
        assert "" == passed(root, "find /usr/local -name '*lukshook*'"), way

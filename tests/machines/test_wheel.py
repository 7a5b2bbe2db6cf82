"""The wheel and the sdist that a release uploads: built as RELEASING.md says, and installed as docs/install.md says.

Also what a service reads that nobody here can run: workflows and the compose file.

Everything happens below a folder of this test; what is missing comes from where this machine's pip takes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

import lukshook
from support.debian_roots import NOT_COPIED, PROJECT

TOOLS = ("build", "hatchling", "twine", "pipx", "uv", "check-jsonschema")
#: Any second of the past: the time that files in the archives get (reproducible-builds.org).
EPOCH = "1790000000"
MAN_PAGES = sorted(f"man{page.suffix[1:]}/{page.name}" for page in (PROJECT / "docs/man").glob("lukshook*.[1-8]"))
COMPLETIONS = (
    "bash-completion/completions/lukshook",
    "fish/vendor_completions.d/lukshook.fish",
    "zsh/site-functions/_lukshook",
)
CONFIGURATION = '[volumes.v]\nimage = "/srv/v.img"\nmountpoint = "/mnt/v"\nkey = "stdin"\n'


@frozen
class Workshop:
    """The tools in *bin*, and in *home* all that they write."""

    bin: Path
    home: Path

    def run(self, *argv: str | Path, **environment: str | Path) -> str:
        """What a command printed; the test fails where the command does."""
        passed_on = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        own = {"HOME": self.home, "PATH": f"{self.bin}:{os.environ['PATH']}", "SOURCE_DATE_EPOCH": EPOCH}
        done = subprocess.run(
            argv,
            env={name: str(value) for name, value in {**passed_on, **own, **environment}.items()},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{argv}: exit status {done.returncode}\n{done.stdout[-4000:]}", pytrace=False)
        return done.stdout

    def build(self, name: str, umask: int) -> Path:
        """The folder with the wheel and the sdist, built in a copy of the project that *umask* has changed."""
        project = self.home / name
        shutil.copytree(PROJECT, project, symlinks=True, ignore=NOT_COPIED)
        for path in project.rglob("*"):
            if not path.is_symlink():
                path.chmod((0o777 if path.is_dir() or os.access(path, os.X_OK) else 0o666) & ~umask)
                os.utime(path, (0, 0))
        self.run(self.bin / "python", "-m", "build", "--no-isolation", project)
        return project / "dist"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    home = tmp_path_factory.mktemp("wheel")
    made = Workshop(home / "tools/bin", home)
    made.run(sys.executable, "-m", "venv", home / "tools")
    made.run(made.bin / "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS)
    yield made
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def dist(workshop: Workshop) -> Path:
    return workshop.build("first", 0o022)


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def test_the_index_would_take_them(workshop: Workshop, dist: Path) -> None:
    """Their metadata is complete, and the README can be shown."""
    files = sorted(dist.iterdir())

    assert [f"lukshook-{lukshook.__version__}{end}" for end in ("-py3-none-any.whl", ".tar.gz")] == [
        f.name for f in files
    ]
    assert 2 == workshop.run(workshop.bin / "twine", "--no-color", "check", "--strict", *files).count("PASSED\n")


def test_a_second_build_has_the_same_bytes(workshop: Workshop, dist: Path) -> None:
    """Anyone can build a release again and compare; other times and modes of the files change nothing."""
    again = workshop.build("second", 0o077)

    assert {file.name: file.read_bytes() for file in dist.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }


def test_the_sdist_has_all_that_is_needed(dist: Path) -> None:
    """Who packages lukshook can also run its tests and build its documentation."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}

    assert {"LICENSE", "tests/run", "docs/man/build.py", "completions/_lukshook", "examples/quickstart"} <= names
    assert [] == [name for name in names if name.startswith((".venv", ".cache", "dist"))]


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-workflows", ".forgejo/workflows/*.yml"),
        ("compose-spec", "examples/*/compose.yaml"),
    ],
)
def test_files_for_services_have_their_form(workshop: Workshop, schema: str, pattern: str) -> None:
    """The published schema of GitHub's workflows, and that of Docker's compose files; neither runs here."""
    files = sorted(PROJECT.glob(pattern))

    assert files
    workshop.run(workshop.bin / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


#: What installs a wheel, and returns where its programs, its share folder and its man pages are then.
Install = Callable[[Workshop, Path], tuple[Path, Path, Path]]


def in_venv(workshop: Workshop, wheel: Path) -> tuple[Path, Path, Path]:
    place = workshop.home / "venv"
    workshop.run(sys.executable, "-m", "venv", place)
    workshop.run(place / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return place / "bin", place / "share", place / "share/man"


def by_pipx(workshop: Workshop, wheel: Path) -> tuple[Path, Path, Path]:
    """Newer versions of pipx link the completions as well, so their place is named too.

    They also take uv where there is one, and uv does not read pip's settings.
    """
    place = workshop.home / "pipx"
    folders = {"PIPX_HOME": place, "PIPX_BIN_DIR": place / "bin", "PIPX_MAN_DIR": place / "man"}
    newer: dict[str, str | Path] = {"PIPX_COMPLETION_DIR": place / "completions", "PIPX_DEFAULT_BACKEND": "pip"}
    workshop.run(workshop.bin / "pipx", "install", "--python", sys.executable, wheel, **folders, **newer)
    return place / "bin", place / "venvs/lukshook/share", place / "man"


def by_uv(workshop: Workshop, wheel: Path) -> tuple[Path, Path, Path]:
    """uv does not read pip's settings: it takes what lukshook needs from a folder that pip has filled."""
    place = workshop.home / "uv"
    pip = (workshop.bin / "pip", "--quiet", "--disable-pip-version-check")
    workshop.run(*pip, "download", "--dest", place / "found", wheel)
    folders = {"UV_TOOL_DIR": place / "tools", "UV_TOOL_BIN_DIR": place / "bin", "UV_CACHE_DIR": place / "cache"}
    offline = ("--offline", "--no-index", "--find-links", place / "found", "--python", sys.executable)
    workshop.run(workshop.bin / "uv", "tool", "install", *offline, wheel, **folders)
    share = place / "tools/lukshook/share"
    return place / "bin", share, share / "man"


@pytest.mark.parametrize("install", [in_venv, by_pipx, by_uv])
def test_what_is_installed(install: Install, workshop: Workshop, wheel: Path) -> None:
    """Both programs, the templates for backup tools, the man pages and the completions."""
    programs, share, man = install(workshop, wheel)
    configuration = workshop.home / "config.toml"
    configuration.write_text(CONFIGURATION)
    configuration.chmod(0o600)

    for program in ("lukshook", "lukshook-resize"):
        assert f"{program}, version {lukshook.__version__}\n" == workshop.run(programs / program, "--version")
    assert "run v" in workshop.run(programs / "lukshook", "-c", configuration, "hooks", "cron", "v")
    assert MAN_PAGES == sorted(str(page.relative_to(man)) for page in man.glob("man*/*"))
    assert [] == [name for name in COMPLETIONS if not (share / name).is_file()]


@pytest.mark.needs("man")
def test_man_finds_the_pages_of_uv(workshop: Workshop, wheel: Path) -> None:
    """uv links no man pages: docs/install.md says how they are opened. Ours have no warning."""
    _, _, man = by_uv(workshop, wheel)

    for page in ("lukshook", "lukshook-run", "lukshook.toml"):
        shown = workshop.run("man", "-M", man, page, MANPAGER="cat", LANG="C.UTF-8")
        assert "lukshook" in shown
        assert "<standard input>:" not in shown  # how man(1) names the place of a fault

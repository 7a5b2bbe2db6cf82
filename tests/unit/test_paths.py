"""Where lukshook keeps its files, and which folders it does not take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.cli import main
from lukshook.cli.paths import places
from lukshook.errors import BadConfiguration, Denied
from lukshook.system import ownership
from lukshook.system.text import is_one_line
from support import odd_names

FOLDERS = ("LUKSHOOK_RUN_DIR", "LUKSHOOK_STATE_DIR")


@pytest.mark.parametrize("variable", FOLDERS)
@pytest.mark.parametrize("name", [name for name in odd_names.NAMES if not is_one_line(odd_names.text(name))], ids=ascii)
def test_no_folder_has_a_name_that_is_not_on_one_line(variable: str, name: bytes) -> None:
    """Records, logs and the kernel's lists have it on a line, and JSON has no bytes that are no text."""
    with pytest.raises(BadConfiguration, match="is not a path on one line"):
        places({variable: f"/srv/{odd_names.text(name)}", "HOME": "/root"}, 0)


@pytest.mark.parametrize("variable", FOLDERS)
def test_no_folder_has_a_name_with_no_room_for_another(variable: str) -> None:
    """What is being written has a longer one."""
    with pytest.raises(BadConfiguration, match="names with up to 240 bytes"):
        places({variable: "/srv/" + "x" * 241, "HOME": "/root"}, 0)


def test_a_folder_is_where_a_link_leads(tmp_path: Path) -> None:
    """The run folder is used without links."""
    (tmp_path / "a\x0bb").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / "a\x0bb")

    with pytest.raises(BadConfiguration, match="the run folder"):
        places({"LUKSHOOK_RUN_DIR": os.fspath(tmp_path / "plain"), "HOME": "/root"}, 0)


@pytest.mark.parametrize("character", ",?")
def test_a_users_tools_would_take_the_rest_for_options(character: str) -> None:
    """Where the plaintext lies; root's tools work on a device."""
    environment = {"LUKSHOOK_RUN_DIR": f"/srv/a{character}b", "HOME": "/home/me"}

    assert Path(f"/srv/a{character}b") == places(environment, 0).run
    with pytest.raises(BadConfiguration, match="take for options"):
        places(environment, 1000)


def test_other_names_are_taken() -> None:
    """Blanks and letters of all languages."""
    environment = {"LUKSHOOK_RUN_DIR": "/srv/B\u00fcro a", "LUKSHOOK_STATE_DIR": "/srv/\u65e5 %#'", "HOME": "/home/me"}

    found = places(environment, 1000)

    assert (Path("/srv/B\u00fcro a"), Path("/srv/\u65e5 %#'")) == (found.run, found.state)


def test_a_home_of_another_user_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`runuser -u backup` from a root shell leaves HOME=/root."""

    def denied(folder: Path, user: int) -> None:
        raise PermissionError(13, "Permission denied", ".local")

    monkeypatch.setattr(ownership, "faults_of", denied)
    with pytest.raises(Denied, match=r"the folder /root/.local/state/lukshook/run/.* cannot be reached"):
        main.safe(places({"HOME": "/root"}, 1000))


def test_a_user_without_a_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has users that no file names."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(BadConfiguration, match="this user has no home folder"):
        places({}, 1000)


def test_a_run_folder_in_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    """Python 3.11 raises RuntimeError for it where a path is resolved."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert tmp_path / "loop" == places({"LUKSHOOK_RUN_DIR": os.fspath(tmp_path / "loop"), "HOME": "/root"}, 0).run


@pytest.mark.roots
def test_a_configuration_that_may_not_be_seen_is_not_taken_for_absent(tmp_path: Path) -> None:
    """Who forgot sudo is not sent to `init`."""
    own = {"HOME": str(tmp_path / "home"), "LUKSHOOK_CONFIG": str(tmp_path / "etc/config.toml")}
    for folder in ("home", "etc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "etc").chmod(0)
    no_root = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    done = subprocess.run(
        [*no_root, sys.executable, "-m", "lukshook", "status"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | own,
    )
    (tmp_path / "etc").chmod(0o700)
    assert 78 == done.returncode
    assert "may not see" in done.stderr
    assert "init" not in done.stderr

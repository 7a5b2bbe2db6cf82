"""The packages that tests/run installs start no service on the machine of whoever runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import quiet_install

KNOWN = ("cron", "cron.service", "dev-disk\\x2dby.device")


def says(file: Path, unit: str, action: str = "start", **environment: str) -> int:
    """The exit status of a policy-rc.d, as invoke-rc.d and deb-systemd-invoke call it."""
    return subprocess.run(
        [str(file), unit, action], env={"PATH": os.environ["PATH"], **environment}, check=False
    ).returncode


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A policy that knows `KNOWN`."""
    file = tmp_path / "policy-rc.d"
    file.write_text(quiet_install.policy(KNOWN))
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("unit", ["prometheus", "prometheus.service", "tangd.socket", "cro"])
def test_a_new_service_does_not_start(written: Path, unit: str) -> None:
    """While our apt runs; for the apt of others the file says nothing."""
    assert 101 == says(written, unit, LUKSHOOK_TESTS_INSTALL="1")
    assert 0 == says(written, unit)


@pytest.mark.parametrize("unit", KNOWN)
def test_a_service_of_the_machine_restarts(written: Path, unit: str) -> None:
    """Its package may be upgraded on the way."""
    assert 0 == says(written, unit, "restart", LUKSHOOK_TESTS_INSTALL="1")


def test_names_from_a_file_system_are_no_shell(tmp_path: Path) -> None:
    """Whatever lies in the folders of units."""
    (tmp_path / 'a"; touch b; ".service').touch()
    (tmp_path / "sshd.service").touch()

    text = quiet_install.policy(quiet_install.known_units([str(tmp_path)], str(tmp_path / "none")))

    assert "touch" not in text
    assert " sshd sshd.service " in text


def test_the_policy_is_there_only_meanwhile(tmp_path: Path) -> None:
    """Also where a kill has left one before, and where apt fails."""
    file = tmp_path / "policy-rc.d"
    file.write_text(quiet_install.policy(["one-of-before"]))

    with pytest.raises(KeyError), quiet_install.nothing_starts(file):
        inside = file.read_text()
        assert 101 == says(file, "not-on-this-machine", LUKSHOOK_TESTS_INSTALL="1")
        raise KeyError

    assert "one-of-before" not in inside
    assert [] == list(tmp_path.iterdir())


def test_a_policy_of_the_machine_stays(tmp_path: Path) -> None:
    """Containers have one that forbids everything."""
    file = tmp_path / "policy-rc.d"
    file.write_text("#!/bin/sh\nexit 101\n")

    with quiet_install.nothing_starts(file):
        assert "#!/bin/sh\nexit 101\n" == file.read_text()

    assert "#!/bin/sh\nexit 101\n" == file.read_text()


def test_it_finds_what_is_enabled(tmp_path: Path) -> None:
    """Links below the folders of targets; not files, not names of their own."""
    wants, requires = tmp_path / "multi-user.target.wants", tmp_path / "sockets.target.requires"
    for folder, unit in ((wants, "prometheus.service"), (requires, "tangd.socket"), (tmp_path, "sshd.service")):
        folder.mkdir(exist_ok=True)
        (folder / unit).symlink_to(f"/lib/systemd/system/{unit}")
    (wants / "by-hand.service").touch()

    assert {"prometheus.service", "tangd.socket"} == quiet_install.enabled(tmp_path)

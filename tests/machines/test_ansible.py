"""examples/ansible against fresh roots of Debian 12 and 13: the result works, and a second run changes nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from support import debian_roots as roots

EXAMPLE = roots.PROJECT / "examples/ansible"
pytestmark = [
    pytest.mark.slow,  # minutes: Ansible is installed, and so are the packages of each root
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
]
KEY = base64.b64encode(os.urandom(32)).decode()
OPTIONS = {
    "image": "/srv/b\u00e4ckup\\{{ inventory_hostname }}.img",
    "mountpoint": "/mnt/back up",
    "size": "500GiB",
    "key": "file:/etc/lukshook/offsite.key",
    "ledger": True,
    "snapshot": "btrfs",
    "keep_snapshots": 3,
    "versions": ["/srv/'a'/*", '/srv/"b"/*'],
    "grow": {"when_free_below": "10%", "by": "50GiB", "up_to": "1TiB"},
}
BACKUP = "rsync -a /home/ /mnt/backupspace/data/"


@frozen
class Desk:
    """Where Ansible runs: its programs, and what it is told."""

    bin: Path
    wheel: Path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """With the wheel of this project."""
    folder = tmp_path_factory.mktemp("desk")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = folder / "venv/bin/pip"
    subprocess.run([pip, "install", *quiet, "ansible-core==2.19.*"], check=True)
    subprocess.run([pip, "wheel", *quiet, "--no-deps", "--wheel-dir", folder, roots.PROJECT], check=True)
    return Desk(folder / "venv/bin", next(folder.glob("*.whl")))


@pytest.fixture(scope="module", params=roots.RELEASES)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("root")
    try:
        made = roots.unpacked(request.param, folder)
    except roots.CannotBuild as error:
        pytest.fail(f"no root of {roots.RELEASES[request.param]} could be built: {error}", pytrace=False)
    (made / "etc/prometheus/rules").mkdir(parents=True)
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)  # faster than shutil


def inside(root: Path) -> list[str]:
    """The beginning of a command that runs in *root* as on a machine of its own."""
    passed_on = [f"{name}={value}" for name, value in roots.passed_on()]
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"),
        *("sh", "-c", roots.ENTER, "sh", str(root), "0"),
        *("env", "-i", "HOME=/root", f"PATH={roots.SYSTEM_PATH}", *passed_on),
    ]


def play(desk: Desk, root: Path, folder: Path) -> str:
    """Run the play with *root* in the place of both hosts; what it prints."""
    ssh = folder / "ssh"
    ssh.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {shlex.join(inside(root))} sh -c "$last"\n')
    ssh.chmod(0o755)
    hosts = {
        "backup_hosts": {
            "hosts": {"alpha": {}},
            "vars": {
                "lukshook_wheel": str(desk.wheel),
                "lukshook_metrics": "/var/lib/lukshook.prom",
                "lukshook_volumes": {
                    "offsite": {"options": OPTIONS, "key_command": f"cat {folder}/key", "backup": BACKUP}
                },
            },
        },
        "prometheus": {"hosts": {"monitor": {}}},
        "all": {
            "vars": {
                "ansible_ssh_executable": str(ssh),
                "ansible_ssh_transfer_method": "piped",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_become": False,
            }
        },
    }
    (folder / "hosts.yml").write_text(json.dumps(hosts))  # JSON is YAML
    (folder / "key").write_text(f"{KEY}\n")
    done = subprocess.run(
        [desk.bin / "ansible-playbook", "-vv", "-i", folder / "hosts.yml", EXAMPLE / "site.yml"],
        env=os.environ | {"ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout[-6000:]
    return done.stdout


def test_the_play(desk: Desk, root: Path, tmp_path: Path) -> None:
    """Twice. The key is where it belongs, and not in what Ansible prints."""
    said = play(desk, root, tmp_path)
    config = root / "etc/lukshook/config.toml"
    table = tomllib.loads(config.read_text())
    (root / "etc/lukshook/offsite.key").write_text("rotated\n")
    again = play(desk, root, tmp_path)

    expected = OPTIONS | {"image": "/srv/b\u00e4ckup\\alpha.img"}
    assert {"metrics": "/var/lib/lukshook.prom", "volumes": {"offsite": expected}} == table
    assert [("alpha", "0"), ("monitor", "0")] == re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", again, re.MULTILINE)
    assert KEY not in said + again
    assert "rotated\n" == (root / "etc/lukshook/offsite.key").read_text()
    assert [0o600, 0o600] == [file.stat().st_mode & 0o777 for file in (config, root / "etc/lukshook/offsite.key")]
    rules = root / "etc/prometheus/rules/lukshook.rules.yml"
    assert (roots.PROJECT / "examples/monitoring/lukshook.rules.yml").read_bytes() == rules.read_bytes()
    assert_units(root / "etc/systemd/system")
    done = subprocess.run([*inside(root), "lukshook", "status", "--json"], capture_output=True, text=True, check=True)
    assert [expected["image"]] == [volume["image"] for volume in json.loads(done.stdout)]


def assert_units(folder: Path) -> None:
    """The timers are enabled, and the service runs the backup in the volume."""
    enabled = {
        link.name: link.readlink().name
        for link in (folder / "timers.target.wants").iterdir()
        if "lukshook" in link.name
    }
    assert {
        "lukshook-backup-offsite.timer": "lukshook-backup-offsite.timer",
        "lukshook-verify@offsite.timer": "lukshook-verify@.timer",
    } == enabled
    service = (folder / "lukshook-backup-offsite.service").read_text()
    assert f"\nExecStart=/usr/local/bin/lukshook run offsite -- {BACKUP}\n" in service


def test_a_key_that_is_none_is_refused(desk: Desk, root: Path, tmp_path: Path) -> None:
    """A password store that says nothing would otherwise replace nothing by nonsense."""
    (root / "etc/lukshook/offsite.key").unlink()
    with pytest.raises(AssertionError, match="Store keys"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "KEY", "")
        play(desk, root, tmp_path)
    assert not (root / "etc/lukshook/offsite.key").exists()


def test_the_example_is_understood(desk: Desk) -> None:
    playbook = str(desk.bin / "ansible-playbook")
    command = [playbook, "--syntax-check", "-i", str(EXAMPLE / "hosts.yml"), str(EXAMPLE / "site.yml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

"""The lines printed for each backup tool."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from lukshook import hosts
from lukshook.errors import Unavailable, Usage

HOSTS = Path(__file__).parents[2] / "hooks"
MOST_LINES = 15


@pytest.fixture(name="filled")
def _filled() -> dict[str, str]:
    return dict(
        hosts.values(
            "offsite",
            command="/opt/lukshook/bin/lukshook",
            image="/srv/untrusted/backup.img",
            mountpoint="/mnt/backupspace",
        )
    )


def test_hosts_are_the_folders() -> None:
    """Every folder of hooks/ is a host, so a new one needs no code."""
    assert tuple(sorted(folder.name for folder in HOSTS.iterdir())) == hosts.hosts()


@pytest.mark.parametrize("host", hosts.hosts())
def test_lines_are_short_and_complete(host: str, filled: dict[str, str]) -> None:
    """Each text is short, has no placeholder left, and calls this very command, or watches this very mount."""
    text = hosts.lines(host, filled)

    assert not re.search("@[A-Z_]+@", text)
    assert MOST_LINES >= text.count("\n")
    assert "/opt/lukshook/bin/lukshook " in text or "BindsTo=mnt-backupspace.mount\n" in text
    assert " offsite" in text


@pytest.mark.parametrize("host", hosts.hosts())
def test_every_host_is_explained(host: str) -> None:
    """Each README says what happens when the hook fails or is skipped, and when the host is killed."""
    headings = [line for line in (HOSTS / host / "README.md").read_text().splitlines() if line.startswith("## ")]

    assert [
        "## Where the lines go",
        "## When opening fails",
        "## When the backup is killed",
        "## When the hooks are skipped",
    ] == headings


@pytest.mark.parametrize("host", hosts.hosts())
def test_configuration_file_is_named_in_every_call(host: str, filled: dict[str, str]) -> None:
    """A configuration file of the user's own is passed on by every call, and only then."""
    own = hosts.lines(host, filled | {"USER_CONFIG_FLAG": "-c /root/own.toml "})

    calls = own.count("/opt/lukshook/bin/lukshook ")
    assert calls == own.count("/opt/lukshook/bin/lukshook -c /root/own.toml ")
    assert "-c /" not in hosts.lines(host, filled).replace("/bin/sh -c", "")


def test_data_is_a_folder_inside_the_volume(filled: dict[str, str]) -> None:
    """What hosts write to lies below the mount point and is not the mount point itself."""
    assert "/mnt/backupspace/data" == filled["DATA"]


def test_configuration_flag_ends_in_a_space() -> None:
    """The flag stands before the command's name, so it brings the space between them."""
    values = hosts.values("a", command="/l", image="/i", mountpoint="/m/", config="/etc/x.toml")

    assert "-c /etc/x.toml " == values["USER_CONFIG_FLAG"]
    assert "/m/data" == values["DATA"]


@pytest.mark.needs("systemd-escape")
@pytest.mark.parametrize("path", ["/mnt/backupspace", "/mnt/back-up/a+b,c_d.e/", "/.hidden/.x", "/"])
def test_mount_unit_is_named_as_systemd_does(path: str) -> None:
    """A unit that waits for the mount has to name it letter by letter."""
    asked = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True
    )
    values = hosts.values("a", command="/l", image="/i", mountpoint=path)

    assert asked.stdout.strip() == values["MOUNT_UNIT"]


def test_unknown_host_is_answered_with_the_known_ones(filled: dict[str, str]) -> None:
    """The hint lists every host there is."""
    with pytest.raises(Usage, match=re.escape('no template for host "../borg"')) as raised:
        hosts.lines("../borg", filled)

    assert f"known hosts: {', '.join(hosts.hosts())}" == raised.value.hint


@pytest.mark.parametrize("path", ["/mnt/my disk", "/mnt/100%", "/mnt/$HOME", "/mnt/{x}", "/mnt/a'b", "/mnt/a\nb"])
def test_paths_some_host_would_misread_are_refused(path: str) -> None:
    """A space ends a word in rsnapshot, a percent sign a line in cron, braces are borgmatic's."""
    with pytest.raises(Usage, match="does not accept"):
        hosts.values("offsite", command="/bin/lukshook", image="/i", mountpoint=path)


def test_lines_are_found_below_the_prefix_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: dict[str, str]
) -> None:
    """A wheel puts the templates in PREFIX/share, wherever PREFIX is: /usr, a virtual environment, a home."""
    shutil.copytree(HOSTS, tmp_path / "share/lukshook/hooks")
    module = tmp_path / "lib/python3.11/site-packages/lukshook/hostlines.py"
    expected = hosts.lines("rsync", filled)
    monkeypatch.setattr(hosts, "__file__", str(module))

    assert tmp_path / "share/lukshook/hooks/rsync/rsync.sh" == hosts.template("rsync")
    assert expected == hosts.lines("rsync", filled)


def test_installation_without_the_templates_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is one line and a hint."""
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "a/b/c/hostlines.py"))

    with pytest.raises(Unavailable, match="not installed"):
        hosts.hosts()


def test_wheel_carries_the_templates() -> None:
    """The folder is shared data of the wheel, at the place where `hostlines` looks for it."""
    project = tomllib.loads((HOSTS.parent / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert "share/lukshook/hooks" == wheel["shared-data"]["hooks"]


@pytest.mark.parametrize("host", [h for h in hosts.hosts() if hosts.template(h).suffix == ".sh"])
def test_shell_lines_parse(host: str, filled: dict[str, str]) -> None:
    """The shell accepts every script as it is printed."""
    done = subprocess.run(["sh", "-n"], input=hosts.lines(host, filled), text=True, capture_output=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("host", ["rsnapshot", "rsnapshot-preexec"])
def test_rsnapshot_words_are_separated_by_tabs(host: str, filled: dict[str, str]) -> None:
    """Spaces in place of TABs are the commonest mistake in rsnapshot.conf."""
    (line,) = (line for line in hosts.lines(host, filled).splitlines() if "snapshot_root" in line)

    assert "\t" in line.removeprefix("#").strip()
    assert " " not in line.removeprefix("#").strip()


@pytest.mark.parametrize(
    ("status", "after", "expected"),
    [
        (0, 0, (0, "")),
        (23, 0, (23, "--failed")),
        (0, 71, (71, "")),
    ],
)
def test_shell_script_closes_and_keeps_the_status(
    tmp_path: Path, filled: dict[str, str], status: int, after: int, expected: tuple[int, str]
) -> None:
    """The script closes once, says whether the backup failed, and ends with the status of what failed."""
    calls = tmp_path / "calls"
    command = _script(tmp_path / "lukshook", f'echo "$*" "" >>{calls}; test "$1" = before-backup || exit {after}')
    _script(tmp_path / "rsync", f"exit {status}")
    script = hosts.lines("shell", filled | {"LUKSHOOK": str(command)})

    process = subprocess.Popen(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})

    user = f"offsite --user-pid {process.pid}"
    assert expected[0] == process.wait()
    before, last = (line.rstrip() for line in calls.read_text().splitlines())
    assert (f"before-backup {user}", f"after-backup {user} {expected[1]}".rstrip()) == (before, last)


def test_shell_script_does_not_back_up_when_opening_failed(tmp_path: Path, filled: dict[str, str]) -> None:
    """Nothing is written to the bare mount point."""
    command = _script(tmp_path / "lukshook", 'test "$1" = after-backup || exit 77')
    _script(tmp_path / "rsync", f"touch {tmp_path}/ran")
    script = hosts.lines("shell", filled | {"LUKSHOOK": str(command)})

    done = subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)

    assert (77, False) == (done.returncode, (tmp_path / "ran").exists())


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path

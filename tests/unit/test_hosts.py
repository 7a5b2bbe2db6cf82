"""The lines printed for each backup tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import hosts
from lukshook.cli import hooks as cli_hooks
from lukshook.cli.main import App
from lukshook.errors import Unavailable, Usage
from lukshook.store import disk
from lukshook.system import installed, kernel
from lukshook.system.command import SystemRunner
from support.volume import CliVolume

HOSTS = Path(__file__).parents[2] / "hooks"
MOST_LINES = 15


#: Of the disk that the image lies on.
DISK = hosts.disk_values("/dev/disk/by-uuid/8c1a-0f", "/srv/untrusted")


@pytest.fixture(name="filled")
def _filled() -> dict[str, str]:
    values = hosts.values(
        "offsite",
        command="/opt/lukshook/bin/lukshook",
        image="/srv/untrusted/backup.img",
        mountpoint="/mnt/backupspace",
    )
    return {**values, **DISK}


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
def test_every_host_says_whether_its_lines_were_run(host: str, filled: dict[str, str]) -> None:
    """In the list, in its row of the documentation, in its README and, where they were not run, in the lines."""
    about = hosts.about(host)
    assert about.summary
    assert bool(about.tried) != bool(about.not_run)
    rows = (HOSTS.parent / "docs/tools.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith("|") and f"(../hooks/{host}/README.md)" in row][:1]
    readme = (HOSTS / host / "README.md").read_text()
    not_run = [bool(about.not_run)] * 3
    said = ("*not run*" in row, "Not run by us" in hosts.lines(host, filled), "Nobody has run these lines" in readme)
    assert not_run == list(said)


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


@pytest.mark.parametrize("host", hosts.hosts())
def test_folders_of_ones_own_are_named_in_every_call(host: str) -> None:
    """A job that has not the variables would look into the usual folders, and find nothing open."""
    given = {"LUKSHOOK_RUN_DIR": "/srv/own/run", "LUKSHOOK_STATE_DIR": "/srv/own/state"}
    values = hosts.values("offsite", command="/l/lukshook", image="/i", mountpoint="/m", folders=given)
    text = hosts.lines(host, {**values, **DISK})

    calls = text.count("/l/lukshook ")
    assert calls or "BindsTo=" in text
    assert calls == text.count(
        "/usr/bin/env LUKSHOOK_RUN_DIR=/srv/own/run LUKSHOOK_STATE_DIR=/srv/own/state /l/lukshook "
    )
    if hosts.template(host).suffix == ".sh":
        assert 0 == subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode
    with pytest.raises(Usage, match="does not accept"):
        hosts.values("a", command="/l", image="/i", mountpoint="/m", folders={"LUKSHOOK_RUN_DIR": "/my folder"})


def test_variables_of_the_caller_are_in_the_lines(tmp_path: Path) -> None:
    """The job runs with another environment than the user who asks for the lines."""
    volume = CliVolume(tmp_path, "auto")
    volume.configure()

    (line,) = (line for line in volume.do("hooks", "cron", "offsite").splitlines() if not line.startswith("#"))

    folders = f"LUKSHOOK_RUN_DIR={volume.run_folder} LUKSHOOK_STATE_DIR={volume.state_folder}"
    assert f"/usr/bin/env {folders} " in line
    assert f" -c {volume.config} run offsite -- " in line


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
    with pytest.raises(Usage, match=re.escape('there are no lines for the backup tool "../borg"')) as raised:
        hosts.lines("../borg", filled)

    assert f"known tools: {', '.join(hosts.hosts())}" == raised.value.hint


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
    monkeypatch.setattr(installed, "_ABOVE", tuple(module.parents))

    assert tmp_path / "share/lukshook/hooks/rsync/rsync.sh" == hosts.template("rsync")
    assert expected == hosts.lines("rsync", filled)


def test_installation_without_the_templates_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is one line and a hint."""
    monkeypatch.setattr(installed, "_ABOVE", tuple((tmp_path / "a/b/c/hostlines.py").parents))

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


VERSIONED = [host for host in hosts.hosts() if hosts.versions(host)]


@pytest.mark.parametrize("host", VERSIONED)
def test_lines_of_every_version_are_short_and_complete(host: str, filled: dict[str, str]) -> None:
    """The templates are those that versions.toml names, newest first, and each names this very command."""
    known = hosts.versions(host)
    assert known is not None
    firsts = [each.first for each in known.lines]
    assert sorted(firsts, reverse=True) == firsts
    others = {"README.md", hosts.ABOUT, hosts.WARNINGS, hosts.VERSIONS}
    assert {each.template for each in known.lines} == {file.name for file in (HOSTS / host).iterdir()} - others
    own = filled | {"USER_CONFIG_FLAG": "-c /root/own.toml "}
    for each in known.lines:
        text = hosts.lines(host, own, each.first)
        assert MOST_LINES >= text.count("\n")
        assert not re.search("@[A-Z_]+@", text)
        assert text.count("/opt/lukshook/bin/lukshook ") == text.count("-c /root/own.toml ") >= 1


@pytest.mark.parametrize(
    ("version", "template"),
    [
        *(("1.5.12", "config-1.7.yaml"), ("1.7.7", "config-1.7.yaml"), ("1.8.0", "config-1.8.yaml")),
        *(("1.9.14", "config-1.8.yaml"), ("2.0", "config.yaml"), ("2.1.10", "config.yaml"), ("3.0", "config.yaml")),
    ],
)
def test_lines_are_those_of_the_version(version: str, template: str) -> None:
    """`commands:` came with borgmatic 2.0, options without sections with 1.8."""
    assert template == hosts.template("borgmatic", hosts.parsed(version)).name
    assert "config.yaml" == hosts.template("borgmatic").name


@pytest.mark.parametrize("text", ["", "2", "1.x", "1.9\n", "\u0661.\u0669", "1..9"])
def test_what_is_no_version(text: str) -> None:
    """One line and a hint."""
    with pytest.raises(Usage, match="is not a version"):
        hosts.parsed(text)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo 1.9.14", (1, 9, 14)),
        ("echo borgmatic 2.1.10.dev0", (2, 1, 10)),
        *(("exit 1", None), ("echo nothing", None), ("echo 1.9.14; exit 3", None)),
    ],
)
def test_installed_version_is_what_the_program_says(tmp_path: Path, body: str, expected: hosts.Version | None) -> None:
    """The first on the PATH is asked; one that fails says nothing."""
    _script(tmp_path / "borgmatic", f'test "$1" = --version || exit 9; {body}')

    assert expected == hosts.installed("borgmatic", SystemRunner(), f"relative:{tmp_path}")


def test_program_that_is_none_says_no_version(tmp_path: Path) -> None:
    """The kernel cannot start it."""
    (tmp_path / "borgmatic").write_bytes(b"\0")
    (tmp_path / "borgmatic").chmod(0o755)

    assert hosts.installed("borgmatic", SystemRunner(), str(tmp_path)) is None


def test_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and `hooks` do not wait for ever."""
    monkeypatch.setattr(hosts, "_ANSWER_SECONDS", 0.2)
    _script(tmp_path / "borgmatic", "sleep 60; echo 1.9.14")

    assert hosts.installed("borgmatic", SystemRunner(), str(tmp_path)) is None


def test_program_that_others_can_replace_is_not_started(tmp_path: Path) -> None:
    """root would run what another user wrote."""
    _script(tmp_path / "borgmatic", f"touch {tmp_path}/ran; echo 1.9.14")
    (tmp_path / "borgmatic").chmod(0o777)

    assert hosts.installed("borgmatic", SystemRunner(), str(tmp_path)) is None
    assert not (tmp_path / "ran").exists()


def test_host_without_versions_is_not_asked(tmp_path: Path) -> None:
    """Its lines are the same for all."""
    assert hosts.versions("rsync") is None
    assert hosts.installed("rsync", SystemRunner(), str(tmp_path)) is None


SECTION = "hooks:\n    before_everything: [/usr/bin/lukshook before-backup offsite]\n"
FLAT = "repositories: []\nbefore_everything:\n    - /usr/bin/lukshook before-backup offsite\n"
COMMANDS = "commands:\n    - before: configuration\n      run: [lukshook before-backup offsite]\n"
PER_REPOSITORY = "    before_backup: [echo, lukshook before-backup offsite]\n"


@pytest.mark.parametrize(
    ("version", "text", "expected"),
    [
        *(("1.7.7", SECTION, ()), ("1.9.14", FLAT, ()), ("2.1.10", COMMANDS, ())),
        ("1.9.14", COMMANDS, ("commands: needs borgmatic 2.0, and borgmatic 1.9.14 refuses",)),
        ("1.7.7", COMMANDS, ("commands: needs borgmatic 2.0, and borgmatic 1.7.7 refuses",)),
        ("1.7.7", FLAT, ("options outside of sections need borgmatic 1.8, and borgmatic 1.7.7 refuses",)),
        ("1.8.14", SECTION, ("the section hooks: is for borgmatic 1.7, and deprecated in borgmatic 1.8.14",)),
        ("2.0.13", FLAT, ("are deprecated in borgmatic 2.0.13, and run for create only",)),
        *(("1.9.14", PER_REPOSITORY, ("once per repository",)), (None, PER_REPOSITORY, ("once per repository",))),
        *((None, COMMANDS, ()), (None, FLAT, ()), ("1.9.14", "#commands:\n", ())),
    ],
)
def test_lines_for_another_version_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, text: str, expected: tuple[str, ...]
) -> None:
    """`check` names lines that the installed version refuses or will drop; without a version it cannot know."""
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr(
        hosts, "found_at", lambda patterns, home: [tmp_path / "config.yaml"] * ("borgmatic" in patterns[0])
    )
    _script(tmp_path / "borgmatic", f"echo {version}" if version else "exit 1")

    found = [said for said, _ in hosts.warnings("/mnt/x", SystemRunner(), {"PATH": str(tmp_path)})]

    assert len(expected) == len(found), found
    assert all(part in said for part, said in zip(expected, found, strict=True))


LAZY = "use_lazy_deletes\t1\n"
PREEXEC = "cmd_preexec\t/usr/bin/lukshook before-backup offsite\n"


@pytest.mark.parametrize(
    ("text", "lazy", "home"),
    [
        *((LAZY + PREEXEC, True, True), (PREEXEC + LAZY, True, True), (PREEXEC + "#\n" + LAZY, True, True)),
        *((f"snapshot_root\t/mnt/x/data/\n{LAZY}", True, True), (f"snapshot_root\t/mnt/xy/\n{LAZY}", False, False)),
        *((LAZY, False, False), ("# lukshook\n" + LAZY, False, False), (PREEXEC, False, True), ("", False, False)),
        *((PREEXEC + "use_lazy_deletes\t0\n", False, True), (PREEXEC + "#" + LAZY, False, True)),
    ],
)
def test_rsnapshot_is_warned_of_only_where_it_backs_up_to_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lazy: bool, home: bool
) -> None:
    """Many machines have it for something else, and other tools do not need HOME."""
    (tmp_path / "rsnapshot.conf").write_text(text)
    monkeypatch.setattr(
        hosts, "found_at", lambda patterns, home: [tmp_path / "rsnapshot.conf"] * ("rsnapshot" in patterns[0])
    )

    for environment, home_is_missing in (({}, home), ({"HOME": "/root"}, False)):
        said = " ".join(said for said, _ in hosts.warnings("/mnt/x", SystemRunner(), environment))
        assert (lazy, home_is_missing) == ("use_lazy_deletes" in said, "HOME is not set" in said)


@pytest.mark.parametrize("text", ["hooks:\n" + "\n" * 100_000, "on_error:" + " " * 100_000, "  - b\n" * 50_000])
def test_looking_through_a_long_configuration_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A pattern that tries all ways to split blank lines took a minute."""
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr(
        hosts, "found_at", lambda patterns, home: [tmp_path / "config.yaml"] * ("borgmatic" in patterns[0])
    )
    started = time.monotonic()

    assert 1 >= len(list(hosts.warnings("/mnt/x", SystemRunner(), {"PATH": str(tmp_path)})))
    assert 10 > time.monotonic() - started


@pytest.mark.parametrize(
    ("body", "given", "expected", "said"),
    [
        ("echo 1.9.14", None, (1, 9, 14), ""),
        ("echo 1.9.14", "2.1", (2, 1), ""),
        ("exit 1", None, None, "warning: the version of borgmatic is not known: these lines are for borgmatic 2.0"),
    ],
)
def test_lines_are_chosen_by_the_installed_version_or_the_option(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    given: str | None,
    expected: hosts.Version | None,
    said: str,
) -> None:
    """Without a version the newest lines are printed, and a warning says so."""
    _script(tmp_path / "borgmatic", body)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert expected == cli_hooks._version(_app(tmp_path), "borgmatic", given)
    assert capsys.readouterr().err.startswith(said)


def test_a_version_of_a_host_that_has_one_set_of_lines_is_refused(tmp_path: Path) -> None:
    """Else one would believe that it matters."""
    assert cli_hooks._version(_app(tmp_path), "rsync", None) is None
    with pytest.raises(Usage, match="the same for every version"):
        cli_hooks._version(_app(tmp_path), "rsync", "1.0")


def _app(folder: Path) -> App:
    return App(folder / "none.toml", dry_run=True, verbose=False)


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("spoilt", [False, True])
def test_systemd_takes_the_service_of_a_removable_disk(tmp_path: Path, filled: dict[str, str], spoilt: bool) -> None:
    """It says nothing, and something where a line is not right; the disk is named as systemd names it."""
    text = hosts.lines("removable-disk", filled | {"LUKSHOOK": "/bin/true"})
    unit = tmp_path / "lukshook-offsite-disk.service"
    unit.write_text(text.replace("Type=oneshot", "Type=onshot") if spoilt else text)

    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert spoilt == bool(done.stderr), done.stderr
    asked = ["systemd-escape", "--path", "--suffix=device", "/dev/disk/by-uuid/8c1a-0f"]
    device = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert 3 == text.count(f"={device}\n")


#: Stand-ins for what mounts the disk. The file "mounted" says what is mounted where it belongs: "ours", or "gone", a
#: disk that was pulled out. The file "open" is there while a volume on it is, "stuck" where that cannot be closed.
MOUNTING = {
    "findmnt": "grep -q ours mounted 2>/dev/null",
    "mountpoint": "test -e mounted",
    "umount": 'echo "umount $*" >>log; test ! -e open && test ! -e stuck && rm mounted',
    "mkdir": ":",
    "mount": 'echo "mount $*" >>log; echo ours >mounted',
    "lukshook": 'echo "lukshook $*" >>log; rm open',
}
UMOUNT, CLOSE = "umount /srv/untrusted\n", "lukshook close offsite\n"
MOUNT = "mount -o nodev,nosuid,noexec /dev/disk/by-uuid/8c1a-0f /srv/untrusted\n"


@pytest.mark.parametrize(
    ("there", "steps"),
    [
        ({}, MOUNT),
        ({"mounted": "ours"}, ""),
        ({"mounted": "gone"}, UMOUNT + MOUNT),
        ({"mounted": "gone", "open": ""}, UMOUNT + CLOSE + UMOUNT + MOUNT),
        ({"mounted": "gone", "open": "", "stuck": ""}, UMOUNT + CLOSE + UMOUNT),
    ],
    ids=("nothing", "the disk itself", "a disk that is gone", "a volume is open on it", "it cannot be closed"),
)
def test_a_removable_disk_takes_the_place_of_one_that_was_pulled_out(
    tmp_path: Path, filled: dict[str, str], there: dict[str, str], steps: str
) -> None:
    """Also where lukshook was killed before it could close the volume. Nothing is mounted over what is left there."""
    for name, body in MOUNTING.items():
        _script(tmp_path / name, body)
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    text = hosts.lines("removable-disk", filled | {"LUKSHOOK": str(tmp_path / "lukshook")})
    found = re.search("^ExecStartPre=/bin/sh -c '(.*)'$", text, re.MULTILINE)
    assert found

    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", found[1]], cwd=tmp_path, env=environment, check=False)

    log = tmp_path / "log"
    assert steps == (log.read_text() if log.exists() else "")
    assert ("stuck" in there) == bool(done.returncode)
    assert ("stuck" in there) != ((tmp_path / "mounted").read_text().strip() == "ours")


def test_the_disk_of_an_image_is_named_by_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root file system is no removable disk; nor is one that is not mounted now."""
    links = tmp_path / "by-uuid"
    links.mkdir()
    (tmp_path / "sdx1").touch()
    (links / "8c1a-0f").symlink_to(tmp_path / "sdx1")
    monkeypatch.setattr(disk, "_BY_UUID", links)
    mount = kernel.Mount("8:1", "/", os.fspath(tmp_path), "ext4", os.fspath(tmp_path / "sdx1"), frozenset())
    monkeypatch.setattr(kernel, "mount_above", lambda path: mount)

    assert disk.Disk(links / "8c1a-0f", tmp_path) == disk.of(tmp_path / "deep/offsite.img")
    for wrong in (evolve(mount, target="/"), evolve(mount, source="server:/export")):
        monkeypatch.setattr(kernel, "mount_above", lambda path, found=wrong: found)
        with pytest.raises(Unavailable, match="not lie on a mounted disk of its own"):
            disk.of(tmp_path / "offsite.img")

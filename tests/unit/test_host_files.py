"""`check` reads the configuration of the backup tools, and says what will go wrong."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from lukshook import hosts
from lukshook.host_files import judged
from lukshook.host_files.judged import Target
from lukshook.host_files.kinds import KINDS, SCRIPT_FILES, SCRIPTS

M, DATA = "/mnt/x", "/mnt/x/data"


@pytest.fixture(name="root", autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no files but those of the test."""
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    return tmp_path


def write(root: Path, place: str, text: str) -> None:
    file = root / place.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def said(root: Path, volume: str = "offsite") -> list[str]:
    """What `check` says, without the folder of the test."""
    target = Target(volume, Path(M), root / "home")
    return [f"{text} [{hint}]".replace(str(root), "") for text, hint in judged.warnings(target)]


def first_place(kind: str) -> str:
    """A file that is read for that kind."""
    places = SCRIPT_FILES if kind == SCRIPTS else hosts.about(kind).files
    return places[0].replace("~", "home").replace("*", "toml")


def filled(host: str, version: str = "") -> str:
    values = hosts.values("offsite", command="/usr/bin/lukshook", image="/srv/i", mountpoint=M)
    return hosts.lines(host, values, hosts.parsed(version) if version else None)


#: Where a user puts the lines that are printed.
PRINTED = {
    "autorestic": "/usr/local/sbin/autorestic-offsite",
    "borg": "/usr/local/sbin/borg-offsite",
    "borgmatic": "/etc/borgmatic/config.yaml",
    "cron": "/etc/cron.d/lukshook-offsite",
    "restic": "/usr/local/sbin/restic-offsite",
    "resticprofile": "/etc/resticprofile/profiles.toml",
    "rsnapshot": "/etc/cron.d/rsnapshot",
    "rsync": "/usr/local/sbin/rsync-offsite",
    "rustic": "/etc/rustic/offsite.toml",
    "shell": "/usr/local/sbin/backup",
    "systemd": "/etc/systemd/system/borgmatic.service.d/lukshook.conf",
}


@pytest.mark.parametrize("host", PRINTED)
def test_the_printed_lines_are_right(root: Path, host: str) -> None:
    """Who follows us is not warned."""
    write(root, PRINTED[host], filled(host))

    assert [] == said(root)


@pytest.mark.parametrize("version", ["1.7", "1.8", "2.0"])
def test_the_printed_lines_of_borgmatic_are_right(root: Path, version: str) -> None:
    write(root, "/etc/borgmatic.d/a.yaml", filled("borgmatic", version))

    assert [] == said(root)


def test_rsnapshot_with_its_hooks_misses_the_higher_intervals(root: Path) -> None:
    intervals = "retain\talpha\t6\nretain\tbeta\t7\n"
    write(root, "/etc/rsnapshot.conf", filled("rsnapshot-preexec") + "retain\talpha\t6\n")
    assert [] == said(root)

    write(root, "/etc/rsnapshot.conf", filled("rsnapshot-preexec") + intervals)
    (fault,) = said(root)
    assert "/etc/rsnapshot.conf: its hooks do not open volume offsite for: beta [" in fault

    write(root, "/etc/cron.d/rsnapshot", "0 3 * * * root lukshook run offsite -- rsnapshot beta\n")
    assert [] == said(root)


BORGMATIC = "repositories: [{{path: {}}}]\ncommands:\n- before: configuration\n  run: [lukshook before-backup {}]\n"
CLOSES = "- after: configuration\n  run: [lukshook after-backup offsite]\n"
FAULTS: dict[str, tuple[str, str, str]] = {
    "elsewhere": (
        "/etc/borgmatic/config.yaml",
        BORGMATIC.format("/srv/borg", "offsite") + CLOSES,
        "but writes to /srv/borg [",
    ),
    "not in data": (
        "/etc/borgmatic/config.yaml",
        BORGMATIC.format(f"{M}/borg", "offsite") + CLOSES,
        f"{M}/borg is in the mount point of volume offsite, but not in its folder data [put it into {DATA}/, ",
    ),
    "no hook": ("/etc/borgmatic.d/b.yml", f"repositories: [{DATA}/borg]\n", "nothing in it opens volume offsite ["),
    "another volume": (
        "/etc/borgmatic.d/b.yml",
        BORGMATIC.format(f"{DATA}/borg", "offsite2") + CLOSES.replace("offsite", "offsite2"),
        "nothing in it opens volume offsite [",
    ),
    "never closed": (
        "/etc/borgmatic/config.yaml",
        BORGMATIC.format(f"{DATA}/borg", "offsite"),
        "it opens volume offsite, and nothing in it closes",
    ),
    "no prune": (
        "/etc/borgmatic/config.yaml",
        BORGMATIC.format(f"{DATA}/borg", "offsite") + "  when: [create]\n" + CLOSES,
        "its hooks do not open volume offsite for: prune, compact, check [",
    ),
    "1.7 in sections": (
        "/etc/borgmatic/config.yaml",
        f"location: {{repositories: [{DATA}/borg]}}\nhooks: {{before_backup: [lukshook before-backup offsite]}}\n",
        "it opens volume offsite, and nothing in it closes",
    ),
    "root of rsnapshot": ("/etc/rsnapshot.conf", f"snapshot_root\t{DATA}/\nno_create_root\t1\n", "nothing in it opens"),
    "hooks of a section": (
        "/etc/resticprofile/profiles.toml",
        f"""[home]\nrepository = "local:{DATA}/r"\n[home.backup]\nrun-before = "lukshook before-backup offsite"
run-finally = ["lukshook after-backup offsite"]
""",
        "home: its hooks do not open volume offsite for: forget, prune, check [",
    ),
    "a profile without hooks": (
        "/etc/resticprofile/profiles.json",
        f'{{"version": "2", "profiles": {{"home": {{"repository": "local:{DATA}/r"}}}}}}',
        f"home: it writes to {DATA}/r, and nothing in it opens",
    ),
    "forget of autorestic": (
        "home/.autorestic.yml",
        f"""backends: {{hdd: {{type: local, path: {DATA}/r}}}}
locations:
  home:
    to: hdd
    hooks: {{before: [lukshook before-backup offsite], after: [lukshook after-backup offsite]}}
""",
        "home: its hooks do not open volume offsite for: forget, check, exec [",
    ),
    "too late": (
        "/etc/rustic/a.toml",
        f'[repository]\nrepository = "{DATA}/r"\n[backup.hooks]\nrun-before = ["lukshook before-backup offsite"]\n',
        "only [global.hooks] run before rustic opens the repository [",
    ),
    "script": (
        "/usr/local/sbin/backup",
        f"#!/bin/sh\nexport RESTIC_REPOSITORY={DATA}/r\nrestic backup /home\n",
        f"it writes to {DATA}/r, and nothing in it opens volume offsite [lukshook hooks shell offsite prints",
    ),
    "unit": (
        "/etc/systemd/system/restic.service",
        f"[Service]\nExecStart=/usr/bin/restic -r {DATA}/r backup /home\n",
        "nothing in it opens volume offsite",
    ),
    "cron": ("/etc/cron.d/b", f"1 2 * * * root rsync -a /home/ {DATA}/h/\n", "nothing in it opens volume offsite"),
    "two jobs as one user": (
        "/usr/local/sbin/backup",
        f"""#!/bin/sh
(lukshook before-backup offsite; rsync -a /a {DATA}/a/; lukshook after-backup offsite) &
(lukshook before-backup offsite; rsync -a /b {DATA}/b/; lukshook after-backup offsite) &
wait
""",
        "2 jobs in one script count as one user, some in the background",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_will_go_wrong_is_said(root: Path, fault: str) -> None:
    place, text, expected = FAULTS[fault]
    write(root, place, text)

    found = said(root)

    assert any(expected in line for line in found), found
    assert all(line.startswith(f"/{place.lstrip('/')}: ") for line in found)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("/etc/cron.d/b", "1 2 * * * root lukshook run offsite -- borgmatic create prune\n"),
        (
            "/etc/systemd/system/borgmatic.service.d/own.conf",
            "[Service]\nExecStartPre=+lukshook before-backup offsite\n",
        ),
    ],
)
def test_a_tool_that_is_wrapped_needs_no_hooks(root: Path, place: str, text: str) -> None:
    write(root, "/etc/borgmatic/config.yaml", f"repositories: [{DATA}/borg]\n")
    assert 1 == len(said(root))

    write(root, place, text)

    assert [] == said(root)


def test_what_is_not_about_the_volume_is_left_alone(root: Path) -> None:
    """Most machines have backups that lukshook has nothing to do with."""
    write(root, "/etc/borgmatic/config.yaml", "repositories: [/srv/borg, 'ssh://a@b/./c']\n: {[ no yaml\n")
    write(root, "/etc/rsnapshot.conf", "snapshot_root\t/srv/\n")
    write(root, "/usr/local/bin/other", "#!/bin/sh\nrestic -r /mnt/xy/data backup /home\n")
    write(root, "/usr/local/bin/program", f"\0restic {DATA}")

    assert [] == said(root)


def test_includes_are_followed(root: Path) -> None:
    """Anchors, merged files, other tags; and a file that includes itself."""
    write(root, "/etc/borgmatic/common.yaml", BORGMATIC.format(f"{DATA}/borg", "offsite") + CLOSES)
    write(root, "/etc/borgmatic/config.yaml", "# lukshook\n<<: !include common.yaml\nkeep_daily: !retain 7\n")
    assert [] == said(root)

    write(root, "/etc/borgmatic/list.yaml", f"- path: {M}/borg\n")
    write(root, "/etc/borgmatic/config.yaml", "# lukshook\nrepositories: !include list.yaml\n")
    assert any("nothing in it opens" in line for line in said(root))

    write(root, "/etc/borgmatic/config.yaml", "# lukshook\n<<: !include config.yaml\nrepositories: []\n")
    assert [] == said(root)


ODD = (
    "lukshook: [",
    "- lukshook",
    "lukshook",
    "a: &a [*a]\nb: lukshook",
    "lukshook: !!python/object:os.system x",
    "[lukshook]",
)
BOMB = "# lukshook\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" if n else "a0: &a0 x\n" for n in range(12)
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", [*ODD, BOMB, "repositories: 7\ncommands: {a: 1}\nhooks: [lukshook]\nlocations: 3", "lukshook = 1\n"]
)
def test_an_odd_file_is_at_most_a_warning(root: Path, kind: str, text: str) -> None:
    """`check` never ends because of a file of another tool."""
    write(root, first_place(kind), text)

    assert all("does not understand this file" in line for line in said(root))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["lukshook run " * 15_000, f"rsync {DATA}/ & " * 10_000, "lukshook\n" + "& " * 100_000]
)
def test_a_long_file_is_read_in_a_moment(root: Path, kind: str, text: str) -> None:
    """A pattern that tries all ways to split a line would take minutes."""
    write(root, first_place(kind), f"{text}\n")
    started = time.process_time()

    said(root)

    assert 10 > time.process_time() - started


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("/etc/rsnapshot.conf", "include_conf\trsnapshot.conf\n"),
        ("/etc/borgmatic/config.yaml", "- !include config.yaml\n"),
    ],
)
def test_a_file_that_includes_itself_many_times(root: Path, place: str, line: str) -> None:
    """Each level would read it as often again."""
    write(root, place, f"# lukshook\n{line * 40}")
    started = time.process_time()

    said(root)

    assert 10 > time.process_time() - started


def test_folders_and_links_to_nowhere_are_no_files(root: Path) -> None:
    (root / "etc/borgmatic/config.yaml").mkdir(parents=True)
    (root / "etc/rsnapshot.conf").symlink_to("nowhere")

    assert [] == said(root)


def test_without_the_library_it_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for a file that may be about the volume."""
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    write(root, "/etc/borgmatic.d/a.yaml", "repositories: [/srv/borg]\n")
    assert [] == said(root)

    write(root, "/etc/borgmatic/config.yaml", f"repositories: [{DATA}/borg]\n")
    (line,) = said(root)
    assert "it is not read: that needs the library PyYAML [install the extra yaml: docs/install.md" in line

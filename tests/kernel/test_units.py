"""Our units for systemd, run by systemd: on dm-crypt, with udev, a journal, D-Bus and logind."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.guest import PROJECT, Guest
from support.unit_volume import CONFIG, SET_UP, UNITS, UnitVolume

pytestmark = [
    pytest.mark.outside,
    pytest.mark.needs("linux.uml", "systemctl", "udevadm", "dbus-daemon", "borgmatic", "borg", "rsync", "dmsetup"),
]
SHIPPED = Path("/lib/systemd/system/borgmatic.service")
BORGMATIC = """location:
    source_directories: [/etc/lukshook]
    repositories: [/mnt/back-up/data/borg]
storage:
    unknown_unencrypted_repo_access_is_ok: true
retention:
    keep_daily: 7
consistency:
    checks: [{name: disabled}]
"""
LONG = "cd /mnt/back-up/data; echo >/job/$1.begun; sleep 300 & sleep 300"
#: Services by how they end: what they run, their settings, what is done to them, and what systemd calls that.
ENDINGS = {
    "fails": ("exit 3", "", "", "exit-code"),
    "killed": (LONG, "", "systemctl kill --kill-whom=main --signal=KILL", "signal"),
    "stopped": (LONG, "Type=simple", "systemctl stop", "success"),
    "timeout": (LONG, "Type=simple\nRuntimeMaxSec=2", "", "timeout"),
}


@pytest.fixture(name="house", scope="module")
def _house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnitVolume]:
    with Guest(disk=tmp_path_factory.mktemp("units") / "disk", systemd=True) as guest:
        house = UnitVolume(guest)
        house.create()
        for name, (script, settings, _, _) in ENDINGS.items():
            house.write(f"/job/{name}", script)
            house.write(f"{UNITS}/job@{name}.service.d/settings.conf", f"[Service]\n{settings}\n")
        house.write(f"{UNITS}/job@.service", sandboxed("/bin/sh /job/%i %i"))
        house.drop_in("job@.service")
        yield house


def sandboxed(command: str) -> str:
    """The sandbox of the unit that comes with Debian's borgmatic, around another command."""
    lines = SHIPPED.read_text().splitlines()
    kept = [line for line in lines if not re.match("Exec|Condition|Wants|After", line)]
    return "\n".join([*kept, f"ExecStart={command}", ""])


def test_the_sandbox_is_one(house: UnitVolume) -> None:
    """The service has the volume, and neither devices nor rights: what follows would prove nothing else."""
    house.write(
        "/job/sandbox",
        """findmnt --noheadings --output=SOURCE /mnt/back-up
echo kept >/mnt/back-up/data/file
grep CapBnd /proc/self/status
ls /dev/mapper/lukshook-offsite /dev/loop0 /dev/loop-control
touch /usr/writable
true
""",
    )
    house.sh("systemctl start job@sandbox")

    said = house.journal("--unit=job@sandbox")
    assert "/dev/mapper/lukshook-offsite" in said
    assert re.search(r"CapBnd:\s+0000000000002004", said)
    assert 3 == len(re.findall("ls: cannot access", said))
    assert "Read-only file system" in said
    assert ("done", "") == (house.status()["last_result"], house.what_stands())


@pytest.mark.slow
def test_borgmatic_as_it_is_shipped(house: UnitVolume) -> None:
    """Debian's own unit and the drop-in; only its minute of waiting is taken out."""
    house.write("/etc/borgmatic/config.yaml", BORGMATIC)
    house.sh("lukshook run offsite -- borg init --encryption=none /mnt/back-up/data/borg")
    house.unit("borgmatic.service.d/at-once.conf", "[Service]\nExecStartPre=\n")
    house.drop_in("borgmatic.service")

    house.sh("systemctl start borgmatic || { journalctl --no-pager -u borgmatic; false; }")

    assert ("done", "") == (house.status()["last_result"], house.what_stands())
    listed = house.sh("lukshook run offsite -- borg list --short /mnt/back-up/data/borg")
    assert 1 == len(listed.splitlines())


@pytest.mark.parametrize(
    "name",
    [
        "killed",
        "stopped",
        pytest.param("fails", marks=pytest.mark.slow),
        pytest.param("timeout", marks=pytest.mark.slow),
    ],
)
def test_closed_however_the_service_ends(house: UnitVolume, name: str) -> None:
    """Everything is closed, and the backup does not count as done: also when its process was told to stop."""
    _, _, end, result = ENDINGS[name]
    before = house.status()

    house.sh(f"systemctl start --no-block job@{name}")
    if end:
        house.wait_for(f"test -e /job/{name}.begun")
        house.sh(f"{end} job@{name}")
    house.wait_for(f"systemctl show -p ActiveState job@{name} | grep -Eq 'inactive|failed'")

    assert result == house.show(f"job@{name}", "Result")
    found = house.status()
    assert "failed" == found["last_result"]
    assert [before[what] for what in ("last_success", "unclean")] == [
        found[what] for what in ("last_success", "unclean")
    ]
    assert "" == house.what_stands()


def test_a_failed_start_runs_nothing(house: UnitVolume) -> None:
    """The image is not there: no backup, nothing left, and the reason in the journal."""
    house.write("/job/never", "touch /job/ran")
    house.sh("mv /disk/store/backup.img /disk/store/away")
    earlier = len(house.entries("LUKSHOOK_EXIT=69"))
    house.sh("systemctl start job@never", status=1)
    house.sh("mv /disk/store/away /disk/store/backup.img; test ! -e /job/ran")

    (entry,) = house.entries("SYSLOG_IDENTIFIER=lukshook", "LUKSHOOK_EXIT=69")[earlier:]
    assert "the image /disk/store/backup.img is not there" in entry["LUKSHOOK_REASON"]
    assert "" == house.what_stands()


def test_a_run_is_one_entry_of_the_journal(house: UnitVolume) -> None:
    """With fields to search for; a good run writes nothing else, neither on stdout nor on stderr."""
    house.write("/job/quiet", "true")
    earlier = len(house.entries("LUKSHOOK_VOLUME=offsite"))
    house.sh("systemctl start job@quiet")

    entries = house.entries("LUKSHOOK_VOLUME=offsite")[earlier:]
    assert ["before-backup", "after-backup"] == [entry["LUKSHOOK_COMMAND"] for entry in entries]
    for entry in entries:
        assert ("0", "6", "lukshook") == tuple(entry[k] for k in ("LUKSHOOK_EXIT", "PRIORITY", "SYSLOG_IDENTIFIER"))
        assert 0 < float(entry["LUKSHOOK_SECONDS"]) < 60
    assert [] == house.entries("_SYSTEMD_UNIT=job@quiet.service", "_TRANSPORT=stdout")


def test_a_unit_is_a_user_as_long_as_it_is_active(house: UnitVolume) -> None:
    """Also one without processes: between two of its commands there is none, and systemd removes its cgroup."""
    house.unit(
        "hold.service",
        f"""[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={PROJECT}/.venv/bin/lukshook before-backup offsite
ExecStop={PROJECT}/.venv/bin/lukshook after-backup offsite
""",
    )
    house.sh("systemctl start hold; test ! -d /sys/fs/cgroup/system.slice/hold.service")
    house.sh("lukshook run offsite -- true")
    found = house.status()
    assert ("open", ["hold.service"]) == (found["state"], found["users"])

    house.sh("systemctl stop hold")
    assert "" == house.what_stands()


def test_no_sleep_while_it_is_open(house: UnitVolume) -> None:
    """logind itself refuses; the lock comes and goes with the mount, whoever opened it."""
    house.unit("lukshook-awake-offsite.service", house.lines("systemd-inhibit"))
    house.sh("systemctl enable lukshook-awake-offsite")
    logind = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    blocked = f"busctl get-property {logind} BlockInhibited"
    assert 's ""' == house.sh(blocked).strip()

    house.sh("lukshook open offsite")
    house.wait_for("systemd-inhibit --list | grep lukshook")
    assert 's "shutdown:sleep"' == house.sh(blocked).strip()
    assert "volume offsite is open" in house.sh("systemctl poweroff --check-inhibitors=yes", status=1)
    house.sh("lukshook close offsite")
    house.wait_for(f"{blocked} | grep '\"\"'")
    assert "" == house.what_stands()
    house.sh("systemctl disable lukshook-awake-offsite")


def test_shutdown_closes_before_store_and_network_go(tmp_path: Path) -> None:
    """With one volume opened by hand and used by a job of cron, which systemd does not stop."""
    disk = tmp_path / "disk"
    with Guest(disk=disk, systemd=True) as guest:
        house = UnitVolume(guest)
        house.unit("srv-store.mount", STORE)
        house.sh("truncate -s 128M /disk/store.ext4; mkfs.ext4 -q /disk/store.ext4")
        house.unit("network-card.service", NETWORK)
        house.sh("systemctl start network-card.service srv-store.mount remote-fs.target")
        house.create(CONFIG.replace("/disk/store", "/srv/store"))
        house.unit("lukshook-close-offsite.service", house.lines("systemd-shutdown"))
        house.sh("systemctl enable --now lukshook-close-offsite")
        house.sh("lukshook open offsite; echo kept >/mnt/back-up/data/by-hand")
        guest.start(["lukshook", "run", "offsite", "--", "sh", "-c", JOB_OF_CRON])
        house.wait_for("grep begun /mnt/back-up/data/log")
        opened = house.sh("date +%s")
        guest.start(["systemctl", "poweroff"])
        console = guest.wait_for_end()
    places = [
        console.index(line)
        for line in (
            "Stopping lukshook-close-offsite.service",
            "Stopped lukshook-close-offsite.service",
            "Unmounting srv-store.mount",
            "Stopping network-card.service",
        )
    ]
    assert sorted(places) == places, console
    with Guest(disk=disk) as guest:
        house = UnitVolume(guest)
        house.sh(SET_UP + "mkdir /srv/store; mount -o loop /disk/store.ext4 /srv/store")
        found = house.status()
        assert (True, 0) == (found["last_close"] >= float(opened), found["unclean"])
        assert "kept\nbegun\ntold to stop\n" == house.sh(
            "lukshook run offsite -- cat /mnt/back-up/data/by-hand /mnt/back-up/data/log"
        )


def test_the_example_with_a_sealed_key(house: UnitVolume) -> None:
    """examples/systemd as its README says, only smaller; the key is nowhere to be read. Comes last: another volume."""
    key = install_example(house)
    house.write("/job/scan", SCAN)
    house.unit("backup.service.d/scan.conf", "[Service]\nExecStart=+/bin/sh /job/scan\n")
    house.unit("backup.timer.d/now.conf", "[Timer]\nOnCalendar=\nRandomizedDelaySec=0\nOnActiveSec=0\n")

    house.sh("systemctl start backup.timer")
    house.wait_for("test -s /job/found && systemctl show -p ActiveState backup | grep -Eq 'inactive|failed'", 120)

    assert "success" == house.show("backup", "Result"), house.journal("-u", "backup")
    assert ("done", "") == (house.status()["last_result"], house.what_stands())
    control, *places = house.sh("cat /job/found").splitlines()
    assert [f"/proc/{control}/environ"] == places
    written = house.sh("journalctl --no-pager --all --output=export; cat /etc/credstore.encrypted/offsite")
    assert [] == [form for form in (key, base64.b64decode(key).hex()) if form in written]

    house.sh("systemctl start lukshook-verify@offsite")
    assert "success" == house.show("lukshook-verify@offsite", "Result")
    assert ("intact", "up to date") == (house.status()["last_verify"], house.status()["ledger"])

    house.sh("systemctl start lukshook-drill@offsite")
    assert ("success", "passed", "") == (
        house.show("lukshook-drill@offsite", "Result"),
        house.status()["drill_result"],
        house.what_stands(),
    )

    house.sh("mv /etc/credstore.encrypted/offsite /root/sealed")
    for line in ("LoadCredentialEncrypted=offsite:/root/sealed", "LoadCredential=offsite:/root/offsite.key"):
        house.unit("backup.service.d/scan.conf", f"[Service]\nExecStart=\nExecStart=/bin/true\n{line}\n")
        house.sh("systemctl start backup")
        assert ("done", "") == (house.status()["last_result"], house.what_stands())


def install_example(house: UnitVolume) -> str:
    """Do what the example's README says, with an image of 64 MiB and a home that is empty; the key."""
    example = PROJECT / "examples/systemd"
    config = (example / "config.toml").read_text().replace("500GiB", "64MiB").replace("# ledger", "ledger")
    config += 'fill = "sparse"\nspace = "warn"\n'
    house.sh("mkdir -p /disk/untrusted /srv/untrusted; mount --bind /disk/untrusted /srv/untrusted")
    house.sh("mount -t tmpfs none /home; mount -t tmpfs -o mode=700 none /var/lib/lukshook; umask 077")
    house.write("/etc/lukshook/config.toml", config)
    house.sh(f"ln -sf {PROJECT}/.venv/bin/lukshook /usr/local/bin/; mkdir -p /mnt/backupspace")
    templates = [f"lukshook-{what}@.{kind}" for what in ("verify", "drill") for kind in ("service", "timer")]
    for unit in ("backup.service", "backup.timer", *templates):
        house.unit(unit, (example / unit).read_text())
    readme = (example / "README.md").read_text()
    steps = re.findall(r"^ {4}((?:install -d|lukshook key new|systemd-creds|lukshook create).*)$", readme, re.MULTILINE)
    assert 4 == len(steps)
    house.sh("\n".join(steps))
    return house.sh("cat /root/offsite.key").strip()


#: Which processes have the key in their environment or arguments, after the number of one that has.
SCAN = """test -e /mnt/backupspace/data/etc/passwd || exit 1
env "CONTROL=$(cat /root/offsite.key)" sleep 300 &
sleep 1
echo $! >/job/scanned
grep -alF -f /root/offsite.key /proc/[0-9]*/environ /proc/[0-9]*/cmdline >>/job/scanned
kill $!
mv /job/scanned /job/found
"""
STORE = """[Mount]
What=/disk/store.ext4
Where=/srv/store
Type=ext4
Options=loop,_netdev
"""
NETWORK = """[Unit]
Wants=network.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/true
"""
JOB_OF_CRON = """exec >/mnt/back-up/data/log
trap 'echo told to stop; exit 1' TERM
echo begun
while :; do sleep 0.2; done
"""

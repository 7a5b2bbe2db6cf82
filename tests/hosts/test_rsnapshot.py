"""Real rsnapshot, two intervals, wrapped and with cmd_preexec."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from support.host_volume import HostVolume, need, same
from support.lukshook_process import Done

pytestmark = pytest.mark.hosts

REST = """\
config_version	1.2
cmd_cp	/bin/cp
cmd_rm	/bin/rm
cmd_rsync	/usr/bin/rsync
rsync_long_args	{arguments}
retain	alpha	2
retain	beta	2
lockfile	{home}/rsnapshot.pid
backup	{tree}/	localhost/
"""
Run = Callable[..., Done]
GOOD = "--delete --numeric-ids --relative --delete-excluded --acls --xattrs --hard-links"


def write(house: HostVolume, head: str, arguments: str = GOOD) -> Path:
    """The user's rsnapshot.conf: the printed lines and the rest."""
    config = house.folder / "rsnapshot.conf"
    config.write_text(head + REST.format(arguments=arguments, home=house.folder, tree=house.tree))
    return config


def wrapped(house: HostVolume, interval: str, arguments: str = GOOD) -> Done:
    """Run the printed cron line of *interval*; its comment holds the settings for rsnapshot.conf."""
    lines = house.lines("rsnapshot").splitlines()
    settings = [line.lstrip("# ") for line in lines if line.startswith("#   ")]
    config = write(house, "\n".join(settings) + "\n", arguments)
    (cron,) = (line for line in lines if line.endswith(f"rsnapshot {interval}"))
    command = shlex.split(cron.split("root", 1)[1])
    return house.host(*command[:-1], "-c", config, interval)


def preexec(house: HostVolume, interval: str, arguments: str = GOOD) -> Done:
    """Run rsnapshot itself with the printed lines in its file."""
    return house.host(need("rsnapshot"), "-c", write(house, house.lines("rsnapshot-preexec"), arguments), interval)


def snapshots(house: HostVolume, root: Path) -> list[str]:
    """The snapshots in the volume; compares the newest alpha with the tree."""
    assert 0 == house.lukshook("open", "offsite", "--read-only").returncode
    names = sorted(path.name for path in root.iterdir() if path.name[:4] in ("alph", "beta"))
    newest = root / "alpha.0/localhost" / str(house.tree).lstrip("/")
    equal = not newest.exists() or same(house.tree, newest)
    assert 0 == house.lukshook("close", "offsite").returncode
    assert equal
    return names


@pytest.mark.guest_too
def test_wrapped_lines_serve_every_interval(house: HostVolume) -> None:
    """Both intervals rotate, and the volume is closed between them."""
    need("rsnapshot")
    for interval in ("alpha", "alpha", "beta", "alpha"):
        done = wrapped(house, interval)
        assert (0, True) == (done.returncode, house.closed_and_bare()), done.stderr

    assert ["alpha.0", "alpha.1", "beta.0"] == snapshots(house, house.data)


def test_preexec_serves_the_lowest_interval(house: HostVolume) -> None:
    """The lowest interval rotates; a higher one is run by the wrapper, as the README says."""
    for _ in range(2):
        done = preexec(house, "alpha")
        assert (0, True) == (done.returncode, house.closed_and_bare()), done.stderr
    config = house.folder / "rsnapshot.conf"
    higher = house.lukshook("run", "offsite", "--", "rsnapshot", "-c", config, "beta")
    assert (0, True) == (higher.returncode, house.closed_and_bare()), higher.stderr

    assert ["alpha.0", "beta.0"] == snapshots(house, house.mountpoint)


@pytest.mark.parametrize("run", [wrapped, preexec])
def test_failing_backup_is_reported_and_closed(house: HostVolume, run: Run) -> None:
    """rsync fails: rsnapshot's status comes through, and the volume is closed."""
    need("rsnapshot")

    done = run(house, "alpha", "--no-such-option")

    assert (1, True) == (done.returncode, house.closed_and_bare())
    assert "rsync returned 1" in done.stderr


@pytest.mark.parametrize(("run", "status"), [(wrapped, 77), (preexec, 1)])
def test_volume_that_does_not_open(house: HostVolume, run: Run, status: int) -> None:
    """With a wrong key there is no backup, and nothing is written to the bare mount point."""
    need("rsnapshot")
    house.spoil_key()

    done = run(house, "alpha")

    assert (status, True) == (done.returncode, house.closed_and_bare())

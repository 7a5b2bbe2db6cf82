#!/usr/bin/env python3
"""Install Debian packages so that what they bring starts no service: neither now nor at the next boot. Run by root.

    python3 tests/support/quiet_install.py PACKAGE...

The tests need servers (sshd, tang, Samba, promtool's prometheus) and start them on their own, on ports and folders of
their own. On an ordinary machine, Debian's packages would start each server for good. So while apt runs, a
policy-rc.d(8) keeps what is new from starting, and after it the units that apt has enabled are disabled again. What was
there before starts and stops as usual. Where the machine has its own policy-rc.d, as a container has, that one decides.

It imports only the standard library: tests/run calls it before anything is installed.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")
MARK = "# lukshook's tests/run wrote this"
#: In the environment of our apt alone: a policy that a kill has left forbids nothing to others.
VARIABLE = "LUKSHOOK_TESTS_INSTALL"
FORBIDDEN = 101
SCRIPT = """#!/bin/sh
{mark}, and removes it when its packages are installed. A new service does not start.
[ -n "${variable}" ] || exit 0
case " {known} " in *" $1 "*) exit 0 ;; esac
exit {forbidden}
"""
#: One at a time: what another run installs would be known to this one. Only root writes there.
LOCK = Path("/run/lukshook-tests-install.lock")
UNITS = ("/lib/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system")
ENABLED = Path("/etc/systemd/system")
SERVICES = (".service", ".socket", ".timer", ".path", ".target")
APT = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")


def policy(known: Iterable[str]) -> str:
    """A policy-rc.d that forbids all but *known* units to start, where `VARIABLE` is set."""
    words = " ".join(sorted(name for name in known if re.fullmatch(r"[\w@.:\\-]+", name))).replace("\\", "\\\\")
    return SCRIPT.format(mark=MARK, variable=VARIABLE, known=words, forbidden=FORBIDDEN)


def known_units(folders: Iterable[str] = UNITS, scripts: str = "/etc/init.d") -> set[str]:
    """The units and scripts of this machine, as maintainer scripts name them: with and without ".service"."""
    files = [file.name for folder in (*folders, scripts) for file in Path(folder).glob("*")]
    return {name for file in files for name in (file, file.removesuffix(".service"))}


def enabled(folder: Path = ENABLED) -> set[str]:
    """The units that start at boot, or with another unit."""
    links = (link for kind in ("wants", "requires") for link in folder.glob(f"*.{kind}/*"))
    return {link.name for link in links if link.is_symlink() and link.name.endswith(SERVICES)}


@contextmanager
def nothing_starts(file: Path = POLICY) -> Iterator[None]:
    """Inside, no unit that is new starts, where `VARIABLE` is set; a policy of the machine itself stays."""
    if file.exists() and MARK not in file.read_text(errors="replace"):
        yield
        return
    unfinished = file.with_name(f"{file.name}.new")
    unfinished.write_text(policy(known_units()))
    unfinished.chmod(0o755)
    unfinished.rename(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def install(packages: Sequence[str]) -> bool:
    """Whether all are installed. Raises OSError."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before, known = enabled(), known_units()
        try:
            with nothing_starts():
                apt("update")
                done = apt("install", "-y", "--no-install-recommends", *packages)
        finally:
            disable(sorted(enabled() - before - known))
    return done == 0


def apt(*arguments: str) -> int:
    """Its exit status."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", VARIABLE: "1"}
    done = subprocess.run(
        [*APT, *arguments], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
    )
    return done.returncode


def disable(units: Sequence[str]) -> None:
    """They do not start at the next boot; where systemd does not run, nothing would start them."""
    if units and Path("/run/systemd/system").is_dir():
        print(f"disabled, so that they do not start at the next boot: {' '.join(units)}", flush=True)
        # Without its hook for scripts in /etc/init.d: one that fails would keep all units enabled.
        environment = os.environ | {"SYSTEMCTL_SKIP_SYSV": "1"}
        subprocess.run(
            ["systemctl", "--quiet", "disable", *units], check=False, stdin=subprocess.DEVNULL, env=environment
        )


def main(packages: list[str]) -> int:
    """Exit status 1: apt could not install them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    return 0 if install(packages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Where lukshook keeps its files, for root and for a user (XDG base directory specification)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from lukshook.errors import BadConfiguration
from lukshook.system.digest import sha256
from lukshook.system.text import fault_of_path

CONFIG_FILE = "lukshook/config.toml"
#: What ends the path of a user's plaintext, which lies in the run folder: for fuse2fs in its option `fsname`, and for
#: all tools of e2fsprogs, which read options of their own behind it (ext2fs_open2, 1.47.0).
_OPTIONS = ",?"


@frozen(eq=False, repr=False)
class Places:
    """*run*: what is open. *state*: what is known across boots. *config*: the configuration file.

    *mounts*: where things are mounted or shown in private while a volume is open. *former*: where earlier versions
    kept what is in *run* now.
    """

    run: Path
    state: Path
    config: Path
    mounts: Path
    former: tuple[Path, ...] = ()


def places(environment: Mapping[str, str], user: int, config: Path | None = None) -> Places:
    """The places for a user (0 is root), each overridden by its environment variable.

    For root, HOME and the XDG variables do not count: `sudo` and `su` may leave those of the user who called them.
    Raises `BadConfiguration` for a folder whose path is not on one line, or that a tool would read as something else.
    """
    if user == 0:
        run, state = Path("/run/lukshook"), Path("/var/lib/lukshook")
    else:
        home = _home(environment)
        state = Path(environment.get("XDG_STATE_HOME") or home / ".local/state") / "lukshook"
        run = state / "run" / _machine()
    # Without links: the kernel knows mounts by such paths.
    chosen = Path(os.path.realpath(environment.get("LUKSHOOK_RUN_DIR") or run))
    users_own = user != 0 and not environment.get("LUKSHOOK_RUN_DIR")
    return Places(
        run=_fit("the run folder", chosen, "" if user == 0 or users_own else _OPTIONS),
        state=_fit("the state folder", Path(environment.get("LUKSHOOK_STATE_DIR") or state).absolute()),
        config=_config(environment, user, config),
        mounts=_users_mounts(user, chosen) if users_own else chosen,
        former=_former(environment, user, state) if users_own else (),
    )


def _home(environment: Mapping[str, str]) -> Path:
    try:
        return Path(environment.get("HOME") or Path.home())
    except RuntimeError as error:
        raise BadConfiguration("this user has no home folder", hint="set HOME") from error


def _fit(what: str, folder: Path, without: str = "") -> Path:
    fault = fault_of_path(os.fspath(folder))
    if set(without) & set(os.fspath(folder)):
        fault = f'a path without the characters "{without}", which fuse2fs and e2fsck take for options'
    if fault:
        raise BadConfiguration(
            f"{what} {folder} is not {fault}",
            hint="name another one in the environment: docs/configuration.md has the variables",
        )
    return folder


def _machine() -> str:
    """Names this machine: a home folder can be shared by several, and each has its own volumes open (machine-id(5))."""
    try:
        return os.fsdecode(Path("/etc/machine-id").read_bytes().removesuffix(b"\n")) or os.uname().nodename
    except OSError:
        return os.uname().nodename


def _users_mounts(user: int, run: Path) -> Path:
    """The same in a session, after it, and in a job of cron: a session's runtime folder goes with the session.

    Not in the home folder: a program that copies that would find the plaintext in it.
    """
    name = f"lukshook-{user}-{sha256(os.fsencode(run)).hexdigest()[:8]}"
    return Path("/tmp").resolve() / name  # noqa: S108 - `private_folder` looks whose it is


def _former(environment: Mapping[str, str], user: int, state: Path) -> tuple[Path, ...]:
    runtime = {environment.get("XDG_RUNTIME_DIR") or f"/run/user/{user}", f"/run/user/{user}"}
    return (*(Path(folder) / "lukshook" for folder in sorted(runtime)), state / "run")


def configs(environment: Mapping[str, str], user: int, given: Path | None) -> Iterator[Path]:
    """Where the configuration may lie: the first that is there counts."""
    named = given or environment.get("LUKSHOOK_CONFIG")
    if named:
        yield Path(named).absolute()
        return
    yield Path("/etc") / CONFIG_FILE
    yield _user_config(environment, user) / CONFIG_FILE


def _config(environment: Mapping[str, str], user: int, given: Path | None) -> Path:
    places = configs(environment, user, given)
    first = next(places)
    return first if os.path.lexists(first) else next(filter(os.path.lexists, places), first)


def hidden(file: Path) -> bool:
    """Whether this user may not see if *file* is there."""
    try:
        os.lstat(file)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def new_config(environment: Mapping[str, str], user: int, given: Path | None) -> Path:
    """Where a first configuration is written: as *given*, else as the environment says, else the usual place."""
    usual = Path("/etc") if user == 0 else _user_config(environment, user)
    return given or Path(environment.get("LUKSHOOK_CONFIG") or usual / CONFIG_FILE).absolute()


def _user_config(environment: Mapping[str, str], user: int) -> Path:
    if user:
        return Path(environment.get("XDG_CONFIG_HOME") or _home(environment) / ".config")
    import pwd  # noqa: PLC0415 - only where there is no configuration in /etc

    return Path(pwd.getpwuid(user).pw_dir) / ".config"

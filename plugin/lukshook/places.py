"""Where lukshook keeps its files, for root and for a user (XDG base directory specification)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from lukshook.errors import BadConfiguration
from lukshook.text import fault_of_path

CONFIG_FILE = "lukshook/config.toml"
#: What ends the path of a user's plaintext, which lies in the run folder: for fuse2fs in its option `fsname`, and for
#: all tools of e2fsprogs, which read options of their own behind it (ext2fs_open2, 1.47.0).
_OPTIONS = ",?"


@frozen
class Places:
    """*run*: what does not outlive a boot. *state*: what does. *config*: the configuration file."""

    run: Path
    state: Path
    config: Path


def places(environment: Mapping[str, str], user: int, config: Path | None = None) -> Places:
    """The places for a user (0 is root), each overridden by its environment variable.

    For root, HOME and the XDG variables do not count: `sudo` and `su` may leave those of the user who called them.
    Raises `BadConfiguration` for a folder whose path is not on one line, or that a tool would read as something else.
    """
    if user == 0:
        run, state = Path("/run/lukshook"), Path("/var/lib/lukshook")
    else:
        home = Path(environment.get("HOME") or Path.home())
        state = Path(environment.get("XDG_STATE_HOME") or home / ".local/state") / "lukshook"
        run = _user_run(environment, user, state)
    return Places(
        # Without links: the kernel knows mounts by such paths.
        run=_fit(
            "the run folder", Path(environment.get("LUKSHOOK_RUN_DIR") or run).resolve(), "" if user == 0 else _OPTIONS
        ),
        state=_fit("the state folder", Path(environment.get("LUKSHOOK_STATE_DIR") or state).absolute()),
        config=config or Path(environment.get("LUKSHOOK_CONFIG") or _config(environment, user)).absolute(),
    )


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


def _user_run(environment: Mapping[str, str], user: int, state: Path) -> Path:
    """A job of cron has no XDG_RUNTIME_DIR; records name their boot, so they may lie among the state as well."""
    given = environment.get("XDG_RUNTIME_DIR")
    usual = Path(f"/run/user/{user}")
    if given:
        return Path(given) / "lukshook"
    return usual / "lukshook" if usual.is_dir() else state / "run"


def _config(environment: Mapping[str, str], user: int) -> Path:
    system = Path("/etc") / CONFIG_FILE
    if os.path.lexists(system):
        return system
    own = _user_config(environment, user) / CONFIG_FILE
    return own if os.path.lexists(own) else system


def _user_config(environment: Mapping[str, str], user: int) -> Path:
    if user:
        return Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or Path.home()) / ".config")
    import pwd  # noqa: PLC0415 - only where there is no configuration in /etc

    return Path(pwd.getpwuid(user).pw_dir) / ".config"

"""What the command under `run` inherits: the caller's folder and open files, and nothing of ours."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import frozen

from lukshook.cli import hooks
from lukshook.errors import Denied

PROGRAM = """
import os, sys
from contextlib import contextmanager
from pathlib import Path
from lukshook.plugins import open_and_close as plugin
from lukshook.cli import main
from lukshook.cli import hooks

@contextmanager
def held(*_):
    kept = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # as every file of ours
    yield
    os.close(kept)

class Session:
    open_volume = staticmethod(lambda *a, **k: Path(os.environ["OPENED"]).touch())
    close_volume = staticmethod(lambda *a, **k: ())
    held = staticmethod(held)
    may_be_open = staticmethod(lambda *a: False)

plugin.opening = plugin.closing = hooks.closing = Session
main.lukshook()
"""


@frozen
class Caller:
    """A shell that starts lukshook, with a volume of which nothing is there but the configuration."""

    folder: Path

    def bash(self, script: str, key: str = "prompt") -> subprocess.CompletedProcess[str]:
        """Run *script*, in which "lukshook" is one."""
        config = self.folder / "config.toml"
        config.write_text(
            f'[volumes.v]\nimage = "{self.folder}/image"\nmountpoint = "{self.folder}/mnt"\nkey = "{key}"\n'
        )
        places = {
            "LUKSHOOK_CONFIG": str(config),
            "LUKSHOOK_RUN_DIR": str(self.folder / "run"),
            "LUKSHOOK_STATE_DIR": str(self.folder / "state"),
            "OPENED": str(self.folder / "opened"),
        }
        command = f'lukshook() {{ {shlex.join([sys.executable, "-c", PROGRAM])} "$@"; }}\n'
        return subprocess.run(
            ["bash", "-c", command + script],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **places},
            cwd=self.folder,
        )


@pytest.fixture(name="caller")
def _caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        "lukshook run v -- cat <(echo content)",
        "lukshook run v -- sh -c 'cat <&5' 5<<<content",
        "PASSPHRASE_FD=7 lukshook run v -- sh -c 'cat <&$PASSPHRASE_FD' 7< <(echo content)",
        "lukshook run v -- sh -c 'echo content >&9' 9>&1",
        "exec 3>/dev/null; lukshook run v -- sh -c 'cat <&6' 6<<<content",
    ],
)
def test_the_command_has_the_callers_descriptors(caller: Caller, script: str) -> None:
    """As `rsync --files-from=<(...)` and BORG_PASSPHRASE_FD need them."""
    done = caller.bash(script)

    assert (0, "content\n", "") == (done.returncode, done.stdout, done.stderr)


def test_the_command_has_none_of_ours(caller: Caller) -> None:
    """The same ones as without lukshook."""
    show = "sh -c 'for fd in /proc/self/fd/*; do echo ${fd##*/}; done'"
    wanted = caller.bash(f"{show} 5</dev/null 9</dev/null").stdout

    assert wanted == caller.bash(f"lukshook run v -- {show} 5</dev/null 9</dev/null").stdout
    assert {"5", "9"} <= set(wanted.split())


def test_the_command_has_not_the_key(caller: Caller) -> None:
    """A file could be read once more, and a pipe that was not read because the volume is open has the key in it."""
    script = "lukshook run v -- sh -c 'cat <&8; cat <&5' 5<<<secret 8<<<content"

    done = caller.bash(script, key="fd:5")

    assert "content\n" == done.stdout
    assert done.returncode


@pytest.mark.parametrize("command", ["lukshook run v -- true", "lukshook -c config.toml status v"])
def test_a_working_folder_that_is_gone_is_named(caller: Caller, command: str) -> None:
    """Before anything is opened."""
    done = caller.bash(f"mkdir gone; cd gone; rmdir ../gone; {command}")

    assert 69 == done.returncode
    assert "lukshook: the current working directory no longer exists" == done.stderr.splitlines()[-2]
    assert not (caller.folder / "opened").exists()


def test_a_working_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `sudo -u`: the command would not start there, and the message named the command."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Denied) as caught, monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        hooks._folder()

    assert f"{tmp_path} cannot be entered: Permission denied" in caught.value.message

"""The standard streams as a host may leave them: closed, full, interrupted, or in another encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lukshook

CONFIG = """[volumes.offsite]
image = "{folder}/b\u00f6.img"
mountpoint = "{folder}/mnt"
key = "prompt"
engine = "userspace"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A configured volume of which nothing is there."""
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    folders = {"LUKSHOOK_RUN_DIR": str(tmp_path / "run"), "LUKSHOOK_STATE_DIR": str(tmp_path / "state")}
    return {"PATH": os.environ["PATH"], "LUKSHOOK_CONFIG": str(tmp_path / "config.toml"), **folders}


def run(line: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and standard error of a line of shell, in which "lukshook" is ours."""
    program = f'lukshook() {{ "{sys.executable}" -m lukshook "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["status", "status --json", "check", "--help", "--version", "key new"])
def test_output_that_cannot_be_written(command: str, environment: dict[str, str]) -> None:
    """One line and a hint, and not as if a backup had been lost."""
    code, said = run(f"lukshook {command} >/dev/full", environment)

    assert 74 == code
    assert said.startswith("lukshook: standard output cannot be written: No space left on device\n  hint: ")
    assert 2 == len(said.splitlines())


@pytest.mark.parametrize("command", ["status", "key new", "--version", "--help"])
def test_closed_output_is_nobodys_wish_for_output(command: str, environment: dict[str, str]) -> None:
    """Done all the same; no file that is opened later gets its number."""
    assert (0, "") == run(f"lukshook {command} >&-", environment)
    assert (0, "") == run(f"lukshook {command} <&- >&-", environment)


KEEPS_A_FILE = """import sys
class Opener:
    kept = []
    def find_spec(self, name, *_):
        if name == "lukshook.cli.main":
            self.kept.append(open("/etc/passwd"))
sys.meta_path.insert(0, Opener())
import lukshook.__main__
sys.argv = ["lukshook", "status"]
lukshook.__main__.main()
"""


def test_a_library_that_keeps_a_file_open_does_not_get_the_number_of_a_stream(environment: dict[str, str]) -> None:
    """As libffi does when ctypes is imported."""
    ours = {**environment, "PYTHONPATH": str(Path(lukshook.__file__).parents[1])}

    assert (0, "") == run(f"{sys.executable} -c '{KEEPS_A_FILE}' >&-", ours)


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_messages_that_cannot_be_written_change_no_exit_status(where: str, environment: dict[str, str]) -> None:
    """A host's log that is full must not make another failure of it."""
    for command, code in (("before-backup nobody", 66), ("nonsense", 64), ("before-backup offsite", 78)):
        assert code == run(f"lukshook {command} {where}", environment)[0]


def test_a_reader_that_has_gone(environment: dict[str, str]) -> None:
    """`lukshook status | head`: nothing is said."""
    assert "" == run("lukshook status | true", environment)[1]


def test_names_that_are_no_text(environment: dict[str, str], tmp_path: Path) -> None:
    """They are shown with an escape, on standard output too, and what a locale cannot express is told as such."""
    assert (66, True) == told(run("lukshook before-backup $'\\xff'", environment), r"no volume '\xff' in")
    narrow = {**environment, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert (78, True) == told(run("lukshook status", narrow), "cannot be written in this locale")
    odd = f"{tmp_path}/".encode() + b"\xff.toml"
    Path(os.fsdecode(odd)).write_text("")
    assert (0, True) == told(
        run(f"lukshook -c '{tmp_path}/'$'\\xff.toml' status | grep -qF '\\xff.toml'", environment), ""
    )


def told(outcome: tuple[int, str], text: str) -> tuple[int, bool]:
    return outcome[0], text in outcome[1] and "Traceback" not in outcome[1]


def test_a_slip_on_the_command_line(environment: dict[str, str]) -> None:
    """One line and a hint as for every failure."""
    code, said = run("lukshook key remove offsite --slot 99", environment)

    assert 64 == code
    assert [
        "lukshook: Invalid value for '--slot': 99 is not in the range 0<=x<=31",
        "  hint: lukshook key remove --help",
    ] == said.splitlines()


def test_a_path_too_long_for_a_file_system(environment: dict[str, str], tmp_path: Path) -> None:
    """Told by the configuration, before anything is made."""
    text = (tmp_path / "config.toml").read_text(encoding="utf-8").replace("mnt", "m" * 241)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")

    code, said = run("lukshook create offsite", environment)

    assert 78 == code
    assert "names with up to 240 bytes" in said


@pytest.mark.parametrize("words", [("--help",), ("create", "--help"), ("--dry-run", "status")])
def test_a_reader_that_has_gone_is_reported_as_any_other_failure_to_write(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    """click ends with 1 then."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "lukshook", *words], env=environment, stdout=writing, check=False)
    os.close(writing)

    assert 74 == done.returncode


def test_a_completion_ends_well(environment: dict[str, str]) -> None:
    """click ends the process itself there."""
    asked = environment | {"_LUKSHOOK_COMPLETE": "bash_source"}
    program = "import sys; sys.argv = ['lukshook']; from lukshook.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True, check=False)

    assert (0, True) == (done.returncode, "complete" in done.stdout)

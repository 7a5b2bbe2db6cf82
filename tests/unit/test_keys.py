"""The key sources: what each gives, refuses, warns of and shows, and that nothing of a key is in a message."""

from __future__ import annotations

import base64
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lukshook.errors import BadConfiguration, Denied, Exists, LukshookError, Unavailable
from lukshook.keys import key_sources
from lukshook.system.secret import Secret

RAW = bytes(range(32))
TEXT = base64.b64encode(RAW).decode()
OTHER = base64.b64encode(bytes(32)).decode()


@pytest.fixture
def warned() -> list[str]:
    return []


def obtain(*sources: str, environment: dict[str, str] | None = None, warned: list[str] | None = None) -> bytes:
    asking = key_sources.Asking(environment or {}, "offsite", ([] if warned is None else warned).append)
    return bytes(key_sources.obtain(sources, asking).reveal())


def keep(source: str, text: str) -> None:
    module, argument = key_sources.parse(source)
    assert module.store is not None
    module.store(argument, text)


def replace(source: str) -> None:
    module, argument = key_sources.parse(source)
    assert module.replace is not None
    module.replace(argument)


# file:PATH


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "offsite.key"
    path.write_text(TEXT + "\n")
    path.chmod(0o600)
    return path


def test_file_gives_the_key(file: Path) -> None:
    """With and without a line end."""
    assert RAW == obtain(f"file:{file}")
    file.write_text(TEXT)
    assert RAW == obtain(f"file:{file}")


def test_file_that_others_may_read_is_refused(file: Path) -> None:
    """Mode 0640 and 0604, with the command that repairs it."""
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(Denied, match=f"{mode:04o}") as caught:
            obtain(f"file:{file}")
        assert f"chmod 600 {file}" == caught.value.hint


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """A folder, a pipe nobody writes to, nothing at all."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for what in (tmp_path / "pipe", tmp_path):
        with pytest.raises(Denied, match="not a regular file"):
            obtain(f"file:{what}")
    with pytest.raises(Unavailable, match="is not there"):
        obtain(f"file:{tmp_path / 'absent'}")


def test_file_is_made_whole_and_never_over_another(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, and no left-over part of a killed run is in the way."""
    place = tmp_path / "new.key"
    (tmp_path / "new.key.0123abcd.part").write_text("cut off")
    before = os.umask(0)
    try:
        keep(f"file:{place}", TEXT)
    finally:
        os.umask(before)
    assert 0o600 == place.stat().st_mode & 0o777
    assert RAW == obtain(f"file:{place}")
    with pytest.raises(Exists):
        keep(f"file:{place}", OTHER)
    assert RAW == obtain(f"file:{place}")
    assert ["new.key"] == [entry.name for entry in tmp_path.iterdir()]


def test_file_takes_a_new_key_in_place_of_the_old(file: Path) -> None:
    """By one rename; without one waiting nothing happens."""
    replace(f"file:{file}")
    assert RAW == obtain(f"file:{file}")
    module, argument = key_sources.parse(f"file:{file}")
    assert module.staged is not None
    keep(f"file:{module.staged(argument)}", OTHER)
    replace(f"file:{file}")
    assert bytes(32) == obtain(f"file:{file}")
    assert [file.name] == [entry.name for entry in file.parent.iterdir()]


def test_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Exit status 69, no traceback."""
    with pytest.raises(Unavailable):
        keep(f"file:{tmp_path}/absent/key", TEXT)


@pytest.mark.parametrize("part", ["folder", "above"])
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=pytest.mark.roots)])
def test_file_is_not_made_where_others_control_the_path(tmp_path: Path, part: str, how: str) -> None:
    """They could lead it to the store. Reading one there stays possible: whoever exchanges it opens nothing."""
    place = tmp_path / "above/folder/key"
    place.parent.mkdir(parents=True)
    there = place.parent if part == "folder" else place.parent.parent
    if how == "mode":
        there.chmod(0o777)
    else:
        os.chown(there, 65534, 65534)
    with pytest.raises(Denied, match="not safe from other users"):
        keep(f"file:{place}", TEXT)
    assert [] == list(place.parent.iterdir())
    place.write_text(TEXT)
    place.chmod(0o600)
    assert RAW == obtain(f"file:{place}")


# command:ARGV


def test_command_gives_the_key_without_a_shell(tmp_path: Path) -> None:
    """Words are split as a shell does it, and nothing is expanded."""
    assert RAW == obtain(f"command:printf '%s\\n' {TEXT}")
    script = tmp_path / "key'; touch harm"
    script.write_text(f"#!/bin/sh\necho {TEXT}\n")
    script.chmod(0o700)
    assert RAW == obtain(f"command:{shlex.quote(str(script))}")
    assert not (tmp_path / "harm").exists()


def test_command_sees_the_callers_environment(tmp_path: Path) -> None:
    """A password manager needs HOME and its agent's socket."""
    assert RAW == obtain("command:printenv THE_KEY", environment={"THE_KEY": TEXT, "PATH": os.environ["PATH"]})


def test_command_that_fails_is_told_with_its_own_words() -> None:
    """Exit status 77; one that is not there has 69."""
    with pytest.raises(Denied, match="sh failed: locked"):
        obtain("command:sh -c 'echo locked >&2; exit 3'")
    with pytest.raises(Unavailable, match="cannot be started"):
        obtain("command:/absent/tool")


def test_command_that_succeeds_with_nothing_is_told() -> None:
    """Some password managers do that when they are locked."""
    with pytest.raises(Denied, match="is empty"):
        obtain("command:true")


# fd:N and stdin


def pipe_with(content: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


def test_fd_gives_the_key() -> None:
    """Read to its end."""
    descriptor = pipe_with(TEXT.encode() + b"\n")
    assert RAW == obtain(f"fd:{descriptor}")
    os.close(descriptor)


def test_fd_that_is_closed_is_told() -> None:
    """Exit status 77."""
    descriptor = pipe_with(b"")
    os.close(descriptor)
    with pytest.raises(Denied, match=f"no key from fd:{descriptor}"):
        obtain(f"fd:{descriptor}")


def test_fd_stops_reading_what_is_no_key() -> None:
    """An endless source fills no memory."""
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    with pytest.raises(Denied):
        obtain(f"fd:{descriptor}")
    os.close(descriptor)


PROGRAM = """
import os, sys
from lukshook.keys import key_sources
print(len(key_sources.obtain([sys.argv[1]], key_sources.Asking(os.environ, "v", print))))
"""


def run(source: str, **options: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM, source]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_stdin_gives_the_key() -> None:
    """Piped in."""
    done = run("stdin", input=TEXT + "\n")
    assert ("32\n", 0) == (done.stdout, done.returncode)


def test_stdin_that_is_a_terminal_is_refused() -> None:
    """What is typed there would be seen."""
    ours, theirs = pty.openpty()
    done = run("stdin", stdin=theirs)
    assert "but stdin is a terminal" in done.stderr
    os.close(ours)
    os.close(theirs)


# credential:NAME


def test_credential_comes_from_the_units_folder(tmp_path: Path) -> None:
    """$CREDENTIALS_DIRECTORY, which systemd sets."""
    (tmp_path / "offsite").write_text(TEXT)
    assert RAW == obtain("credential:offsite", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_credential_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With the line the unit needs."""
    with pytest.raises(Unavailable) as caught:
        obtain("credential:absent-here", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "LoadCredentialEncrypted=absent-here" in caught.value.hint


def test_credential_is_decrypted_from_the_machines_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a unit systemd-creds does it, told the name the credential was sealed under."""
    tool = tmp_path / "systemd-creds"
    tool.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\necho {TEXT}\n')
    tool.chmod(0o700)
    (tmp_path / "offsite").touch()
    monkeypatch.setattr(key_sources.source_named("credential"), "_STORE", tmp_path)
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    assert RAW == obtain("credential:offsite", environment={"PATH": path})
    assert f"decrypt --name=offsite {tmp_path}/offsite -\n" == (tmp_path / "said").read_text()


@pytest.mark.parametrize("make", [os.mkfifo, lambda place: place.symlink_to("/dev/zero"), os.mkdir])
def test_credential_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Exit status 77, without waiting."""
    make(tmp_path / "offsite")
    with pytest.raises(Denied, match="cannot be read"):
        obtain("credential:offsite", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_credential_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    """More than any key has is refused."""
    with (tmp_path / "offsite").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Denied, match="larger than"):
        obtain("credential:offsite", environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})


# container:NAME


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /run/secrets, with the secret `offsite` as Docker and Podman mount it."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    (folder / "offsite").write_text(TEXT)
    (folder / "offsite").chmod(0o444)
    monkeypatch.setattr(key_sources.source_named("container"), "_FOLDER", folder)
    return folder


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o644])
def test_secret_of_a_container_gives_the_key(secrets: Path, mode: int) -> None:
    """Docker and Podman let every user of the container read it."""
    (secrets / "offsite").chmod(mode)
    assert RAW == obtain("container:offsite")


def test_secret_may_be_a_link_within_the_folder(secrets: Path) -> None:
    """Kubernetes makes two: the name leads to ..data, and that to a folder with a date."""
    (secrets / "..2026_01").mkdir()
    (secrets / "offsite").rename(secrets / "..2026_01/offsite")
    (secrets / "..data").symlink_to("..2026_01")
    (secrets / "offsite").symlink_to("..data/offsite")
    assert RAW == obtain("container:offsite")


@pytest.mark.parametrize("target", ["../elsewhere", "{}/elsewhere", "/proc/self/environ"])
def test_secret_that_leads_out_of_the_folder_is_refused(secrets: Path, target: str) -> None:
    """A wrong mount shows, and no file that was never meant as a secret is read."""
    (secrets / "offsite").rename(secrets.parent / "elsewhere")
    (secrets / "offsite").symlink_to(target.format(secrets.parent))
    with pytest.raises(Denied, match="is a link to a place outside of") as caught:
        obtain("container:offsite")
    assert "file:PATH" in caught.value.hint


@pytest.mark.parametrize("what", ["offsite", "."])
@pytest.mark.parametrize("how", ["mode", pytest.param("owner", marks=pytest.mark.roots)])
def test_secret_that_others_can_replace_is_refused(secrets: Path, what: str, how: str) -> None:
    """They would choose the key of a new volume."""
    if how == "mode":
        (secrets / what).chmod(0o777)
    else:
        os.chown(secrets / what, 65534, 65534)
    with pytest.raises(Denied, match="is not safe from other users") as caught:
        obtain("container:offsite")
    assert "mode 0444" in caught.value.hint


def test_secret_that_is_not_there_is_told(secrets: Path) -> None:
    """With the line that the compose file needs."""
    with pytest.raises(Unavailable, match="there is no secret absent in") as caught:
        obtain("container:absent")
    assert "secrets: [absent]" in caught.value.hint
    (secrets / "offsite").unlink()
    secrets.rmdir()
    with pytest.raises(Unavailable):
        obtain("container:offsite")


@pytest.mark.parametrize("make", [os.mkfifo, lambda place: place.symlink_to(place), os.mkdir])
def test_secret_that_is_no_file_is_refused(secrets: Path, make: Callable[[Path], None]) -> None:
    """It does not wait for a pipe's other end."""
    (secrets / "offsite").unlink()
    make(secrets / "offsite")
    with pytest.raises(Denied, match="cannot be read"):
        obtain("container:offsite")


def test_secret_that_is_too_long_is_refused(secrets: Path) -> None:
    """It is no key, and fills no memory."""
    (secrets / "offsite").chmod(0o600)
    os.truncate(secrets / "offsite", 1 << 40)
    with pytest.raises(Denied, match="larger than"):
        obtain("container:offsite")


# env:NAME


def test_env_gives_the_key_and_warns(warned: list[str]) -> None:
    """Every process of the host has it as well."""
    assert RAW == obtain("env:BACKUP_KEY", environment={"BACKUP_KEY": TEXT}, warned=warned)
    assert 1 == len(warned)
    assert "BACKUP_KEY" in warned[0]
    assert TEXT not in warned[0]


def test_env_that_is_not_set_is_told() -> None:
    """Exit status 69."""
    with pytest.raises(Unavailable, match="BACKUP_KEY is not set"):
        obtain("env:BACKUP_KEY")


# keyring:SERVICE/USER


@pytest.fixture
def keyring() -> Iterator[dict[tuple[str, str], str]]:
    """The keyring library with a backend that is a dictionary."""
    library = pytest.importorskip("keyring")
    kept: dict[tuple[str, str], str] = {}

    class InMemory(library.backend.KeyringBackend):  # type: ignore[misc,name-defined]
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            return kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            if service == "locked":
                raise library.errors.PasswordSetError("locked")
            kept[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            del kept[service, username]

    before = library.get_keyring()
    library.set_keyring(InMemory())
    yield kept
    library.set_keyring(before)


def test_keyring_gives_the_key(keyring: dict[tuple[str, str], str]) -> None:
    """A service may have slashes in its name; the user is what comes after the last one."""
    keyring["backup/offsite", "root"] = TEXT
    assert RAW == obtain("keyring:backup/offsite/root")


def test_keyring_keeps_a_key_and_never_over_another(keyring: dict[tuple[str, str], str]) -> None:
    """`create` and `key new` put theirs there."""
    keep("keyring:backup/offsite", TEXT)
    with pytest.raises(Exists):
        keep("keyring:backup/offsite", OTHER)
    assert {("backup", "offsite"): TEXT} == keyring


def test_keyring_takes_a_new_key_in_place_of_the_old(keyring: dict[tuple[str, str], str]) -> None:
    """The waiting one is removed last."""
    keep("keyring:backup/offsite", TEXT)
    replace("keyring:backup/offsite")
    assert RAW == obtain("keyring:backup/offsite")
    keep("keyring:backup/offsite.new", OTHER)
    replace("keyring:backup/offsite")
    assert {("backup", "offsite"): OTHER} == keyring


def test_keyring_that_is_locked_or_empty_is_told(keyring: dict[tuple[str, str], str]) -> None:
    """Exit status 69, and how to put a key there."""
    with pytest.raises(Unavailable) as caught:
        obtain("keyring:backup/offsite")
    assert "keyring set backup offsite" == caught.value.hint
    with pytest.raises(Unavailable, match="cannot store a key"):
        keep("keyring:locked/offsite", TEXT)


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), ValueError("a\nb"), RecursionError()], ids=repr)
@pytest.mark.parametrize("call", ["get", "set"])
def test_a_backend_of_the_keyring_may_raise_anything(
    keyring: dict[tuple[str, str], str], error: BaseException, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is code of others: it ends nothing, and says why on one line."""
    library = pytest.importorskip("keyring")

    def fail(*_: str) -> None:
        raise error

    monkeypatch.setattr(library, f"{call}_password", fail)

    with pytest.raises(LukshookError) as caught:
        keep("keyring:backup/offsite", TEXT) if call == "set" else obtain("keyring:backup/offsite")

    assert type(error).__name__ in caught.value.message
    assert caught.value.message.isprintable()


def test_keyring_without_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(Unavailable) as caught:
        obtain("keyring:backup/offsite")
    assert "install the extra keyring" in caught.value.hint


# prompt


def test_prompt_without_a_terminal_is_told() -> None:
    """A job of cron: exit status 77 at once, and nothing waits."""
    done = run("prompt", start_new_session=True, stdin=subprocess.DEVNULL)
    assert "there is no terminal" in done.stderr


def test_prompt_asks_on_the_terminal_without_echo() -> None:
    """What is typed is not shown, and standard input is left alone."""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "prompt"])
    shown = read_until(terminal, b"(base64): ")
    os.write(terminal, TEXT.encode() + b"\n")
    shown += read_until(terminal, b"32")
    os.waitpid(child, 0)
    os.close(terminal)
    assert b"Key of volume v" in shown
    assert TEXT.encode() not in shown


@pytest.mark.parametrize("typed", [b"\x04", b"\xff\xfe\n"], ids=["nothing", "no text"])
def test_prompt_that_is_not_answered_with_text_is_told(typed: bytes) -> None:
    """Ctrl-D, or bytes that are no UTF-8: exit status 77, and nothing of it is shown."""
    child, terminal = pty.fork()
    if not child:
        colourless = os.environ | {"PYTHON_COLORS": "0"}  # Python 3.13 paints tracebacks on a terminal
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM, "prompt"], colourless)
    read_until(terminal, b"(base64): ")
    os.write(terminal, typed)
    shown = read_until(terminal, b"Denied: no key of volume v was entered")
    assert b"0xff" not in shown
    os.waitpid(child, 0)
    os.close(terminal)


def read_until(terminal: int, end: bytes) -> bytes:
    shown = b""
    while end not in shown:
        shown += os.read(terminal, 4096)
    return shown


# All of them


def test_sources_are_tried_in_order() -> None:
    """The first that has a usable key is taken."""
    found = obtain("env:A", "env:B", "env:C", environment={"B": TEXT, "C": OTHER})
    assert RAW == found


def test_all_reasons_are_told_when_no_source_has_a_key() -> None:
    """In one line, in the order of the configuration."""
    with pytest.raises(Denied, match=r"A is not set; .* /absent/key is not there"):
        obtain("env:A", "file:/absent/key")


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing:x", "file:relative", "file:", "command:", "command:'", "fd:2", "fd:x", "stdin:x", "prompt:x",
        "credential:", "credential:../x", "credential:a/b", "container:", "container:../x", "container:a/b",
        "container:..data", "env:", "env:A-B", "keyring:", "keyring:x", "keyring:/x",
    ],
)  # fmt: skip
def test_what_is_no_source_is_told_when_the_configuration_is_read(text: str) -> None:
    """Exit status 78, and never only when a backup starts."""
    with pytest.raises(BadConfiguration):
        key_sources.parse(text)


@pytest.mark.parametrize("junk", [TEXT[:-1], TEXT + "x", TEXT + TEXT, TEXT.replace("A", "-", 1), "x" * 5000])
def test_no_message_has_anything_of_the_key(junk: str) -> None:
    """What a source gave is never repeated."""
    with pytest.raises(LukshookError) as caught:
        obtain("env:K", environment={"K": junk})
    assert junk[:8] not in caught.value.message + caught.value.hint


def test_each_source_has_a_heading_in_the_documentation() -> None:
    """docs/keys.md describes every source by the form it is written in."""
    text = (Path(__file__).parents[2] / "docs/keys.md").read_text()
    headings = [line.strip("# `") for line in text.splitlines() if line.startswith("##")]
    assert set(key_sources.forms()) <= set(headings)


def test_shown_is_the_line_that_gives_the_decoded_key(file: Path) -> None:
    """What a dry run and the recovery sheet print works in a shell."""
    line = key_sources.shown([f"file:{file}"])
    assert RAW == subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout


def test_what_a_source_gave_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the key does not stay in a buffer of ours."""
    given = bytearray(TEXT.encode())
    monkeypatch.setattr(key_sources.source_named("stdin"), "obtain", lambda argument, asking: given)
    assert RAW == obtain("stdin")
    assert bytearray(len(TEXT)) == given


def test_a_secret_is_kept_out_of_swap() -> None:
    """Its page is locked, where this user may lock any."""
    keeping = "from lukshook.system.secret import Secret; secret = Secret(bytes(32))"
    program = f"{keeping}; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    locked = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmLck"))
    assert 0 < int(locked)


def test_a_wiped_secret_is_zeroes() -> None:
    """In place."""
    secret = Secret(RAW)
    held = secret.reveal()
    secret.wipe()
    assert bytearray(32) == held

"""Which process a hook is called for: real shells, scripts and wrappers, started by a process that lives on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.volume import hook_scripts

#: In the place of lukshook: it writes down for whom it was called, and knows those for whom it was called before.
HOOK = """#!{python}
import json, sys
from pathlib import Path
from lukshook.volume import users
from lukshook.volume.records import User
file = Path({calls!r})
calls = json.loads(file.read_text()) if file.exists() else []
user = users.host([User("known", call[1], call[2]) for call in calls])
calls.append([next(word for word in sys.argv if word.endswith("-backup")), user.pid, user.started])
file.write_text(json.dumps(calls))
"""
SHELLS = [shell for shell in ("dash", "bash", "zsh", "ksh", "mksh", "busybox sh") if shutil.which(shell.split()[0])]
BOTH = "{hook} before-backup v && true\n{hook} after-backup v\n"
#: Scripts that are the job itself: one run comes through both calls.
JOBS = {
    "one after the other": BOTH,
    "trap": "trap '{hook} after-backup v' EXIT\n{hook} before-backup v\n",
    "functions": "finish() {{ {hook} after-backup v; }}\n{hook} before-backup v || exit 1\nfinish\n",
    "if it opens": "if {hook} before-backup v; then true; {hook} after-backup v; else exit 1; fi\n",
    "or else": "if {hook} before-backup v; then true; else {hook} after-backup v; exit 1; fi\n{hook} after-backup v\n",
    "a case between": "{hook} before-backup v\ncase $? in 0|24) ;; *) exit 1;; esac\n{hook} after-backup v\n",
    "an if around one": "if true; then {hook} before-backup v; fi\nif true; then {hook} after-backup v; fi\n",
    "subshell": "( {hook} before-backup v; true )\n{hook} after-backup v\n",
    "moves away": "cd /\n" + BOTH,
    "deletes itself": 'rm -- "$0"\n' + BOTH,
}
#: Scripts that only call a hook for the one who has started them.
HOOKS = {
    "before": "{hook} before-backup v\ntrue\n",
    "after": "{hook} after-backup v\ntrue\n",
    "the other one in a comment": "# after-backup is called by the other script\n{hook} before-backup v\ntrue\n",
    "branches of case": 'case "$1" in\npre) {hook} before-backup v ;;\npost) {hook} after-backup v ;;\nesac\ntrue\n',
    "branches of if": 'if [ "$1" = pre ]; then\n{hook} before-backup v\nelse\n{hook} after-backup v\nfi\ntrue\n',
    "branches of elif": 'if test "$1" = x; then :; elif test "$1" = pre; then {hook} before-backup v\n'
    "else {hook} after-backup v; fi\ntrue\n",
}
#: What stands between the scheduler and a hook script.
BETWEEN = {
    "nothing": "{shell} {script} pre",
    "sh -c": "sh -c '{shell} {script} pre; true'",
    "wrappers": "env nice timeout 60 {shell} {script} pre",
    "another hook": "{shell} {outer} pre",
}


@pytest.fixture(name="hook")
def _hook(tmp_path: Path) -> Path:
    hook = tmp_path / "lukshook"
    hook.write_text(HOOK.format(python=sys.executable, calls=str(tmp_path / "calls")))
    hook.chmod(0o755)
    return hook


def write(folder: Path, text: str, hook: Path, name: str = "script") -> Path:
    """A script with the stand-in for lukshook in it."""
    script = folder / name
    script.write_text(text.format(hook=hook))
    script.chmod(0o755)
    return script


def called_for(folder: Path, *argv: str | Path, stdin: Path = Path(os.devnull)) -> tuple[int, set[int]]:
    """The process that is started, a child of ours, and for whom its hooks were called."""
    with stdin.open("rb") as given, subprocess.Popen(argv, cwd=folder, stdin=given) as process:
        pid = process.pid
    calls = json.loads((folder / "calls").read_text())
    return pid, {call[1] for call in calls}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("job", JOBS)
def test_a_script_that_calls_both_is_the_job(tmp_path: Path, hook: Path, job: str, shell: str) -> None:
    """When it dies, the use has ended, whoever has started it lives on."""
    write(tmp_path, JOBS[job], hook)

    pid, found = called_for(tmp_path, *shell.split(), "script")

    assert {pid} == found


@pytest.mark.parametrize("options", [("-c",), ("-ec",), ("-e", "-c"), ("-eo", "pipefail", "-c")], ids=" ".join)
@pytest.mark.parametrize("job", ["one after the other", "trap"])
def test_a_text_that_calls_both_is_the_job(tmp_path: Path, hook: Path, job: str, options: tuple[str, ...]) -> None:
    """Also where the shell becomes the last command of its text."""
    pid, found = called_for(tmp_path, "bash", *options, JOBS[job].format(hook=hook))

    assert {pid} == found


@pytest.mark.parametrize(
    "start", ["sh -e {script}", "{script}", "sh -s", "sh", "bash -s x", "sh link", "bash +e script"]
)
def test_however_the_script_is_started(tmp_path: Path, hook: Path, start: str) -> None:
    """By its first line, by a link, from stdin."""
    script = write(tmp_path, "#!/bin/sh -u\n" + BOTH, hook)
    (tmp_path / "link").symlink_to("script")

    pid, found = called_for(tmp_path, *start.format(script=script).split(), stdin=script)

    assert {pid} == found


@pytest.mark.parametrize("text", [BOTH, HOOKS["before"]], ids=["job", "hook"])
def test_a_shell_that_becomes_a_wrapper(tmp_path: Path, hook: Path, text: str) -> None:
    """The last word of a job may be a wrapper (`exec sudo`); it is still the same process."""
    text = text.format(hook=hook) + f"exec env nice timeout 60 {hook} after-backup v\n"

    pid, found = called_for(tmp_path, "bash", "-c", text)

    assert {pid} == found


@pytest.mark.parametrize(
    ("text", "between"),
    [*((text, "nothing") for text in HOOKS), *(("before", between) for between in list(BETWEEN)[1:])],
)
def test_a_hook_script_is_a_wrapper(tmp_path: Path, hook: Path, text: str, between: str) -> None:
    """It ends at once: the user is who has started it."""
    script = write(tmp_path, HOOKS[text], hook)
    outer = write(tmp_path, f"# before-backup\n: before-backup\nsh {script} pre\ntrue\n", hook, "outer")
    line = BETWEEN[between].format(shell="sh", script=script, outer=outer)

    _, found = called_for(tmp_path, "sh", "-c", line + "; true")

    assert {os.getpid()} == found


@pytest.mark.parametrize("interpreter", [sys.executable, "perl"], ids=["python", "perl"])
@pytest.mark.parametrize("given", ["script", "text"])
@pytest.mark.parametrize("hooks", [("before",), ("after",), ("before", "after")], ids="+".join)
def test_scripts_of_other_interpreters(
    tmp_path: Path, hook: Path, interpreter: str, given: str, hooks: tuple[str, ...]
) -> None:
    """The same rule."""
    call = (
        "import subprocess; subprocess.run(['{}', '{}', 'v'])"
        if "python" in interpreter
        else "system('{}', '{}', 'v');"
    )
    text = "\n".join(call.format(hook, f"{one}-backup") for one in hooks) + "\n"
    option = "-c" if "python" in interpreter else "-e"
    argv = [write(tmp_path, text, hook)] if given == "script" else [option, text]

    pid, found = called_for(tmp_path, interpreter, *argv)

    assert {pid if len(hooks) == 2 else os.getpid()} == found


def test_a_tool_that_is_a_script_is_the_user(tmp_path: Path, hook: Path) -> None:
    """It calls what its user has configured; neither of the hooks stands in it."""
    script = write(tmp_path, HOOKS["before"], hook)
    tool = write(tmp_path, f". {tmp_path}/conf\n$BEFORE\ntrue\n", hook, "tool")
    (tmp_path / "conf").write_text(f"BEFORE='sh {script}'\n")

    pid, found = called_for(tmp_path, "sh", tool)

    assert {pid} == found


def test_a_script_that_is_no_file_is_not_read(tmp_path: Path, hook: Path) -> None:
    """A pipe has one reader: the shell itself."""
    os.mkfifo(tmp_path / "pipe")
    line = f"bash {tmp_path}/pipe & exec 9>{tmp_path}/pipe; echo '{hook} before-backup v; true' >&9; exec 9>&-; wait"

    pid, found = called_for(tmp_path, "bash", "-c", line)

    assert found.isdisjoint({pid, os.getpid()})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh", "-c", "before-backup"], (True, False)),
        (["sh", "-c", "before-backup.sh; /etc/after-backup; x-before-backup"], (False, False)),
        (["-bash", "--norc", "-c", "before-backup; after-backup"], (False, True)),
        (["bash", "--rcfile", "-c", "before-backup"], None),
        (["busybox", "ash", "-c", "after-backup"], (True, False)),
        (["busybox", "timeout", "-c", "after-backup"], None),
        (["python3", "-m", "before-backup"], (True, False)),
        (["python3.11", "-W", "ignore", "-Ic", "'after-backup'"], (True, False)),
        (["perl", "-MFile::Spec", "-we", "'after-backup'"], (True, False)),
        (["sh", "-c", "fi; esac; ;; else before-backup; after-backup"], (False, True)),
        (["rsnapshot", "-c", "before-backup"], None),
        (["sh", "-c"], None),
        (["sh", "-c", "\udcff before-backup"], (True, False)),
        ([], None),
        (["busybox"], None),
        (["sh", "/dev/stdin"], None),
    ],
)
def test_command_lines(words: list[str], expected: tuple[bool, bool] | None) -> None:
    """Which hooks what is interpreted calls: only one, both in one go; None for what nobody can tell."""
    assert expected == hook_scripts.calls(os.getpid(), words)

"""A store whose server or daemon hangs: every command answers within its limit, and goes on when the store is back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
from attrs import frozen

from lukshook.cli import main
from lukshook.system import kernel, loops
from support.foreign_loop_cases import attached
from support.hung_store import LIMIT, Hanging, hasty, less_patient, on_hanging_store
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("qemu-storage-daemon", "nbdkit", "fusermount3", "fuse2fs", "mkfs.ext4")
#: What a command's arguments and options stand for; one that is not here is a new command that is to be tried as well.
VALUES = {
    **dict.fromkeys(("NAME", "[NAME]", "[NAME]...", "NAME]"), NAME),
    "SIZE": "+16MiB",
    "K/N": "2/3",
    "[TOOL": "cron",
    "[TARGET]": "/tmp/copy",
    "[CHANNEL]...": "none",
    "-- CMD [ARG]...": "true",
}
OPTIONS = {
    ("key", "add"): ["--key", "prompt"],
    ("key", "remove"): ["--slot", "1"],
    ("heal",): ["--from", "/tmp/copy"],
    ("run",): ["--"],
}
#: Those that look at the configuration alone.
OF_NO_STORE = (("config", "schema"), ("config", "show"), ("init",), ("key", "combine"))
#: Those that have something to say all the same.
ANSWERS: dict[tuple[str, ...], int] = {("status",): 0, ("history",): 0, ("hooks",): 0, ("notify",): 78, ("sheet",): 0}
ANSWERS |= dict.fromkeys(OF_NO_STORE, 0)
ANSWERS["init",] = 64  # there is no terminal
ANSWERS["key", "combine"] = 77  # nor a share


def every_command() -> list[tuple[str, ...]]:
    context = click.Context(main.group)
    found: list[tuple[str, ...]] = []
    for name in main.group.list_commands(context):
        command = main.group.get_command(context, name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else []
        found += [(name, below) for below in inner] if inner else [(name,)]
    return found


def arguments_of(words: tuple[str, ...]) -> list[str]:
    command: click.Command = main.group
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word) or pytest.fail(f"no command {word}")
    needed = [param.metavar for param in command.params if isinstance(param, click.Argument)]
    values = [VALUES[metavar or ""] for metavar in needed]
    return [*words, *values[:1], *OPTIONS.get(words, []), *values[1:]]


@pytest.fixture(scope="module")
def hanging(template: CliVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hanging]:
    yield from on_hanging_store(template, tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("hanging"))


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_answers(hanging: Hanging, words: tuple[str, ...]) -> None:
    """One line, a hint, 69, within the limit; nothing is made, and nothing is left."""
    with hanging.hung():
        done, seconds = hanging.lukshook(*arguments_of(words))

    assert ANSWERS.get(words, 69) == done.returncode, (done.stdout, done.stderr)
    assert seconds < 10
    if words not in (("history",), ("hooks",), ("notify",), ("sheet",), *OF_NO_STORE):  # they do not ask it
        assert "does not answer" in (done.stderr or done.stdout)
    assert [] == hanging.volume.standing()
    assert [] == list(hanging.volume.mountpoint.iterdir())


def test_files_that_are_named_on_a_dead_store(hanging: Hanging, volume: CliVolume) -> None:
    """Neither a header backup nor an image without configuration hangs the command line, which is not to look at it."""
    other = str(hanging.store / "other")
    program = (
        f"from lukshook.store import liveness; liveness.SECONDS = {LIMIT}; from lukshook.cli.resize import main; main()"
    )
    copies = (
        *(("open", NAME, "--at", f"{volume.folder}/at", option, other) for option in ("--image", "--header")),
        *(("drill", NAME, option, other) for option in ("--image", "--header")),
    )
    sheet = ("sheet", NAME, "--output", f"{other}.txt")
    with hanging.hung():
        for words in (
            ("header", "backup", NAME, "--to", other),
            ("header", "restore", NAME, "--from", other),
            sheet,
            *copies,
        ):
            done = volume.start(*words, prepare=hasty).wait(15)
            assert (words, 69, True) == (words, done.returncode, "does not answer" in done.stderr)
        argv = [sys.executable, "-c", program, other, "1GiB"]
        ended = subprocess.run(argv, timeout=15, capture_output=True, text=True, check=False)
        assert (69, True) == (ended.returncode, "does not answer" in ended.stderr)


@frozen
class Asking:
    """Wait less long for stores, which hang already; note in *log* each loop device that is asked."""

    log: Path

    def __call__(self) -> None:
        hasty()
        loops.SECONDS = 1.0
        ask = loops._asked

        def noted(batches: Sequence[Sequence[str]]) -> list[str | None]:
            with self.log.open("a") as log:
                log.writelines(f"{node}\n" for batch in batches for node in batch)
            return ask(batches)

        loops._asked = noted


def hangs(asked: list[subprocess.Popen[bytes]], node: str) -> bool:
    """Whether the kernel still waits after half a second. Nobody can end a process that asks, so it goes to *asked*."""
    asked.append(subprocess.Popen(["losetup", node], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        asked[-1].wait(0.5)
    except subprocess.TimeoutExpired:
        return True
    return False


@pytest.mark.roots
@pytest.mark.needs("losetup")
def test_a_loop_device_of_others_on_a_dead_store(hanging: Hanging, volume: CliVolume, tmp_path: Path) -> None:
    """Another volume on this machine whose server is gone: ours opens and closes, and waits for it once."""
    file, log = hanging.store / "of-others", tmp_path / "log"
    file.write_bytes(bytes(1 << 20))
    asked: list[subprocess.Popen[bytes]] = []
    with attached(file) as node:
        with hanging.hung():
            assert kernel.wait_until(lambda: hangs(asked, node), 20.0)
            for words in (("before-backup", NAME), ("status", NAME), ("after-backup", NAME)):
                done = volume.start(*words, prepare=Asking(log)).wait(30)
                assert (words, 0, "") == (words, done.returncode, done.stderr)
        assert 1 == log.read_text().split().count(node)
        assert [0] * len(asked) == [one.wait(20) for one in asked]
    file.unlink()


@pytest.mark.roots
@pytest.mark.needs("losetup")
def test_a_loop_device_of_others_on_our_dead_image(hanging: Hanging, tmp_path: Path) -> None:
    """What it is marked with is not found out: status does not wait for that, and says that the store is gone."""
    asked: list[subprocess.Popen[bytes]] = []
    with attached(hanging.store / hanging.volume.image.name) as node:
        with hanging.hung():
            assert kernel.wait_until(lambda: hangs(asked, node), 20.0)
            done = hanging.volume.start("status", NAME, prepare=Asking(tmp_path / "log")).wait(30)
            assert (0, True) == (done.returncode, "does not answer" in done.stdout)
        assert [0] * len(asked) == [one.wait(20) for one in asked]


@pytest.fixture
def open_on(hanging: Hanging) -> Iterator[Hanging]:
    """The volume, open for a backup that has written a file."""
    hanging.volume.lukshook("before-backup", NAME)
    (hanging.volume.data / "file").write_bytes(b"content" * 4096)
    yield hanging
    hanging.volume.lukshook("after-backup", NAME)


def test_a_store_that_dies_during_the_backup(open_on: Hanging) -> None:
    """after-backup does not hang and does not say that all is well; when the store is back, closing goes through."""
    volume = open_on.volume
    with open_on.hung():
        done, seconds = open_on.lukshook("after-backup", NAME)
        assert 71 == done.returncode, done.stderr
        assert "the store of" in done.stderr
        assert seconds < 10
        told, seconds = open_on.lukshook("status", NAME)
        assert told.stdout.startswith(f"{NAME}: open")
        assert "PROBLEM       the store of" in told.stdout
        assert seconds < 10

    volume.do("after-backup", NAME)

    assert [] == volume.standing()
    volume.do("open", NAME, "--read-only")
    assert b"content" * 4096 == (volume.data / "file").read_bytes()
    volume.do("close", NAME)


def test_run_does_not_wait_for_a_dead_store(hanging: Hanging) -> None:
    """The command has ended well, and its volume cannot be closed: 71, and not the command's 0."""
    with hanging.resumed():
        done, seconds = hanging.lukshook("run", NAME, "--", "kill", "-STOP", str(hanging.daemon), prepare=less_patient)
        assert 71 == done.returncode, done.stderr
        assert seconds < 15

    hanging.volume.do("after-backup", NAME)
    assert [] == hanging.volume.standing()


def test_a_dead_store_hides_no_other_volume(hanging: Hanging, tmp_path: Path) -> None:
    """It costs its limit once, however many volumes lie on it; sizes that are not known are null, and left out."""
    volume, metrics = hanging.volume, tmp_path / "lukshook.prom"
    text = volume.config.read_text()
    second = text.replace(NAME, "second", 1).replace("/mnt", "/mnt2").replace("backup.img", "second.img")
    third = second.replace("second", "third").replace("/mnt2", "/mnt3").replace(str(hanging.store), str(tmp_path))
    volume.config.write_text(f'metrics = "{metrics}"\n{text}{second}{third}')
    (tmp_path / "third.img").write_bytes(bytes(4096))
    try:
        with hanging.hung():
            done, seconds = hanging.lukshook("status", "--json")
            hanging.lukshook("before-backup", NAME)
    finally:
        volume.config.write_text(text)

    facts = {fact["name"]: fact for fact in json.loads(done.stdout)}
    assert LIMIT <= seconds < 10
    assert [False, False, True] == [facts[name]["store_answers"] for name in (NAME, "second", "third")]
    assert [None, None, 4096] == [facts[name]["size"] for name in (NAME, "second", "third")]
    assert "does not answer" in facts[NAME]["problem"]
    assert f'lukshook_last_failed{{volume="{NAME}"}} 1' in metrics.read_text()
    assert "lukshook_image_bytes{" not in metrics.read_text()


def test_what_a_backup_wrote_is_counted(volume: CliVolume) -> None:
    """For those who watch it: a backup that suddenly writes nothing is none."""
    volume.do("run", NAME, "--", "dd", "if=/dev/zero", f"of={volume.data}/file", "bs=1M", "count=8", "status=none")

    assert 8 << 20 <= json.loads(volume.do("status", "--json"))[0]["last_written"] < 10 << 20

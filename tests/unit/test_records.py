"""Records of what is open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import asdict, evolve

from lukshook.cli import paths
from lukshook.errors import NotSafe, Unavailable
from lukshook.layers import image, loop
from lukshook.system import kernel, ownership
from lukshook.volume import lock_note, records, stack, users
from lukshook.volume.records import Record, User


def record() -> Record:
    """Two layers, one user."""
    return (
        Record("offsite", kernel.boot_id(), "kernel", False, 1.5, (User("borgmatic (pid 7)", 7, 99),))
        .push("image", image.Handle("/srv/b.img", 1, 2, 3, False))
        .push("loop", loop.Handle("/dev/loop7", 1, 2, True))
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Through JSON, with every layer's handle as its own type."""
    with records.locked(tmp_path / "run", "offsite") as book:
        book.save(record())

        for found in (book.load(), records.peek(tmp_path / "run", "offsite")):
            assert found is not None
            assert record() == found
            assert asdict(record().users[0]) == asdict(found.users[0])


def test_nothing_of_another_boot_is_open(tmp_path: Path) -> None:
    """Loop devices and mappings do not outlive the kernel."""
    with records.locked(tmp_path / "run", "offsite") as book:
        book.save(evolve(record(), boot="another"))

    with records.locked(tmp_path / "run", "offsite") as book:
        assert book.load() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"volume": "x"}', b"null"])
def test_a_broken_page_is_no_record(content: bytes, tmp_path: Path) -> None:
    """The kernel is asked then; a crash is not an obstacle."""
    with records.locked(tmp_path / "run", "offsite") as book:
        (tmp_path / "run/offsite.json").write_bytes(content)

        assert book.load() is None


def test_one_at_a_time(tmp_path: Path) -> None:
    """A second lukshook on the same volume waits, and then says why it cannot."""
    with (
        records.locked(tmp_path, "offsite"),
        pytest.raises(Unavailable) as caught,
        records.locked(tmp_path, "offsite", seconds=0.05),
    ):
        pass

    us = f"{kernel.command(os.getpid())} (pid {os.getpid()})"
    assert f"another lukshook is working on volume offsite: {us}" == caught.value.message


def test_who_waits_is_told_how_far_the_other_is(tmp_path: Path) -> None:
    """And that it can be ended, where it says what it does; nothing of one that had the lock before."""
    with records.locked(tmp_path, "offsite") as book:
        book.tell("copying to /disk, at 41 % of the image \x1b[2J" + "x" * 1000)
    with records.locked(tmp_path, "offsite") as book:
        assert "copying" not in str(told(tmp_path))
        book.tell("copying to /disk, at 42 % of the image")
        error = told(tmp_path)
    assert error.message.endswith(f"(pid {os.getpid()}), copying to /disk, at 42 % of the image")
    assert f"kill {os.getpid()}" in error.hint


@pytest.mark.parametrize("content", [b"", b"x", b"1 2", b"1 2 3", b"-1 5 x", b"\xff" * 999, b"99999999 1 a"])
def test_a_lock_without_a_holders_note_is_a_lock(content: bytes, tmp_path: Path) -> None:
    """Of an earlier version, of a killed one whose tool still has the lock, or spoilt."""
    with records.locked(tmp_path, "offsite"):
        (tmp_path / "offsite.lock").write_bytes(content)
        assert "another lukshook is working on volume offsite" == told(tmp_path).message


def test_a_lukshook_is_named_by_its_words(tmp_path: Path) -> None:
    """Without its interpreter."""
    script = tmp_path / "lukshook"
    script.write_text("import time; time.sleep(1000)")
    with subprocess.Popen([sys.executable, script, "copy", "offsite", "/disk"]) as process:
        try:
            words = "lukshook copy offsite /disk"  # exec(2) shows them a moment after it has begun
            assert kernel.wait_until(lambda: words == lock_note.command_of(process.pid), 60.0)
        finally:
            process.kill()


def told(folder: Path) -> Unavailable:
    """What a second one is told that waits for the lock of "offsite"."""
    with pytest.raises(Unavailable) as caught, records.locked(folder, "offsite", seconds=0.05):
        pass
    return caught.value


def test_the_folder_is_ours_alone(tmp_path: Path) -> None:
    """In a folder that others may write to, anybody could forge a record."""
    tmp_path.chmod(0o777)

    with pytest.raises(Unavailable), records.locked(tmp_path, "offsite"):
        pass


def test_a_dead_user_is_not_alive() -> None:
    """A pid that was given to another process later is told apart by its start time."""
    us = users.ourselves("test")

    assert us.alive()
    assert not evolve(us, started=us.started + 1).alive()
    assert not User("gone", 2**22 + 1, 5).alive()
    assert users.by_hand().alive()


def test_the_host_is_found_behind_shells(tmp_path: Path) -> None:
    """A hook line runs in a shell of its own, before and after in different ones: the tool above them is the user."""
    code = "from lukshook.volume import users; print(users.host().pid)"
    direct = [sys.executable, "-c", code]
    shell = ["sh", "-c", f"true; {sys.executable} -c '{code}'; true"]
    found = {subprocess.check_output(argv, text=True).strip() for argv in (direct, shell, ["env", *direct])}

    assert {str(os.getpid())} == found


def test_a_host_that_has_ended_is_not_alive() -> None:
    """A hook whose tool is killed is adopted by somebody who will never close: init, or whoever took that over."""
    hook = """
import os, time
from lukshook.volume import users
before = users.host().alive()
os.close(0)  # the tool ends when it reads the end of this
while os.getppid() == PARENT: time.sleep(0.01)
print(before, users.host().alive())
"""
    tool = f"""
import os, subprocess, sys
hook = {hook!r}.replace("PARENT", str(os.getpid()))
readable, writable = os.pipe()
subprocess.Popen([sys.executable, "-c", hook], stdin=writable)
os.close(writable)
os.read(readable, 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", tool], capture_output=True, text=True, start_new_session=True, check=False
    )

    assert "True False\n" == done.stdout, done.stderr


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (User("sh (pid 7)", 7, 99), User("python3 (pid 7)", 7, 99), True),
        (User("sh (pid 7)", 7, 99), User("sh (pid 7)", 7, 100), False),
        (User("sh (pid 7)", 7, 99, job="a"), User("sh (pid 7)", 7, 99, job="b"), False),
        (User("sh (pid 7)", 7, 99, job="a"), User("sh (pid 7)", 7, 99), False),
        (User("sh (pid 7)", 7, 99, job="a"), User("sh (pid 8)", 8, 99, job="a"), True),
        (User("x.service", cgroup="/x.service"), User("y", cgroup="/x.service"), True),
        (User("init"), users.by_hand(), False),
        (users.by_hand(), users.by_hand(), True),
    ],
)
def test_who_is_the_same_user(one: User, other: User, same: bool) -> None:
    """A process that changes its name or program (exec) stays the same; a job is known by its name."""
    assert same == (one == other)
    assert same == (len({one, other}) == 1)


def test_notes_are_for_those_who_are_alive_and_told_once(tmp_path: Path) -> None:
    """The first reason stays; nobody else's closing takes it."""
    us, gone, hand = users.ourselves("test"), User("gone", os.getpid(), 1), users.by_hand()
    with records.locked(tmp_path / "run", "offsite") as book:
        book.keep_unreported([us, gone], "first")
        book.keep_unreported([us, hand], "second")
        book.clear()
        assert ("first", "", "second") == (book.unreported(us), book.unreported(gone), book.unreported(hand))

        book.reported(us)
        assert ("", "second") == (book.unreported(us), book.unreported(hand))
        book.reported(hand)

    assert ["offsite.lock"] == [file.name for file in (tmp_path / "run").iterdir()]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'{"boot": "another", "notes": [[{"who": "x"}, "lost"]]}'),
        *(b'{"boot": "BOOT", "notes": 5}', b'{"boot": "BOOT", "notes": [5]}', b'{"boot": "BOOT", "notes": [[1, 2]]}'),
        b'{"boot": "BOOT", "notes": [[{"who": "x", "cgroup": 5}, "lost"]]}',
        b'{"boot": "BOOT", "notes": [[{"who": "x", "pid": "a\\u0000b"}, "lost"]]}',
    ],
)
def test_broken_notes_and_those_of_another_boot_are_none(content: bytes, tmp_path: Path) -> None:
    """A crash is not an obstacle."""
    with records.locked(tmp_path / "run", "offsite") as book:
        (tmp_path / "run/offsite.unreported").write_bytes(content.replace(b"BOOT", kernel.boot_id().encode()))

        assert "" == book.unreported(User("x"))
        book.keep_unreported([users.by_hand()], "lost")
        assert "lost" == book.unreported(users.by_hand())


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_the_folders_above_are_ours_alone_too(tmp_path: Path, umask: int) -> None:
    """The record lies below the known state: made with the umask of many desktops, that folder was refused later."""
    before = os.umask(umask)
    try:
        ownership.private_folder(tmp_path / "lukshook/run/machine")
        ownership.private_folder(tmp_path / "lukshook")
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["link", "writable", "file"])
def test_somebody_elses_folder_is_not_used(tmp_path: Path, kind: str) -> None:
    """In /tmp anybody can be there first."""
    place = tmp_path / "lukshook-1000"
    {"link": lambda: place.symlink_to(tmp_path), "writable": place.mkdir, "file": place.touch}[kind]()
    if kind == "writable":
        place.chmod(0o777)

    with pytest.raises(Unavailable):
        ownership.private_folder(place)


def test_a_users_places_do_not_depend_on_the_session() -> None:
    """XDG_RUNTIME_DIR is there in a session and not in cron, and its folder goes with the session."""
    environments = [{"HOME": "/home/u"}, {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}]
    first, second = (paths.places(environment, 7) for environment in environments)

    assert (first.run, first.mounts) == (second.run, second.mounts)
    assert not first.mounts.is_relative_to("/home/u")
    assert first.run.parent == Path("/home/u/.local/state/lukshook/run").resolve()
    assert Path("/run/user/7/lukshook") in second.former


def test_two_states_of_one_user_show_in_two_folders() -> None:
    """Two volumes of the same name do not meet."""
    one, two = (paths.places({"HOME": home}, 7).mounts for home in ("/home/u", "/home/v"))

    assert one != two


def test_a_process_whose_name_is_cut_within_a_letter_is_no_obstacle() -> None:
    """The kernel keeps 15 bytes of a name, and anybody may start a program of any name."""
    name = "open('/proc/self/comm', 'wb').write(b'x' * 14 + b'\\xc3\\xa4')"
    argv = [sys.executable, "-c", f"import sys; {name}; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert process.pid not in kernel.processes_named("sleep")
        process.communicate()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda place: place.symlink_to("nowhere")])
def test_something_else_in_the_place_of_the_notes_is_no_obstacle(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """Else each closing would fail before it closes."""
    with records.locked(tmp_path / "run", "offsite") as book:
        make(tmp_path / "run/offsite.unreported")

        assert "" == book.unreported(User("x"))
        book.keep_unreported([users.by_hand()], "lost")
        assert "lost" == book.unreported(users.by_hand())


class FullDisk(records.RecordFile):
    """A book whose disk has no room."""

    def save(self, record: Record) -> None:
        """Raises OSError."""
        raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_record_does_not_stop_a_closing(tmp_path: Path) -> None:
    """It goes on with what it knows; a loss, which the kernel reports only once, is reported at once."""
    book = FullDisk(tmp_path / "v.json", 0)
    stack.save_on_closing(unnoted := evolve(record(), to_be_noted=True), book)
    assert unnoted is book.load()
    with pytest.raises(NotSafe, match="some of it is lost"):
        stack.save_on_closing(evolve(record(), lost="some of it is lost"), book)

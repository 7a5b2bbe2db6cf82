"""A command that looks at thousands of volumes asks the kernel once for what is the same for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lukshook.system import kernel, one_look
from lukshook.volume import records


def test_an_answer_counts_while_one_look_lasts() -> None:
    """A look inside of one asks anew: it is another command's."""
    answers = iter(range(10))

    @one_look.same_for_all
    def ask() -> int:
        return next(answers)

    assert [0, 1] == [ask(), ask()]
    with one_look.one_look():
        assert [2, 2] == [ask(), ask()]
        with one_look.one_look():
            assert [3, 3] == [ask(), ask()]
        assert 2 == ask()
    assert [4, 5] == [ask(), ask()]


def test_what_is_asked_about_another_thing_is_another_question() -> None:
    """One look at the folder of one user's records is not one at another's."""
    answers = iter(range(10))

    @one_look.same_for_all
    def ask(folder: str) -> tuple[str, int]:
        return folder, next(answers)

    with one_look.one_look():
        assert [("a", 0), ("b", 1), ("a", 0)] == [ask("a"), ask("b"), ask("a")]


def test_the_records_of_copies_are_listed_once_in_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of thousands of volumes, each of which has left a file in that folder."""
    listed: list[Path] = []

    def note(folder: Path) -> list[str]:
        listed.append(folder)
        return []

    monkeypatch.setattr("os.listdir", note)

    with one_look.one_look():
        assert [[], []] == [records.copies(tmp_path, begin) for begin in ("a@", "b@")]

    assert [tmp_path] == listed


def test_the_mounts_around_a_path_are_those_on_the_way_to_it() -> None:
    """The innermost last, as the kernel goes through them; a name that only begins alike is another place."""

    def around(path: str) -> list[kernel.Mount]:
        on_the_way = [m for m in kernel.mounts() if path == m.target or path.startswith(m.target.rstrip("/") + "/")]
        return sorted(on_the_way, key=lambda mount: len(mount.target))

    with one_look.one_look():  # others may mount something meanwhile
        paths = ["/", "/proc", "/proc/self/mountinfo", "/procession", "/sys/fs/cgroup/x", "/nowhere/image"]
        paths += [mount.target.rstrip("/") + end for mount in kernel.mounts() for end in ("x", "/x")]
        for path in paths:
            assert around(path) == kernel.mounts_around(path)


def test_the_topmost_mount_of_a_place_is_found_in_each_look() -> None:
    """As without one."""

    def found() -> list[kernel.Mount | None]:
        return [kernel.mount_at(mount.target) for mount in kernel.mounts()]

    topmost = [next(m for m in reversed(kernel.mounts()) if m.target == n.target) for n in kernel.mounts()]
    with one_look.one_look():
        assert topmost == found()
    assert topmost == found()

"""A command that looks at thousands of volumes asks the kernel once for what is the same for all."""

from __future__ import annotations

from lukshook.system import kernel, one_look


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


def test_the_topmost_mount_of_a_place_is_found_in_each_look() -> None:
    """As without one."""

    def found() -> list[kernel.Mount | None]:
        return [kernel.mount_at(mount.target) for mount in kernel.mounts()]

    topmost = [next(m for m in reversed(kernel.mounts()) if m.target == n.target) for n in kernel.mounts()]
    with one_look.one_look():
        assert topmost == found()
    assert topmost == found()

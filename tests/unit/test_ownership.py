"""Whose a path is: every part of it, links included, judged for root and the user who runs lukshook."""

from __future__ import annotations

import itertools
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.system import ownership

NOBODY = 65534
ME = os.geteuid()


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder right in /tmp, which is sticky."""
    with tempfile.TemporaryDirectory(prefix="lukshook-owners-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_path_of_our_own_is_safe(tmp_path: Path, outside: Path) -> None:
    """Also below a sticky folder, and through links of our own, absolute and relative, with ".." in them."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch(mode=0o600)
    (tmp_path / "relative").symlink_to("folder/../folder")
    (outside / "absolute").symlink_to(tmp_path / "relative/file")

    assert "" == ownership.unsafe_part(outside / "absolute", ME)
    with ownership.reached(outside / "absolute", ME) as found:
        assert os.path.samestat(os.fstat(found.descriptor), (tmp_path / "folder/file").stat())


MODES = (0o700, 0o755, 0o750, 0o770, 0o775, 0o757, 0o777, 0o1777, 0o1775)


@pytest.mark.parametrize(("where", "mode"), list(itertools.product(("file", "above", "far above"), MODES)))
def test_a_part_that_others_can_write_to_is_named(tmp_path: Path, where: str, mode: int) -> None:
    """At any depth. A sticky folder is fine, a "sticky" file is not."""
    far = tmp_path / "far"
    file = far / "near/file"
    file.parent.mkdir(parents=True)
    file.touch()
    part = {"file": file, "above": file.parent, "far above": far}[where]
    for place in (far, file.parent, file):
        place.chmod(0o700)
    part.chmod(mode)
    bad = bool(mode & 0o022) and (where == "file" or not mode & 0o1000)

    found = ownership.faults_of(file, ME)

    assert bad == bool(found)
    if bad:
        assert f"others can write to {part} (mode {mode:04o})" == ownership.unsafe_part(file, ME)
        assert f"chmod go-w {part}" == ownership.remedies(found)


@pytest.mark.roots
@pytest.mark.parametrize(
    ("where", "uid"), list(itertools.product(("file", "above", "link", "target"), (0, NOBODY, 12345)))
)
def test_a_part_of_another_user_is_named(tmp_path: Path, where: str, uid: int) -> None:
    """The link itself as well: in a sticky folder its owner can exchange it. Root's and our own are fine."""
    link, folder = tmp_path / "link", tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    link.symlink_to("folder")
    part = {"file": folder / "file", "above": tmp_path, "link": link, "target": folder}[where]
    os.chown(part, uid, uid, follow_symlinks=False)

    assert bool(uid) == bool(ownership.unsafe_part(link / "file", 0))
    assert (uid == 12345) == bool(ownership.unsafe_part(link / "file", NOBODY))
    if uid:
        assert str(part) in ownership.unsafe_part(link / "file", 0)
        assert f"chown --no-dereference root {part}" in ownership.remedies(ownership.faults_of(link / "file", 0))


@pytest.mark.roots
def test_a_home_folder_stays_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pasted chown would lock that user out."""
    file = tmp_path / "home/config.toml"
    file.parent.mkdir()
    file.touch()
    os.chown(file.parent, NOBODY, NOBODY)
    user = pwd.struct_passwd(("tester", "x", NOBODY, NOBODY, "", str(file.parent), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)

    found = ownership.faults_of(file, 0)

    assert 1 == len(found)
    assert "chown" not in ownership.remedies(found)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    """With one line that ends all of them."""
    file = tmp_path / "a/b/file"
    file.parent.mkdir(parents=True)
    file.touch()
    for place in (file, file.parent, file.parent.parent):
        place.chmod(0o777)

    found = ownership.faults_of(file, ME)

    assert 3 == len(found)
    assert 0 == os.system(ownership.remedies(found))
    assert "" == ownership.unsafe_part(file, ME)


def test_no_link_is_followed_where_others_can_make_one(tmp_path: Path) -> None:
    """It is what they would use to lead root elsewhere."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "link").symlink_to("/etc")

    with ownership.reached(open_to_all / "link", ME) as found:
        assert os.lstat(open_to_all / "link").st_ino == os.fstat(found.descriptor).st_ino
        assert found.faults


def test_a_ring_of_links_ends(tmp_path: Path) -> None:
    """As the kernel has it: ELOOP."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(OSError, match="symbolic links"):
        ownership.unsafe_part(tmp_path / "a", ME)


@pytest.mark.parametrize("path", ["absent", "absent/below", "file/below"])
def test_what_is_not_there_is_an_error(tmp_path: Path, path: str) -> None:
    """No answer, rather than "safe"."""
    (tmp_path / "file").touch()

    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        ownership.unsafe_part(tmp_path / path, ME)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Neither when all is well nor after an error."""
    before = os.listdir("/proc/self/fd")

    ownership.unsafe_part(tmp_path, ME)
    with pytest.raises(FileNotFoundError):
        ownership.unsafe_part(tmp_path / "absent", ME)

    assert before == os.listdir("/proc/self/fd")

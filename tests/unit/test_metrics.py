"""The file for the monitoring system."""

from __future__ import annotations

import itertools
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import Unavailable
from lukshook.hookspecs import Outcome
from lukshook.plugins.open_and_close import OpenAndClose
from lukshook.report import metrics
from lukshook.system.secret import Secret
from lukshook.volume import known_state, users
from lukshook.volume.context import Site
from lukshook.volume.known_state import Known
from support.fake_runner import FakeRunner


def volumes(folder: Path) -> tuple[Volume, Volume]:
    """Two volumes whose images are there."""
    tables = {}
    for name in ("first", "second"):
        (folder / f"{name}.img").write_bytes(bytes(4096))
        paths = {"image": str(folder / f"{name}.img"), "mountpoint": str(folder / name)}
        tables[name] = {**paths, "key": f"file:{folder}/key", "engine": "kernel"}
    found = config.parse({"volumes": tables}, folder / "config.toml").volumes
    return found["first"], found["second"]


def site(folder: Path) -> Site:
    return Site(folder / "run", folder / "state", FakeRunner(), lambda volume: Secret(b""), print)


def lines(file: Path, volume: str) -> list[str]:
    return [line for line in file.read_text().splitlines() if f'"{volume}"' in line]


def test_a_volume_is_told_with_what_is_known_of_it(tmp_path: Path) -> None:
    """Times as numbers, what is not known left out, readable for everybody, every metric described once."""
    first, _ = volumes(tmp_path)
    file = tmp_path / "lukshook.prom"
    known_state.KnownState(tmp_path / "state", "first").save(Known(last_success=1790000000.25, unclean=2))

    metrics.write(file, first, site(tmp_path), failed=True)

    found = lines(file, "first")
    assert 'lukshook_last_success_timestamp_seconds{volume="first"} 1790000000.25' in found
    assert 'lukshook_last_failed{volume="first"} 1' in found
    assert 'lukshook_open{volume="first"} 0' in found
    assert 'lukshook_unclean_total{volume="first"} 2' in found
    assert 'lukshook_image_bytes{volume="first"} 4096' in found
    assert not [line for line in found if "duration" in line]
    assert 0o644 == file.stat().st_mode & 0o777
    described = [line.split()[2] for line in file.read_text().splitlines() if line.startswith("# TYPE")]
    assert len(set(described)) == len(described)


def test_other_volumes_stay(tmp_path: Path) -> None:
    """Each backup replaces its own lines only; what belongs to one metric stands together."""
    first, second = volumes(tmp_path)
    file = tmp_path / "lukshook.prom"
    metrics.write(file, first, site(tmp_path), failed=False)
    before = lines(file, "first")

    metrics.write(file, second, site(tmp_path), failed=True)
    metrics.write(file, second, site(tmp_path), failed=False)

    assert before == lines(file, "first")
    assert 'lukshook_last_failed{volume="second"} 0' in lines(file, "second")
    names = [line.split("{")[0] for line in file.read_text().splitlines() if not line.startswith("#")]
    assert names == [name for name in dict.fromkeys(names) for _ in range(names.count(name))]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """As a known error, which becomes a warning: the backup itself was good."""
    first, _ = volumes(tmp_path)

    with pytest.raises(Unavailable, match="metrics"):
        metrics.write(tmp_path / "none/lukshook.prom", first, site(tmp_path), failed=False)


@pytest.mark.parametrize(
    "damage", ['lukshook_open{volume="second"} 1.2.3', 'lukshook_open{volume="sec"ond"} 1', 'lukshook_open{volume="se']
)
def test_a_damaged_line_is_left_out_and_the_others_stay(tmp_path: Path, damage: str) -> None:
    """A disk that was full, or an editor: the file becomes whole again with the next backup."""
    first, second = volumes(tmp_path)
    file = tmp_path / "lukshook.prom"
    metrics.write(file, second, site(tmp_path), failed=False)
    kept = [line for line in lines(file, "second") if not line.startswith("lukshook_open{")]
    file.write_text("\n".join([damage, *kept, ""]))

    metrics.write(file, first, site(tmp_path), failed=False)

    assert kept == lines(file, "second")
    assert damage not in file.read_text()


def test_nobody_sees_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its mode before it has its name."""
    modes = []
    replace = os.replace

    def look(fresh: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        modes.append(os.stat(fresh, dir_fd=src_dir_fd).st_mode & 0o777)
        replace(fresh, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", look)

    metrics.write(tmp_path / "lukshook.prom", volumes(tmp_path)[0], site(tmp_path), failed=False)

    assert [0o644] == modes


def test_the_file_keeps_the_rules_of_the_format(tmp_path: Path) -> None:
    """HELP and TYPE once and before the samples of one metric, which stand together; no sample twice, no time stamp."""
    for volume in volumes(tmp_path):
        metrics.write(tmp_path / "m.prom", volume, site(tmp_path), failed=False)

    text = (tmp_path / "m.prom").read_text()

    order = [re.match(r"(?:# (?:HELP|TYPE) )?(\w+)", line)[1] for line in text.splitlines()]  # type: ignore[index]
    groups = [name for name, _ in itertools.groupby(order)]
    assert len(set(groups)) == len(groups)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'lukshook_[a-z_]+\{volume="\w+"\} [0-9.e+]+', line) for line in samples)
    assert len({line.split(" ")[0] for line in samples}) == len(samples)
    assert text.endswith("\n")


# What others can prepare

NOBODY = 65534


def pipe(place: Path) -> None:
    os.mkfifo(place, 0o600)


def to_zeroes(place: Path) -> None:
    place.symlink_to("/dev/zero")


def to_a_file(place: Path) -> None:
    place.with_name("victim").write_text("mine")
    place.symlink_to(place.with_name("victim"))


def endless(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)


def within(seconds: float, work: Callable[[], None]) -> None:
    """Fail when *work* takes longer, or when it fails."""
    failures: list[BaseException] = []

    def tried() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("name", ["m.prom", "m.prom.new"])
@pytest.mark.parametrize("make", [pipe, to_zeroes, to_a_file, endless])
def test_what_lies_at_the_place_is_replaced_and_not_used(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    """Nothing that waits or has no end is read, and nothing is written through a link."""
    first, _ = volumes(tmp_path)
    make(tmp_path / name)

    within(30, lambda: metrics.write(tmp_path / "m.prom", first, site(tmp_path), failed=False))

    assert stat.S_ISREG((tmp_path / "m.prom").lstat().st_mode)
    assert lines(tmp_path / "m.prom", "first")
    if make is to_a_file:
        assert "mine" == (tmp_path / "victim").read_text()


@pytest.mark.parametrize("name", ["m.prom", "m.prom.new"])
def test_who_made_the_file_beforehand_cannot_add_to_it(tmp_path: Path, name: str) -> None:
    """They have the old file open, not the new one."""
    (tmp_path / name).touch()
    with (tmp_path / name).open("a") as theirs:
        metrics.write(tmp_path / "m.prom", volumes(tmp_path)[0], site(tmp_path), failed=False)
        before = (tmp_path / "m.prom").read_text()
        theirs.write("lukshook_last_failed 0")

    assert before == (tmp_path / "m.prom").read_text()


@pytest.mark.roots
def test_lines_in_a_file_of_another_user_are_not_taken_over(tmp_path: Path) -> None:
    """In a sticky folder anybody can make the file."""
    first, second = volumes(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    file = tmp_path / "open/m.prom"
    metrics.write(file, second, site(tmp_path), failed=False)
    os.chown(file, NOBODY, NOBODY)

    metrics.write(file, first, site(tmp_path), failed=False)

    assert lines(file, "first") and not lines(file, "second")
    assert 0 == file.stat().st_uid


MODES = (0o755, 0o775, 0o777, 0o1777)
OWNERS = (0, pytest.param(NOBODY, marks=pytest.mark.roots))


@pytest.mark.parametrize("uid", OWNERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["folder", "above"])
def test_the_folder_has_to_be_ours_or_roots(tmp_path: Path, part: str, mode: int, uid: int) -> None:
    """One above it may be another user's: Debian's /var/lib/prometheus belongs to prometheus."""
    first, _ = volumes(tmp_path)
    folder = tmp_path / "prometheus/node-exporter"
    folder.mkdir(parents=True)
    place = {"folder": folder, "above": folder.parent}[part]
    place.chmod(mode)
    if uid:
        os.chown(place, uid, uid)

    if part == "folder" and (uid or mode in (0o775, 0o777)):
        with pytest.raises(Unavailable, match="is not written") as caught:
            metrics.write(folder / "m.prom", first, site(tmp_path), failed=False)
        assert ("chown" if uid else "chmod go-w") in caught.value.hint
        assert [] == list(folder.iterdir())
    else:
        metrics.write(folder / "m.prom", first, site(tmp_path), failed=False)
        assert lines(folder / "m.prom", "first")


@pytest.mark.parametrize("depth", ["folder", "above"])
def test_no_link_of_others_is_followed(tmp_path: Path, depth: str) -> None:
    """It would let root replace a file elsewhere, in a folder of root's."""
    first, _ = volumes(tmp_path)
    (tmp_path / "roots/node-exporter").mkdir(parents=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    link = theirs / "link"
    link.symlink_to(tmp_path / ("roots/node-exporter" if depth == "folder" else "roots"))
    file = (link if depth == "folder" else link / "node-exporter") / "m.prom"

    with pytest.raises(Unavailable):
        metrics.write(file, first, site(tmp_path), failed=False)

    assert [] == list((tmp_path / "roots/node-exporter").iterdir())


def test_a_file_that_cannot_be_written_silences_no_plugin(tmp_path: Path) -> None:
    """Ours is the first of the reports: one that raised would be the last."""
    warnings: list[str] = []
    missing = evolve(site(tmp_path), metrics=tmp_path / "missing/lukshook.prom", warn=warnings.append)

    OpenAndClose(missing, users.by_hand()).report(volumes(tmp_path)[0], Outcome(failed=True))

    assert 1 == len(warnings)
    assert "metrics file" in warnings[0]

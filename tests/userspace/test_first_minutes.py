"""The transcript in the README: `init`, a first backup, and the proof that it is on the store."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.terminal import answered
from support.volume import CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "qemu-img", "fusermount3", "fuse2fs", "mkfs.ext4")
README = Path(__file__).parents[2] / "README.md"
#: What differs from machine to machine.
SIZE = re.compile(r"~?[0-9.]+[KMGT]?i?B\b")


def transcript() -> dict[str, list[str]]:
    """Each command that is typed in the README's first minutes, with the lines below it."""
    part = README.read_text().partition("## The first five minutes")[2]
    block = part.partition("```console\n")[2].partition("```")[0]
    typed: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("# "):
            typed[line.removeprefix("# ")] = []
        else:
            typed[list(typed)[-1]].append(line)
    return typed


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CliVolume]:
    """A machine without a configuration."""
    made = CliVolume(tmp_path, "userspace")
    made.prepare()
    made.config.unlink()
    made.key.unlink()
    yield from closing(made)


def as_in_the_readme(volume: CliVolume, text: str) -> str:
    """With the README's places in place of ours, and without what was proposed and answered."""
    shown = {
        volume.config: "/etc/lukshook/config.toml",
        volume.mountpoint: "/mnt/offsite",
    }
    for ours, theirs in shown.items():
        text = text.replace(str(ours), theirs)
    text = re.sub(r" \(here: [^)\n]*\)", "", text.replace("-- cp -r ", "-- cp -a "))
    return SIZE.sub("SIZE", re.sub(r" \[[^]\n]*\]:.*", " []:", text))


def pattern(lines: list[str]) -> str:
    """What matches the lines of a transcript, in which "..." stands for any lines."""
    return "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in lines)


def test_the_transcript_of_the_readme(volume: CliVolume, tmp_path: Path) -> None:
    """What a newcomer sees is what stands there; the backup is on the store."""
    (init, asked), (run, said), (verify, proof) = transcript().items()
    assert ["lukshook", "init"] == shlex.split(init)
    answers = ["", str(volume.image), str(volume.mountpoint), "64MiB", f"file:{volume.key}", "none", ""]
    words = ["init", *(["--old-fuse2fs"] if os.geteuid() else [])]

    session = answered(volume, words, answers)

    assert 0 == session.returncode, session.seen
    expected = as_in_the_readme(volume, "\n".join(asked)).splitlines()
    assert re.fullmatch(pattern(expected), as_in_the_readme(volume, session.seen)), session.seen
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear reader")
    places = {"/home": str(tmp_path / "home"), "/mnt/offsite/data/": f"{volume.data}/"}
    command = [places.get(word, word) for word in shlex.split(run)[1:]]
    assert ["".join(said)] == [volume.do(*command)]
    assert SIZE.sub("SIZE", "\n".join(proof)) == SIZE.sub("SIZE", volume.do(*shlex.split(verify)[1:]).rstrip("\n"))
    volume.do("open", "offsite", "--read-only")
    assert "dear reader" == (volume.data / "home/letter").read_text()
    volume.do("close", "offsite")

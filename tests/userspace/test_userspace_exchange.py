"""The exchanges of image_exchange_cases.py, with the userspace engine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.store.image_file import ImageFile
from support.command_fault_cases import check_next_run, volume_with_a_file
from support.image_exchange import exchange, undo
from support.image_exchange_cases import (  # noqa: F401 - pytest finds them here
    kinds,
    pytest_generate_tests,
    test_whatever_lies_there_instead,
)
from support.volume import NAME, CliVolume, closing

ENGINE = "userspace"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume with a file that was backed up; the tests leave it closed."""
    yield from volume_with_a_file(tmp_path_factory.mktemp("exchanges"), ENGINE)


def test_closing_waits_for_nothing_that_lies_there_instead(volume: CliVolume) -> None:
    """The volume is closed, and the loss is reported: what was written is not where the next opening would look."""
    for what in kinds():
        if what.endswith("and back"):
            continue
        volume.do("before-backup", NAME)
        (volume.folder / "victim").write_bytes(volume.image.read_bytes())
        exchange(volume, what, volume.folder / "victim")

        volume.refusal(74, "after-backup", NAME)

        assert volume.is_bare()
        undo(volume)
        check_next_run(volume)


@pytest.fixture
def new(tmp_path: Path) -> Iterator[CliVolume]:
    """A configured volume of which nothing is there yet."""
    volume = CliVolume(tmp_path, ENGINE)
    volume.prepare()
    yield from closing(volume)


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 74), (errno.EINVAL, 0)])
def test_an_image_that_has_its_name_stays_known(new: CliVolume, number: int, code: int) -> None:
    """Whatever the store says of its folder then: without its pins and header backup an old or forged one would do."""

    def fail(image: ImageFile) -> None:
        raise OSError(number, os.strerror(number))

    done = new.start("create", NAME, prepare=lambda: setattr(ImageFile, "sync_folder", fail)).wait()

    assert code == done.returncode, done
    assert {f"{NAME}.json", f"{NAME}.header"} == {file.name for file in new.state_folder.iterdir()}
    new.do("before-backup", NAME)
    new.do("after-backup", NAME)


def test_the_store_does_not_decide_what_this_host_knows(new: CliVolume) -> None:
    """It hides the image and shows what an interrupted `create` leaves: pins and header backup stay."""
    new.do("create", NAME)
    new.image.rename(new.folder / "aside")
    (new.image.parent / f".{new.image.name}.lukshook-new").touch()
    before = {file.name: file.read_bytes() for file in new.state_folder.iterdir()}

    assert "already has state" in new.refusal(73, "create", NAME)

    assert before == {file.name: file.read_bytes() for file in new.state_folder.iterdir()}

"""dm-crypt and a loop device on a store that hangs, or goes away, under an open volume."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lukshook.layers import mount
from lukshook.system import kernel, libc
from support.hung_store import Hanging, less_patient, on_hanging_store, serve, unmount
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("fuse2fs", "mkfs.ext4")
CONTENT = os.urandom(1 << 20)


@pytest.fixture
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hanging]:
    """A volume that is open for a backup, which has written a file."""
    template = CliVolume(tmp_path_factory.mktemp("template"), "kernel")
    template.prepare()
    template.do("create", NAME)
    template.remove()
    for hanging in on_hanging_store(template, tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("hanging")):
        done = hanging.volume.lukshook("before-backup", NAME)
        assert 0 == done.returncode
        assert done.stderr.startswith("warning: a lock on the image")
        (hanging.volume.data / "file").write_bytes(CONTENT)
        yield hanging


def safe(hanging: Hanging) -> bool:
    """Whether the file is there at the next opening, which is told no warning a second time."""
    hanging.volume.do("before-backup", NAME)
    content = (hanging.volume.data / "file").read_bytes()
    hanging.volume.do("after-backup", NAME)
    return content == CONTENT


def test_a_store_that_hangs(hanging: Hanging) -> None:
    """71 within the limit, and no quiet 75 for the next backup; all is there when the store is back."""
    with hanging.hung():
        done, seconds = hanging.lukshook("after-backup", NAME)
        assert 71 == done.returncode, done.stderr
        assert seconds < 10
        assert 69 == hanging.lukshook("before-backup", NAME, "--soft")[0].returncode
        assert 0 == hanging.lukshook("status")[0].returncode

    hanging.volume.do("after-backup", NAME)
    assert safe(hanging)


def test_a_store_that_hangs_while_the_volume_is_written_out(hanging: Hanging) -> None:
    """It has answered a moment before; no block moves any more, and that is told."""

    def hangs_in_between() -> None:
        less_patient()
        write_out = libc.flush
        mount._STALLED_SECONDS = 1.0

        def hanging_write_out(descriptor: int) -> None:
            os.kill(hanging.daemon, signal.SIGSTOP)
            write_out(descriptor)

        setattr(libc, "flush", hanging_write_out)  # noqa: B010

    with hanging.resumed():
        done, seconds = hanging.lukshook("after-backup", NAME, prepare=hangs_in_between)
        assert 71 == done.returncode, done.stderr
        assert "sync did not finish within 1 s: the store does not answer" in done.stderr
        assert seconds < 20

    assert kernel.wait_until(lambda: hanging.volume.lukshook("after-backup", NAME).returncode == 0, 30.0)
    assert safe(hanging)


def test_a_store_that_goes_away(hanging: Hanging) -> None:
    """74, and closed all the same; when it is mounted again, the next backup works."""
    os.kill(hanging.daemon, signal.SIGKILL)
    assert kernel.wait_until(lambda: kernel.started(hanging.daemon) is None, 20.0)

    assert 74 == hanging.volume.lukshook("after-backup", NAME).returncode
    assert [] == hanging.volume.standing()

    unmount(hanging.store)
    serve(hanging.store, hanging.store.with_name("device"))
    hanging.volume.lukshook("before-backup", NAME)
    (hanging.volume.data / "file").write_bytes(CONTENT)
    hanging.volume.do("after-backup", NAME)
    assert safe(hanging)

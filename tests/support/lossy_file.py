"""A file whose machine can lose its power: what was written to it and not synced is gone then."""

from __future__ import annotations

import subprocess
from pathlib import Path

from attrs import define, field

from lukshook.system import kernel


@define
class LossyFile:
    """*shown* shows *kept*, which gets what is written there when it is synced. *folder*: for a socket.

    nbdkit's filter keeps what was not flushed in a file of its own, which goes with it (nbdkit-cache-filter(1)).
    """

    shown: Path
    kept: Path
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(factory=list)

    def start(self) -> None:
        """It appears, as it was kept."""
        socket = self.folder / "lossy"
        socket.unlink(missing_ok=True)
        words = ["nbdkit", "--foreground", f"--unix={socket}", "--filter=cache", "file", str(self.kept)]
        self.processes.append(subprocess.Popen([*words, "cache=writeback"], stdin=subprocess.DEVNULL))
        assert kernel.wait_until(socket.exists, 20.0)
        words = ["nbdfuse", str(self.shown), "--unix", str(socket)]
        self.processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL))
        assert kernel.wait_until(lambda: kernel.mount_at(self.shown) is not None, 20.0)

    def crash(self) -> None:
        """It is gone, with all that was not synced. Nobody may have it open."""
        for process in reversed(self.processes):
            process.kill()
            process.wait(10)
        self.processes.clear()
        while kernel.mount_at(self.shown) is not None:
            subprocess.run(["umount", "--lazy", self.shown], check=True)

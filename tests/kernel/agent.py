"""Process 1 of the test kernel: starts what guest.py asks for on the serial line and sends the output back.

One JSON object per line. In: {"job", "argv", "env", "cwd", "stdin"}, {"job", "signal"} or {"off": true}.
Out: {"ready"}, {"job", "stream", "data"} (base64) and {"job", "exit"}.
"""

import base64
import json
import os
import selectors
import signal
import subprocess
import sys
import tty
from pathlib import Path
from typing import Any

LINE = "/dev/ttyS0"


class Agent:
    """The jobs that are running, and the line to the host."""

    def __init__(self, line: int, folder: str) -> None:
        self.line = line
        self.folder = folder
        self.selector = selectors.DefaultSelector()
        self.jobs: dict[int, int] = {}
        self.open_streams: dict[int, int] = {}
        self.exits: dict[int, int] = {}
        self.pending = b""

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data) :]

    def start(self, job: int, argv: list[str], env: dict[str, str], cwd: str, stdin: str) -> None:
        source = os.memfd_create("stdin")
        os.write(source, base64.b64decode(stdin))
        os.lseek(source, 0, os.SEEK_SET)
        try:
            child = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            text = base64.b64encode(f"{argv[0]}: {error.strerror}\n".encode()).decode()
            self.send(job=job, stream=2, data=text)
            self.send(job=job, exit=127)
            return
        finally:
            os.close(source)
        self.jobs[child.pid] = job
        self.watch(job, child)
        child.returncode = 0  # reap() waits for it, as for every orphan

    def watch(self, job: int, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout and child.stderr
        self.open_streams[job] = 2
        for number, pipe in ((1, child.stdout), (2, child.stderr)):
            os.set_blocking(pipe.fileno(), False)
            self.selector.register(pipe, selectors.EVENT_READ, (job, number))

    def forward(self, pipe: Any, job: int, number: int) -> None:
        data = os.read(pipe.fileno(), 32768)
        if data:
            self.send(job=job, stream=number, data=base64.b64encode(data).decode())
            return
        self.drop(pipe, job)

    def drop(self, pipe: Any, job: int) -> None:
        self.selector.unregister(pipe)
        pipe.close()
        self.open_streams[job] -= 1

    def drain(self, job: int) -> None:
        """Send what an ended job has written; a daemon it left behind may keep the pipe open."""
        for key in list(self.selector.get_map().values()):
            if not (isinstance(key.data, tuple) and key.data[0] == job):
                continue
            try:
                while key.fileobj in self.selector.get_map():
                    self.forward(key.fileobj, *key.data)
            except BlockingIOError:
                self.drop(key.fileobj, job)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.jobs:
                job = self.jobs.pop(pid)
                self.drain(job)
                self.send(job=job, exit=os.waitstatus_to_exitcode(status))

    def obey(self, message: dict[str, Any]) -> None:
        if "off" in message:
            self.power_off()
        elif "signal" in message:
            for pid in [pid for pid, job in self.jobs.items() if job == message["job"]]:
                os.killpg(pid, message["signal"])
        else:
            self.start(**message)

    def power_off(self) -> None:
        subprocess.run(["umount", self.folder], check=False, stderr=subprocess.DEVNULL)
        os.sync()
        Path("/proc/sysrq-trigger").write_text("o")
        signal.pause()

    def read_line(self) -> None:
        data = os.read(self.line, 4096)
        if not data:
            self.power_off()
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            self.obey(json.loads(line))

    def serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        self.selector.register(wake_read, selectors.EVENT_READ, "child")
        self.selector.register(self.line, selectors.EVENT_READ, "line")
        self.send(ready=True)
        while True:
            for key, _ in self.selector.select():
                if key.data == "line":
                    self.read_line()
                elif key.data == "child":
                    os.read(wake_read, 512)
                    self.reap()
                elif key.fileobj in self.selector.get_map():
                    self.forward(key.fileobj, *key.data)


def main() -> None:
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(line)
    try:
        Agent(line, sys.argv[1]).serve()
    except OSError as error:
        print(f"agent: the line to the host is gone: {error}", flush=True)
        Path("/proc/sysrq-trigger").write_text("o")
        signal.pause()


if __name__ == "__main__":
    main()

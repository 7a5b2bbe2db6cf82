"""Process 1 of the test kernel: starts what guest.py asks for on the serial line and sends the output back.

One JSON object per line. In: {"job"}, {"job", "signal"}, {"tasks": true} (what each process waits for, on the
console) or {"off": true}. A job's argv, env, cwd and stdin lie
as JSON in /host/NUMBER: UML 6.1 stops reading a serial line for good once more than some KiB came at once.
Out: {"ready"}, {"job", "stream", "data"} (base64) and {"job", "exit"}; {"mark"} asks for {"ack"}.
"""

import base64
import contextlib
import io
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
JOBS = Path("/host")
WINDOW = 256 << 10  # bytes sent before the host has to say that it has read them; its pipe holds more


class Agent:
    """The jobs that are running, and the line to the host."""

    def __init__(self, line: int, folder: str) -> None:
        self.line = line
        self.folder = folder
        self.selector = selectors.DefaultSelector()
        self.jobs: dict[int, int] = {}
        self.pending = b""
        self.queue: list[dict[str, Any]] = []
        self.unread = 0

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        self.unread += len(data)
        while data:
            data = data[os.write(self.line, data) :]
        if self.unread > WINDOW:
            self.unread = 0
            self.send(mark=True)
            self.wait_for_ack()

    def wait_for_ack(self) -> None:
        acknowledged = False
        while not acknowledged:
            messages = self.receive()
            acknowledged = any("ack" in message for message in messages)
            self.queue += [message for message in messages if "ack" not in message]

    def start(self, job: int) -> None:
        order = json.loads((JOBS / str(job)).read_text())
        source = os.memfd_create("stdin")
        os.write(source, base64.b64decode(order["stdin"]))
        os.lseek(source, 0, os.SEEK_SET)
        try:
            child = subprocess.Popen(
                order["argv"],
                env=order["env"],
                cwd=order["cwd"],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            text = f"{error.filename}: {error.strerror}\n"
            self.send(job=job, stream=2, data=base64.b64encode(text.encode()).decode())
            self.send(job=job, exit=127)
            return
        finally:
            os.close(source)
        self.jobs[child.pid] = job
        self.watch(job, child)
        child.returncode = 0  # reap() waits for it, as for every orphan

    def watch(self, job: int, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout and child.stderr
        for number, pipe in ((1, child.stdout), (2, child.stderr)):
            os.set_blocking(pipe.fileno(), False)
            self.selector.register(pipe, selectors.EVENT_READ, (job, number))

    def forward(self, pipe: io.BufferedReader, job: int, number: int) -> None:
        data = os.read(pipe.fileno(), 32768)
        if data:
            self.send(job=job, stream=number, data=base64.b64encode(data).decode())
            return
        self.drop(pipe)

    def drop(self, pipe: io.BufferedReader) -> None:
        self.selector.unregister(pipe)
        pipe.close()

    def drain(self, job: int) -> None:
        """Send what an ended job has written; a daemon it left behind may keep the pipe open."""
        for key in list(self.selector.get_map().values()):
            pipe = key.fileobj
            if not (isinstance(pipe, io.BufferedReader) and key.data[0] == job):
                continue
            try:
                while not pipe.closed:
                    self.forward(pipe, *key.data)
            except BlockingIOError:
                self.drop(pipe)

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
        elif "tasks" in message:
            show_tasks()
        elif "signal" in message:
            for pid in [pid for pid, job in self.jobs.items() if job == message["job"]]:
                os.killpg(pid, message["signal"])
        else:
            self.start(message["job"])

    def power_off(self) -> None:
        subprocess.run(["umount", self.folder], check=False, stderr=subprocess.DEVNULL)
        os.sync()
        Path("/proc/sysrq-trigger").write_text("o")
        signal.pause()

    def receive(self) -> list[dict[str, Any]]:
        data = os.read(self.line, 4096)
        if not data:
            self.power_off()
        *lines, self.pending = (self.pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

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
                    self.queue += self.receive()
                elif key.data == "child":
                    os.read(wake_read, 512)
                    self.reap()
                elif isinstance(key.fileobj, io.BufferedReader) and not key.fileobj.closed:
                    self.forward(key.fileobj, *key.data)
            while self.queue:
                self.obey(self.queue.pop(0))


def show_tasks() -> None:
    """A line for each process: number, parent, state, command and where in the kernel it waits (proc(5)).

    Threads of the kernel that have nothing to do are left out.
    """
    for place in sorted(Path("/proc").glob("[0-9]*"), key=lambda place: int(place.name)):
        with contextlib.suppress(OSError):
            name, _, fields = (place / "stat").read_text().rpartition(")")
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            stack = (place / "stack").read_text().split("\n")
            calls = " < ".join(line.split()[-1] for line in stack if line)
            state, parent = fields.split()[:2]
            if state == "I":
                continue
            print(f"{place.name} {parent} {state} {words or name}: {calls}", flush=True)


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

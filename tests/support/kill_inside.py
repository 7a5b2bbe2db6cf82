"""Runs a command, and kills it when it is about to write or flush a file for the N-th time: `kill_inside.py N COMMAND`.

Its exit status is that of the command, and 137 if that was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

KILLED = 128 + signal.SIGKILL
#: write, pwrite64, fsync, fdatasync (asm/unistd.h).
_CHANGES = {"x86_64": (1, 18, 74, 75), "aarch64": (64, 68, 82, 83)}
_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E  # linux/ptrace.h
_TRACESYSGOOD, _EXITKILL = 1, 1 << 20
_ENTRY = 1

_PTRACE = ctypes.CDLL(None, use_errno=True).ptrace


class _Info(ctypes.Structure):
    """The beginning of struct ptrace_syscall_info."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
        ("file", ctypes.c_uint64),
    )


def _ptrace(request: int, pid: int, size: int = 0, data: object = None) -> None:
    if _PTRACE(request, pid, ctypes.c_void_p(size), data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _changes_a_file(pid: int) -> bool:
    """Whether the process, which stands at a system call, is about to change a file."""
    info = _Info()
    _ptrace(_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.byref(info))
    return info.op == _ENTRY and info.number in _CHANGES[os.uname().machine] and info.file > sys.stderr.fileno()


def main(last: int, command: list[str]) -> int:
    pid = os.fork()
    if not pid:
        _ptrace(_TRACEME, 0)
        os.execvp(command[0], command)
    _, status = os.waitpid(pid, 0)  # it stops when the command begins
    _ptrace(_SETOPTIONS, pid, data=ctypes.c_void_p(_TRACESYSGOOD | _EXITKILL))
    count = signals = 0
    while os.WIFSTOPPED(status):
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            count, signals = count + _changes_a_file(pid), 0
        elif os.WSTOPSIG(status) != signal.SIGTRAP:
            signals = os.WSTOPSIG(status)
        if count == last:
            os.kill(pid, signal.SIGKILL)
        else:
            _ptrace(_SYSCALL, pid, data=ctypes.c_void_p(signals))
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

"""A service in a whole machine: runs the commands that whole_machine.py sends over a virtio port, one after the other.

One JSON object per line. In: {"argv", "stdin"}. Out: {"ready"}, then {"returncode", "stdout", "stderr"} each time.
Whatever a command leaves running has to write elsewhere: the answer waits for the end of its output.
"""

import json
import os
import subprocess
import sys
import time


def send(port: int, message: dict[str, object]) -> None:
    """Write one line."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def answer(order: dict[str, object]) -> dict[str, object]:
    """Run a command to its end."""
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            order["argv"], input=order["stdin"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        return {"returncode": 127, "stdout": "", "stderr": f"{error.filename}: {error.strerror}\n"}
    return {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def main() -> None:
    """Answer until the host is gone."""
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.5)
    port = os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
    send(port, {"ready": True})
    with os.fdopen(port, "rb", closefd=False) as lines:
        for line in lines:
            send(port, answer(json.loads(line)))


if __name__ == "__main__":
    main()

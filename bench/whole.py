"""bench/run: what can be measured here is measured here, what needs device-mapper where there is device-mapper."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import latency
import proof
import remote
import rivals
import scale
import throughput
from measure import QUIET, StepFailed, used_by_others
from rows import Curve, Row, chart, curve_from, curve_table, row_from, table

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
#: MiB of a disk for the guest, sparse, and of its memory: the recipe's argon2id wants 1 GiB, half of what there is.
GUEST_DISK, GUEST_MEMORY = 12288, 3072
GUEST_SECONDS = 3600

Part = Callable[[Path, int, str], tuple[list[Row], list[Curve]]]
#: What needs device-mapper, and how many rounds it gets for each one asked for.
KERNEL_PARTS: dict[str, Part] = {
    "latency": latency.measure,
    "floor": lambda folder, rounds, where: latency.floor(folder, 2 * rounds + 1, where),
    "throughput": throughput.measure,
    "small": throughput.small_files,
    "choices": throughput.choices,
    "images": lambda folder, rounds, where: scale.images(folder, max(1, rounds // 2), where),
    "growing": lambda folder, rounds, where: scale.growing(folder, max(1, rounds // 2), where),
    "store": scale.store,
    "open": lambda folder, rounds, where: scale.many_open(folder, where),
    "ledger": lambda folder, rounds, where: proof.backup_with_kernel(folder, max(1, rounds // 2), where),
}
NATIVE_PARTS: dict[str, Part] = {
    "start": lambda folder, rounds, where: scale.command_start(4 * rounds + 1, where),
    "hook": lambda folder, rounds, where: latency.hook(folder, 2 * rounds + 1, where),
    "userspace": rivals.beside_gocryptfs,
    "cryfs": rivals.beside_cryfs,
    "status": lambda folder, rounds, where: scale.status(folder, 2 * rounds + 1, where),
    "verify": proof.verify,
    "copy": proof.copy,
    "userspace-ledger": proof.backup_in_userspace,
    "remote": lambda folder, rounds, where: remote.measure(folder, max(1, rounds // 2), where),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure lukshook against the plain recipe, a tuned shell and tomb. Run it with a Python that has "
        "lukshook beside it, or with .venv here. As root where there is device-mapper, else in the test kernel."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*NATIVE_PARTS, *KERNEL_PARTS], metavar="PART", default=None)
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    parser.add_argument("--svg", type=Path, help="also write a chart of the opening times to this file")
    parser.add_argument("--here", type=Path, metavar="FOLDER", help="measure in this folder, never in the test kernel")
    parser.add_argument("--place", default="native", help="what the tables call the machine")
    return parser.parse_args()


def has_device_mapper() -> bool:
    """Whether mappings can be made on this machine."""
    return os.geteuid() == 0 and "device-mapper" in Path("/proc/misc").read_text()


def measure(parts: dict[str, Part], folder: Path, rounds: int, where: str) -> dict[str, list[dict[str, object]]]:
    """Rows and curves of all parts; a part that fails is named and left out."""
    found: dict[str, list[dict[str, object]]] = {"rows": [], "curves": [], "failed": [], "busy": []}
    for name, part in parts.items():
        print(f"measuring {name} ({where})", file=sys.stderr, flush=True)
        look(found["busy"], name)
        try:
            with own_places():
                rows, curves = part(folder / name, rounds, where)
        except (StepFailed, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            found["failed"].append({"part": name, "reason": str(error)})
            continue
        found["rows"] += [row.facts() for row in rows]
        found["curves"] += [curve.facts() for curve in curves]
    return found


def look(busy: list[dict[str, object]], name: str) -> None:
    """Note in *busy* that others use the machine while part *name* is about to be measured."""
    used = used_by_others()
    if used > QUIET:
        busy.append({"part": name, "used": round(used, 2)})


@contextmanager
def own_places() -> Iterator[None]:
    """State and records of what is measured are in a folder that is gone afterwards: no part knows of another."""
    with tempfile.TemporaryDirectory(prefix="lukshook-bench-") as folder:
        os.environ |= {"LUKSHOOK_RUN_DIR": f"{folder}/run", "LUKSHOOK_STATE_DIR": f"{folder}/state"}
        yield


@contextmanager
def working_folder(above: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards, with the guarded mount points in it."""
    folder = Path(tempfile.mkdtemp(prefix="lukshook-bench-", dir=above))
    try:
        yield folder
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", folder], check=False, capture_output=True)
        shutil.rmtree(folder)


def in_guest(parts: dict[str, Part], rounds: int) -> dict[str, list[dict[str, object]]]:
    """The same, measured in the test kernel."""
    with tempfile.TemporaryDirectory(prefix="lukshook-bench-") as shared:
        inside = [sys.executable, str(HERE / "run"), "--here", "/disk", "--place", "guest", "--rounds", str(rounds)]
        inside += ["--json", "/out/found.json", "--only", *parts]
        guest = [sys.executable, str(PROJECT / "tests/support/guest.py"), "--share", shared]
        guest += ["--disk-size", str(GUEST_DISK), "--memory", str(GUEST_MEMORY), "--timeout", str(GUEST_SECONDS)]
        # Its exit status says whether bounds are met there; whether anything was measured, the file says.
        subprocess.run([*guest, "--", *inside], check=False, stdout=subprocess.DEVNULL)
        values = Path(shared) / "found.json"
        if not values.exists():
            return {"failed": [{"part": name, "reason": "the test kernel ended without values"} for name in parts]}
        found: dict[str, list[dict[str, object]]] = json.loads(values.read_text())
        return found


def main() -> int:
    """Measure, print tables, write files; 1 when a bound is not met or a part failed, 2 when nothing can be judged."""
    options = arguments()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(PROJECT / "plugin", quiet=2)
    wanted = options.only or [*NATIVE_PARTS, *KERNEL_PARTS]
    kernel = {name: part for name, part in KERNEL_PARTS.items() if name in wanted}
    here = {name: part for name, part in NATIVE_PARTS.items() if name in wanted}
    if options.here or has_device_mapper():
        here |= kernel
        kernel = {}
    with working_folder(options.here) as folder:
        found = measure(here, folder, options.rounds, options.place)
    look(found["busy"], "the test kernel" if kernel else "the end")
    if kernel:
        for name, values in in_guest(kernel, options.rounds).items():
            found[name] += values
    return report(found, options)


def report(found: dict[str, list[dict[str, object]]], options: argparse.Namespace) -> int:
    """Print and write what was found."""
    rows, curves = [row_from(r) for r in found["rows"]], [curve_from(c) for c in found["curves"]]
    print(f"lukshook bench, {datetime.now(UTC):%Y-%m-%d}, {options.rounds} rounds\n")
    print(table(rows, judged=not found["busy"]) + "\n")
    for curve in curves:
        print(curve_table(curve) + "\n")
    for failure in found["failed"]:
        print(f"not measured: {failure['part']}: {failure['reason']}")
    for one in found["busy"]:
        print(f"not judged: others used {one['used']:.0%} of the processors before {one['part']}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    opening = next((c for c in curves if c.what == "open"), None)
    if options.svg and opening:
        bars = [(name, sample.median) for name, sample in opening.points]
        options.svg.write_text(chart(f"Opening a volume ({opening.where}, median)", "s", bars))
    if found["busy"]:
        return 2
    return int(bool(found["failed"]) or any(row.met is False for row in rows))

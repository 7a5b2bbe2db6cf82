"""The rules of docs/architecture.md that a reader could break without noticing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook import errors

PACKAGE = Path(__file__).resolve().parents[2] / "plugin" / "lukshook"

# Low to high. A module imports from its own rank and from lower ones.
RANKS = (
    (
        "__init__",
        "version",
        "errors",
        "secret",
        "size",
        "inherited",
        "interrupt",
        "kernel",
        "libc",
        "listen",
        "digest",
        "dumps",
        "files",
        "orphans",
        "owners",
        "places",
        "processes",
        "scripts",
        "superblock",
        "streams",
        "systemlog",
        "text",
        "walk",
        "foreign",
        "installed",
        "clock",
        "stored",
        "folders",
    ),
    ("command", "header"),
    ("apart",),
    ("keys", "layers", "guard", "mend", "holders", "fill", "hostlines", "store", "image_file", "room"),
    ("config",),
    ("journal", "shown"),
    ("header_file", "luks", "state", "engine", "users", "trust", "qr", "swap"),
    ("rewrite", "site"),
    ("patience",),
    ("stack",),
    ("session", "status"),
    ("create", "resize", "check", "metrics"),
    ("keylife", "keyscript", "headercare", "trusting"),
    ("hookspecs",),
    ("plugin", "manager"),
    ("cli", "__main__"),
)
RANK = {module: number for number, group in enumerate(RANKS) for module in group}

# Folders whose files do not know of each other; the named files are what they share.
SIBLINGS = {"keys": ("__init__",), "layers": ("__init__", "base")}

STARTS_PROCESSES = ("command", "apart")
#: Children of ours that we have not waited for keep their number.
SIGNALS_BY_NUMBER = ("processes", "apart", "command", "orphans")
READS_ENVIRONMENT = ("cli", "__main__")
NAMES_HOSTS = ("cli", "hostlines")
HOSTS = r"borgmatic|rsnapshot|restic|rsbackup|kopia|duplicati|duply|backupninja|back ?in ?time"
STARTS_TOOLS = (
    "layers",
    "luks",
    "guard",
    "mend",
    "fill",
    "check",
    "header",
    "resize",
    "store",
    "image_file",
)  # header has a `read` of its own


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below the package: "session", "keys.file", "keys" for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(path: Path) -> str:
    return name_of(path).split(".", maxsplit=1)[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that ``from X import`` names, relative ones worked out."""
    if not node.level:
        return node.module or ""
    package = ("lukshook", *path.relative_to(PACKAGE).parent.parts)
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *([node.module] if node.module else [])))


def imported(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, "lukshook.keys.file" for ``from lukshook.keys import file``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{absolute(node, path)}.{alias.name}" for alias in node.names)


def own_modules(path: Path) -> Iterator[str]:
    """Names below the package that a file imports: "kernel", "keys.file"; not what the package itself defines."""
    for name in imported(path):
        below = name.removeprefix("lukshook.")
        if below != name and below.split(".")[0] in RANK:
            yield below


def code_strings(path: Path) -> Iterator[str]:
    """Every string of a file that is not a docstring."""
    tree = tree_of(path)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


each_source = pytest.mark.parametrize("path", sources(), ids=name_of)


@each_source
def test_every_module_has_a_rank(path: Path) -> None:
    """A new module is put into RANKS, and into docs/architecture.md."""
    assert room_of(path) in RANK


@each_source
def test_modules_import_downwards(path: Path) -> None:
    """No module imports from a higher rank."""
    rank = RANK[room_of(path)]
    assert [] == [name for name in own_modules(path) if RANK[name.split(".")[0]] > rank]


@each_source
def test_siblings_do_not_import_each_other(path: Path) -> None:
    """A key source or layer can be read, tested and removed alone."""
    room, shared = room_of(path), SIBLINGS.get(room_of(path), ())
    if path.stem in shared:
        return
    known = {file.stem for file in path.parent.glob("*.py")} - {path.stem, *shared} if room in SIBLINGS else set()
    siblings = [name.split(".")[1] for name in own_modules(path) if name.startswith(f"{room}.")]
    assert [] == [name for name in siblings if name in known]


@each_source
def test_one_module_starts_processes(path: Path) -> None:
    """A tool is started by command.py alone: there its environment, its timeout and its dry run are decided."""
    if room_of(path) in STARTS_PROCESSES:
        return
    starters = re.compile(r"^(subprocess|multiprocessing|pty|asyncio\.subprocess)\b")
    assert [] == [name for name in imported(path) if starters.match(name)]
    calls = re.compile(r"\bos\.(system|popen|fork|forkpty|spawn\w+|posix_spawn\w*|exec[lv]\w*)\(")
    assert [] == calls.findall(ast.unparse(tree_of(path)))


@each_source
def test_a_remembered_process_is_signalled_in_one_place(path: Path) -> None:
    """Its number may be another process's by now: processes.tell looks at the start time as well."""
    calls = re.findall(r"\bos\.(?:kill|killpg)\(|pidfd_send_signal\(", ast.unparse(tree_of(path)))
    assert [] == calls or room_of(path) in SIGNALS_BY_NUMBER


@each_source
def test_one_room_reads_the_environment(path: Path) -> None:
    """What the environment says comes in at the top and is handed down."""
    if room_of(path) in READS_ENVIRONMENT:
        return
    assert [] == re.findall(r"\bos\.(?:environb?|getenvb?)\b", ast.unparse(tree_of(path)))
    assert [] == [name for name in imported(path) if re.fullmatch(r"os\.(environb?|getenvb?)", name)]


@each_source
def test_hosts_are_named_at_the_top_only(path: Path) -> None:
    """Below the command line nothing depends on which backup tool is the host; hints and docstrings may name it."""
    if room_of(path) in NAMES_HOSTS:
        return
    names = [text for text in code_strings(path) if re.fullmatch(HOSTS, text, re.IGNORECASE)]
    identifiers = [node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)]
    assert [] == names + [name for name in identifiers if re.search(HOSTS, name, re.IGNORECASE)]


#: Where text is split at any blank: it is our own, a user's, or was matched before.
SPLITS_TEXT = ("size", "resize", "keys", "metrics", "manager", "installed", "hostlines", "config")


@each_source
def test_what_others_wrote_is_split_as_they_wrote_it(path: Path) -> None:
    """str.splitlines, split and strip take a dozen characters for the end of a line or word that may be in a name, and
    read_text fails where a name is no text. Bytes have none of that."""
    if room_of(path) in SPLITS_TEXT:
        return
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    named = [(node.func.attr, node) for node in calls if isinstance(node.func, ast.Attribute)]
    found = [
        f"line {node.lineno}: {name}"
        for name, node in named
        if name in ("splitlines", "read_text", "isspace")
        or (name in ("split", "strip", "rstrip", "lstrip") and not node.args)
    ]
    assert [] == [line for line in found if f"{path.stem}.{line.split()[-1]}" not in BYTES_ALL_THE_SAME]


#: Fields of numbers in what was read as bytes; the pid that a daemon of ours wrote.
BYTES_ALL_THE_SAME = ("kernel.split", "qemu.read_text")


def started(path: Path) -> Iterator[str]:
    """The first word of every command that a file makes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ("change", "read", "Command"):
            first = node.args[0].elts[0] if isinstance(node.args[0], ast.Tuple) else node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)


@each_source
def test_tools_are_started_in_few_rooms(path: Path) -> None:
    """A new option of a tool touches one room; others may name it in hints and docstrings."""
    if room_of(path) in STARTS_TOOLS:
        return
    assert [] == list(started(path))


@each_source
def test_every_failure_has_a_hint(path: Path) -> None:
    """What went wrong, and what to do about it; who is in the way of a closing is named later, with the hint."""
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"Busy"}
    bare = [
        f"line {node.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in kinds
        and not any(keyword.arg == "hint" for keyword in node.keywords)
    ]
    assert [] == bare


def test_what_is_started_is_found() -> None:
    """The rule above would not notice if it looked for the wrong thing."""
    found = {tool for path in sources() for tool in started(path)}

    assert {"cryptsetup", "losetup", "umount"} <= found

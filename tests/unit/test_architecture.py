"""The rules of docs/architecture.md that a reader could break without noticing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook import errors
from lukshook.filesystems.kinds import KINDS

PACKAGE = Path(__file__).resolve().parents[2] / "plugin" / "lukshook"

# Low to high. A module imports from its own package and from lower ranks.
RANKS = (
    ("errors", "old_pluggy", "version"),
    ("__init__", "size", "system"),
    ("filesystems", "hosts", "keys", "ledger", "store"),
    ("host_files", "luks", "replica", "snapshots"),
    ("layers",),
    ("options",),
    ("notify",),
    ("config",),
    ("hookspecs", "volume"),
    ("proof", "report", "resize"),
    ("plugins",),
    ("cli",),
    ("__main__",),
)
RANK = {module: number for number, group in enumerate(RANKS) for module in group}

# Packages whose files do not know of each other; the named files are what they share.
SIBLINGS = {
    "keys": ("__init__", "key_sources"),
    "layers": (
        *("__init__", "base", "dirty_bitmap", "engines", "era_metadata", "loop_device", "mapping", "mount_point"),
        *("qemu_process", "qemu_start"),
    ),
    "snapshots": ("__init__", "kind", "kinds"),
}

STARTS_PROCESSES = ("system.command", "system.forked_call")
#: Children of ours that we have not waited for keep their number.
SIGNALS_BY_NUMBER = ("system.processes", "system.forked_call", "system.command", "system.orphans")
READS_ENVIRONMENT = ("cli", "__main__")
NAMES_HOSTS = ("cli", "hosts", "host_files")
HOSTS = r"borgmatic|rsnapshot|restic|rsbackup|kopia|duplicati|duply|backupninja|back ?in ?time"
STARTS_TOOLS = ("filesystems", "store", "luks", "layers", "snapshots", "resize", "report.check", "replica", "notify")


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below the package: "session", "keys.file", "keys" for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def package_of(path: Path) -> str:
    return name_of(path).split(".", maxsplit=1)[0]


def is_one_of(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a file is one of *names*, or in a package of them."""
    return name_of(path) in names or package_of(path) in names


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
    assert package_of(path) in RANK


@each_source
def test_modules_import_downwards(path: Path) -> None:
    """No module imports from a higher rank, nor from another package of its own."""
    package = package_of(path)
    others = {name.split(".")[0] for name in own_modules(path)} - {package}
    assert [] == [other for other in sorted(others) if RANK[other] >= RANK[package]]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_says_what_it_holds_and_imports_nothing(path: Path) -> None:
    """Each start of lukshook reads it."""
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    assert 1 == len(tree.body)


@each_source
def test_siblings_do_not_import_each_other(path: Path) -> None:
    """A key source or layer can be read, tested and removed alone."""
    package, shared = package_of(path), SIBLINGS.get(package_of(path), ())
    if path.stem in shared:
        return
    known = {file.stem for file in path.parent.glob("*.py")} - {path.stem, *shared} if package in SIBLINGS else set()
    siblings = [name.split(".")[1] for name in own_modules(path) if name.startswith(f"{package}.")]
    assert [] == [name for name in siblings if name in known]


@each_source
def test_one_module_starts_processes(path: Path) -> None:
    """A tool is started by system/command.py alone: there its environment, its timeout and its dry run are decided."""
    if is_one_of(path, STARTS_PROCESSES):
        return
    starters = re.compile(r"^(subprocess|multiprocessing|pty|asyncio\.subprocess)\b")
    assert [] == [name for name in imported(path) if starters.match(name)]
    calls = re.compile(r"\bos\.(system|popen|fork|forkpty|spawn\w+|posix_spawn\w*|exec[lv]\w*)\(")
    assert [] == calls.findall(ast.unparse(tree_of(path)))


@each_source
def test_a_remembered_process_is_signalled_in_one_place(path: Path) -> None:
    """Its number may be another process's by now: processes.tell looks at the start time as well."""
    calls = re.findall(r"\bos\.(?:kill|killpg)\(|pidfd_send_signal\(", ast.unparse(tree_of(path)))
    assert [] == calls or is_one_of(path, SIGNALS_BY_NUMBER)


@each_source
def test_one_package_reads_the_environment(path: Path) -> None:
    """What the environment says comes in at the top and is handed down."""
    if is_one_of(path, READS_ENVIRONMENT):
        return
    assert [] == re.findall(r"\bos\.(?:environb?|getenvb?)\b", ast.unparse(tree_of(path)))
    assert [] == [name for name in imported(path) if re.fullmatch(r"os\.(environb?|getenvb?)", name)]


@each_source
def test_hosts_are_named_at_the_top_only(path: Path) -> None:
    """Below the command line nothing depends on which backup tool is the host; hints and docstrings may name it."""
    if is_one_of(path, NAMES_HOSTS):
        return
    names = [text for text in code_strings(path) if re.fullmatch(HOSTS, text, re.IGNORECASE)]
    identifiers = [node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)]
    assert [] == names + [name for name in identifiers if re.search(HOSTS, name, re.IGNORECASE)]


def compared(tree: ast.AST) -> Iterator[str]:
    """Every string that is compared with something: by `==`, `!=`, `in` and their like, or by `case`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            parts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            yield from (part for part in parts if isinstance(part, str))


@each_source
def test_no_kind_of_file_system_is_asked_by_name(path: Path) -> None:
    """What depends on it is a field of its Kind, so that a new one is one file and one line."""
    if is_one_of(path, ("filesystems",)):
        return
    assert [] == [text for text in compared(tree_of(path)) if text in KINDS]


@pytest.mark.parametrize(
    "code",
    [
        *('kind == "xfs"', '"xfs" != kind', 'kind in ("ext4", "xfs")', 'a.b.get("c", "xfs") == kind'),
        *('x = 1 if kind not in {"xfs"} else 2', 'match kind:\n  case "xfs":\n    pass'),
    ],
)
def test_what_is_compared_is_found(code: str) -> None:
    """The rule above would not notice if it looked for the wrong thing."""
    assert "xfs" in compared(ast.parse(code))


#: Where text is split at any blank: it is our own, a user's, or was matched before.
SPLITS_TEXT = ("size", "resize", "keys", "report.metrics", "plugins", "hosts", "config", "options")


@each_source
def test_what_others_wrote_is_split_as_they_wrote_it(path: Path) -> None:
    """str.splitlines, split and strip take a dozen characters for the end of a line or word that may be in a name, and
    read_text fails where a name is no text. Bytes have none of that."""
    if is_one_of(path, SPLITS_TEXT):
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
BYTES_ALL_THE_SAME = ("kernel.split", "qemu_process.read_text")


def started(path: Path) -> Iterator[str]:
    """The first word of every command that a file makes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ("change", "read", "Command"):
            first = node.args[0].elts[0] if isinstance(node.args[0], ast.Tuple) else node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)


@each_source
def test_tools_are_started_in_few_packages(path: Path) -> None:
    """A new option of a tool touches one module; others may name it in hints and docstrings."""
    if is_one_of(path, STARTS_TOOLS):
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


def test_every_file_that_the_page_names_exists() -> None:
    """docs/architecture.md says where to go."""
    project = PACKAGE.parents[1]
    named = set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", (project / "docs/architecture.md").read_text()))
    assert "volume/closing.py" in named
    assert [] == [name for name in sorted(named) if not ((PACKAGE / name).exists() or (project / name).exists())]
